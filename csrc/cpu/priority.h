// A sum tree of fan-out 64 over float leaves, in caller-owned memory: sums in double and counts of non-empty leaves,
// level after level, the lowest first, each padded with zeros to a multiple of 64; the last level has 64 entries.
#pragma once

#include <cstdint>
#include <vector>

#include "../ops.h"

namespace dfkd::cpu {

class SumTree {
 public:
  static constexpr int64_t kFanOut = 64;

  SumTree(const Tensor& leaves, const Tensor& sums, const Tensor& counts, int64_t capacity);

  // leaf = (|delta| + eps)^alpha for each row, the largest where rows share an index; rows out of range are skipped.
  void update(const int64_t* indices, const float* deltas, int64_t rows, float alpha, float eps);
  void clear(const int64_t* indices, int64_t rows);

  double total() const;
  int64_t filled() const;
  // The leaves in which positions of [0, total) fall; never an empty one unless all are. The positions are used up.
  void find(double* positions, int64_t* indices, int64_t rows) const;
  float leaf(int64_t index) const { return leaves_[index]; }

 private:
  struct Level {
    double* sums;
    int64_t* counts;
    int64_t entries;  // those with children; the padding stays zero
  };

  bool holds(int64_t index) const { return 0 <= index && index < capacity_; }
  void refresh(const int64_t* indices, int64_t rows);
  void refresh_entry(size_t level, int64_t entry);

  float* leaves_;
  int64_t capacity_;
  std::vector<Level> levels_;
};

}  // namespace dfkd::cpu
