// The operators of the priority sampler: write leaves, empty slots, draw.
#include <algorithm>
#include <cmath>
#include <limits>

#include <torch/csrc/stable/ops.h>

#include "../dispatch.h"
#include "../ops.h"
#include "sum_tree.h"

namespace dfkd::cpu {
namespace {

constexpr int64_t kDraws = 256;  // drawn together, level by level: what they read then stays in the second-level cache

}  // namespace

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
