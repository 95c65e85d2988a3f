// The operators of the priority sampler, which write leaves, empty slots and draw, and the tree that they work on.
#include "priority.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include <torch/csrc/stable/ops.h>

#include "../dispatch.h"

namespace dfkd::cpu {
namespace {

constexpr int64_t kFanOut = SumTree::kFanOut;
constexpr int64_t kDraws = 256;  // drawn together, level by level: what they read then stays in the second-level cache

int64_t blocks_of(int64_t entries) { return (entries + kFanOut - 1) / kFanOut; }

float leaf_value(float delta, float alpha, float eps) {
  const float magnitude = std::isfinite(delta) ? std::fabs(delta) : 0.f;
  const float value = std::pow(magnitude + eps, alpha);
  return std::clamp(value, std::numeric_limits<float>::min(), std::numeric_limits<float>::max());
}

// Eight running sums: additions that do not wait for one another.
template <typename Value, typename Sum>
Sum sum_children(const Value* children) {
  Sum lanes[8] = {};
  for (int64_t i = 0; i < kFanOut; i += 8) {
    for (int64_t lane = 0; lane < 8; ++lane) lanes[lane] += static_cast<Sum>(children[i + lane]);
  }
  return ((lanes[0] + lanes[1]) + (lanes[2] + lanes[3])) + ((lanes[4] + lanes[5]) + (lanes[6] + lanes[7]));
}

// The one of eight values in whose share of their running sum `position` falls; the position becomes one within it.
template <typename Value>
int64_t choose_of_eight(const Value* values, double& position) {
  double prefix[8];
  double sum = 0.0;
  for (int64_t i = 0; i < 8; ++i) prefix[i] = sum += static_cast<double>(values[i]);
  // Rounding may carry the position to the end or past it; below the sum, it falls in a value that is not zero.
  position = std::min(position, sum * (1.0 - std::numeric_limits<double>::epsilon()));
  int64_t chosen = 0;
  for (int64_t i = 0; i < 7; ++i) chosen += prefix[i] <= position;
  if (chosen > 0) position -= prefix[chosen - 1];
  return chosen;
}

// The same for the 64 children of a node: first among the sums of groups of eight, then within one of them.
template <typename Value>
int64_t choose_child(const Value* children, double& position) {
  double groups[8];
  for (int64_t g = 0; g < 8; ++g) {
    groups[g] = 0.0;
    for (int64_t i = 0; i < 8; ++i) groups[g] += static_cast<double>(children[8 * g + i]);
  }
  const int64_t first = 8 * choose_of_eight(groups, position);
  return first + choose_of_eight(children + first, position);
}

// The 64 children of a node are requested while other rows are at work: a large tree lies in main memory.
template <typename Value>
void prefetch(const Value* children) {
  for (int64_t i = 0; i < kFanOut; i += 64 / static_cast<int64_t>(sizeof(Value))) __builtin_prefetch(children + i);
}

}  // namespace

SumTree::SumTree(const Tensor& leaves, const Tensor& sums, const Tensor& counts, int64_t capacity)
    : leaves_(leaves.mutable_data_ptr<float>()), capacity_(capacity) {
  double* level_sums = sums.mutable_data_ptr<double>();
  int64_t* level_counts = counts.mutable_data_ptr<int64_t>();
  for (int64_t entries = blocks_of(capacity);; entries = blocks_of(entries)) {
    levels_.push_back({level_sums, level_counts, entries});
    const int64_t padded = blocks_of(entries) * kFanOut;
    if (padded == kFanOut) break;
    level_sums += padded;
    level_counts += padded;
  }
}

void SumTree::update(const int64_t* indices, const float* deltas, int64_t rows, float alpha, float eps) {
  for (int64_t row = 0; row < rows; ++row) {
    if (holds(indices[row])) prefetch(leaves_ + indices[row] / kFanOut * kFanOut);
  }
  for (int64_t row = 0; row < rows; ++row) {
    if (!holds(indices[row])) continue;
    leaves_[indices[row]] = 0.f;  // so that the maximum is among this call's rows
  }
  for (int64_t row = 0; row < rows; ++row) {
    if (!holds(indices[row])) continue;
    float& leaf = leaves_[indices[row]];
    leaf = std::max(leaf, leaf_value(deltas[row], alpha, eps));
  }
  refresh(indices, rows);
}

void SumTree::clear(const int64_t* indices, int64_t rows) {
  for (int64_t row = 0; row < rows; ++row) {
    if (holds(indices[row])) leaves_[indices[row]] = 0.f;
  }
  refresh(indices, rows);
}

double SumTree::total() const { return sum_children<double, double>(levels_.back().sums); }
int64_t SumTree::filled() const { return sum_children<int64_t, int64_t>(levels_.back().counts); }

void SumTree::find(double* positions, int64_t* indices, int64_t rows) const {
  std::fill(indices, indices + rows, 0);
  for (size_t level = levels_.size(); level-- > 0;) {
    for (int64_t row = 0; row < rows; ++row) {
      const int64_t node = indices[row] * kFanOut;
      const int64_t chosen = node + choose_child(levels_[level].sums + node, positions[row]);
      indices[row] = std::min(chosen, levels_[level].entries - 1);  // only an empty tree leads further
      level > 0 ? prefetch(levels_[level - 1].sums + indices[row] * kFanOut)
                : prefetch(leaves_ + indices[row] * kFanOut);
    }
  }
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t node = indices[row] * kFanOut;
    indices[row] = std::min(node + choose_child(leaves_ + node, positions[row]), capacity_ - 1);
  }
}

// Recomputed from the children, never by a difference: no drift. Where rows outnumber a level's entries, all are
// redone.
void SumTree::refresh(const int64_t* indices, int64_t rows) {
  int64_t span = 1;
  for (size_t level = 0; level < levels_.size(); ++level) {
    span *= kFanOut;
    if (rows >= levels_[level].entries) {
      torch::stable::parallel_for(0, levels_[level].entries, 1024, [&](int64_t begin, int64_t end) {
        for (int64_t entry = begin; entry < end; ++entry) refresh_entry(level, entry);
      });
      continue;
    }
    for (int64_t row = 0; row < rows; ++row) {
      if (holds(indices[row])) refresh_entry(level, indices[row] / span);
    }
  }
}

void SumTree::refresh_entry(size_t level, int64_t entry) {
  const int64_t first = kFanOut * entry;
  if (level > 0) {
    const Level& below = levels_[level - 1];
    levels_[level].sums[entry] = sum_children<double, double>(below.sums + first);
    levels_[level].counts[entry] = sum_children<int64_t, int64_t>(below.counts + first);
    return;
  }
  const float* children = leaves_ + first;
  levels_[0].sums[entry] = sum_children<float, double>(children);
  levels_[0].counts[entry] = std::count_if(children, children + kFanOut, [](float leaf) { return leaf != 0.f; });
}

void priority_update(const Tensor& leaves, const Tensor& sums, const Tensor& counts, int64_t capacity,
                     const Tensor& indices, const Tensor& deltas, double alpha, double eps) {
  SumTree(leaves, sums, counts, capacity)
      .update(data<int64_t>(indices), data<float>(deltas), indices.size(0), static_cast<float>(alpha),
              static_cast<float>(eps));
}

void priority_clear(const Tensor& leaves, const Tensor& sums, const Tensor& counts, int64_t capacity,
                    const Tensor& indices) {
  SumTree(leaves, sums, counts, capacity).clear(data<int64_t>(indices), indices.size(0));
}

std::tuple<Tensor, Tensor> priority_sample(const Tensor& leaves, const Tensor& sums, const Tensor& counts,
                                           int64_t capacity, const Tensor& uniforms, double beta) {
  using torch::headeronly::ScalarType;
  const int64_t rows = uniforms.size(0);
  Tensor indices = torch::stable::new_empty(uniforms, {rows}, ScalarType::Long);
  Tensor is_weights = torch::stable::new_empty(uniforms, {rows}, ScalarType::Float);
  const double* uniform = data<double>(uniforms);
  int64_t* index = indices.mutable_data_ptr<int64_t>();
  float* weight = is_weights.mutable_data_ptr<float>();
  const SumTree tree(leaves, sums, counts, capacity);
  const double total = tree.total(), filled = static_cast<double>(tree.filled());
  torch::stable::parallel_for(0, (rows + kDraws - 1) / kDraws, 4, [&](int64_t begin, int64_t end) {
    double positions[kDraws];
    for (int64_t first = begin * kDraws; first < std::min(end * kDraws, rows); first += kDraws) {
      const int64_t draws = std::min(kDraws, rows - first);
      for (int64_t i = 0; i < draws; ++i) positions[i] = uniform[first + i] * total;
      tree.find(positions, index + first, draws);
      for (int64_t row = first; row < first + draws; ++row) {
        const double share = filled * tree.leaf(index[row]) / total;
        weight[row] =
            total > 0.0 ? static_cast<float>(std::pow(share, -beta)) : std::numeric_limits<float>::quiet_NaN();
      }
    }
  });
  return {indices, is_weights};
}

}  // namespace dfkd::cpu
