// The priority tree on the device: the same tree as cpu/priority.h. No result depends on the order of threads: rows
// that share a leaf meet in an integer maximum, rows that share a node write the same value.
#include <cfloat>
#include <cmath>

#include <torch/csrc/stable/ops.h>

#include "../dispatch.h"
#include "../ops.h"
#include "launch.h"

namespace dfkd::cuda {
namespace {

constexpr int64_t kFanOut = 64;
constexpr int kMaxLevels = 10;  // 64^10 leaves
constexpr int kThreads = 256;
constexpr int kOneBlock = 1024;  // threads of the single block that serves small batches in one launch
constexpr int64_t kOneBlockRows = 1024;
constexpr unsigned kAllLanes = 0xffffffffu;

struct Tree {
  float* leaves;
  double* sums[kMaxLevels];  // lowest level first
  int64_t* counts[kMaxLevels];
  int64_t entries[kMaxLevels];  // with children
  int levels;
  int64_t capacity;

  Tree(const Tensor& leaf_values, const Tensor& level_sums, const Tensor& level_counts, int64_t slots)
      : leaves(leaf_values.mutable_data_ptr<float>()), levels(0), capacity(slots) {
    double* sum = level_sums.mutable_data_ptr<double>();
    int64_t* count = level_counts.mutable_data_ptr<int64_t>();
    const auto blocks = [](int64_t n) { return (n + kFanOut - 1) / kFanOut; };
    for (int64_t n = blocks(slots);; n = blocks(n)) {
      sums[levels] = sum;
      counts[levels] = count;
      entries[levels++] = n;
      const int64_t padded = blocks(n) * kFanOut;
      if (padded == kFanOut) break;
      sum += padded;
      count += padded;
    }
  }

  __device__ bool holds(int64_t index) const { return 0 <= index && index < capacity; }
};

struct Rows {
  const int64_t* indices;
  const float* deltas;  // null: empty the slots
  int64_t count;
  float alpha, eps;
};

__device__ float leaf_value(float delta, float alpha, float eps) {
  const float magnitude = isfinite(delta) ? fabsf(delta) : 0.f;
  return fminf(fmaxf(powf(magnitude + eps, alpha), FLT_MIN), FLT_MAX);
}

__device__ void clear_leaves(const Tree& tree, const Rows& rows, int64_t first, int64_t stride) {
  for (int64_t row = first; row < rows.count; row += stride) {
    if (tree.holds(rows.indices[row])) tree.leaves[rows.indices[row]] = 0.f;
  }
}

// Positive floats keep their order as integers.
__device__ void raise_leaves(const Tree& tree, const Rows& rows, int64_t first, int64_t stride) {
  for (int64_t row = first; row < rows.count; row += stride) {
    const float leaf = leaf_value(rows.deltas[row], rows.alpha, rows.eps);
    if (!tree.holds(rows.indices[row])) continue;
    atomicMax(reinterpret_cast<int*>(tree.leaves + rows.indices[row]), __float_as_int(leaf));
  }
}

// One warp per row: the row's entry of this level, from its 64 children.
__device__ void refresh_level(const Tree& tree, const Rows& rows, int level, int64_t first_warp, int64_t warps) {
  const int lane = threadIdx.x % 32;
  int64_t span = kFanOut;
  for (int below = 0; below < level; ++below) span *= kFanOut;
  for (int64_t row = first_warp; row < rows.count; row += warps) {
    if (!tree.holds(rows.indices[row])) continue;
    const int64_t entry = rows.indices[row] / span, child = kFanOut * entry + lane;
    double sum;
    int64_t count;
    if (level == 0) {
      const float low = tree.leaves[child], high = tree.leaves[child + 32];
      sum = static_cast<double>(low) + high;
      count = (low != 0.f) + (high != 0.f);
    } else {
      sum = tree.sums[level - 1][child] + tree.sums[level - 1][child + 32];
      count = tree.counts[level - 1][child] + tree.counts[level - 1][child + 32];
    }
    sum = warp_sum(sum);
    count = warp_sum(count);
    if (lane == 0) {
      tree.sums[level][entry] = sum;
      tree.counts[level][entry] = count;
    }
  }
}

__global__ void __launch_bounds__(kOneBlock) update_small_kernel(Tree tree, Rows rows) {
  clear_leaves(tree, rows, threadIdx.x, kOneBlock);
  __syncthreads();
  if (rows.deltas) raise_leaves(tree, rows, threadIdx.x, kOneBlock);
  for (int level = 0; level < tree.levels; ++level) {
    __syncthreads();
    refresh_level(tree, rows, level, threadIdx.x / 32, kOneBlock / 32);
  }
}

__device__ int64_t global_thread() { return static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; }
__device__ int64_t global_threads() { return static_cast<int64_t>(gridDim.x) * kThreads; }

__global__ void __launch_bounds__(kThreads) clear_kernel(Tree tree, Rows rows) {
  clear_leaves(tree, rows, global_thread(), global_threads());
}

__global__ void __launch_bounds__(kThreads) raise_kernel(Tree tree, Rows rows) {
  raise_leaves(tree, rows, global_thread(), global_threads());
}

__global__ void __launch_bounds__(kThreads) refresh_kernel(Tree tree, Rows rows, int level) {
  refresh_level(tree, rows, level, global_thread() / 32, global_threads() / 32);
}

// Of two children per lane, the one in whose share of the running sum `position` falls; position and `chosen` follow.
// A parallel prefix sum need not grow in its last bit, so only children that hold something qualify, and where rounding
// leads past the last of them, that one is taken.
template <typename Value>
__device__ int64_t choose_child(const Value* children, double& position, double& chosen) {
  const int lane = threadIdx.x % 32;
  const double first = children[2 * lane], second = children[2 * lane + 1];
  double prefix = first + second;
#pragma unroll
  for (int offset = 1; offset < 32; offset *= 2) {
    const double before = __shfl_up_sync(kAllLanes, prefix, offset);
    if (lane >= offset) prefix += before;
  }
  const double before_second = prefix - second, before_first = before_second - first;
  const bool takes_first = first > 0.0 && before_second > position, takes_second = second > 0.0 && prefix > position;
  const unsigned hits = __ballot_sync(kAllLanes, takes_first || takes_second);
  const unsigned filled = __ballot_sync(kAllLanes, first > 0.0 || second > 0.0);
  const int winner = hits ? __ffs(hits) - 1 : filled ? 31 - __clz(filled) : 0;
  const bool is_second = hits ? !takes_first : second > 0.0;
  const double start = is_second ? before_second : before_first;
  position = fmax(position - __shfl_sync(kAllLanes, start, winner), 0.0);
  chosen = __shfl_sync(kAllLanes, is_second ? second : first, winner);
  return 2 * winner + __shfl_sync(kAllLanes, static_cast<int>(is_second), winner);
}

// One warp per draw.
__global__ void __launch_bounds__(kThreads)
    sample_kernel(Tree tree, const double* uniforms, int64_t draws, double beta, int64_t* indices, float* is_weights) {
  const int lane = threadIdx.x % 32, top = tree.levels - 1;
  const double total = warp_sum(tree.sums[top][lane] + tree.sums[top][lane + 32]);
  const double filled = static_cast<double>(warp_sum(tree.counts[top][lane] + tree.counts[top][lane + 32]));
  for (int64_t draw = global_thread() / 32; draw < draws; draw += global_threads() / 32) {
    double position = uniforms[draw] * total, chosen = 0.0;
    int64_t node = 0;
    for (int level = top; level >= 0; --level) {
      node = kFanOut * node + choose_child(tree.sums[level] + kFanOut * node, position, chosen);
    }
    node = kFanOut * node + choose_child(tree.leaves + kFanOut * node, position, chosen);
    if (lane == 0) {
      indices[draw] = min(node, tree.capacity - 1);
      is_weights[draw] = total > 0.0 ? static_cast<float>(pow(filled * (chosen / total), -beta)) : nanf("");
    }
  }
}

unsigned blocks_for(int64_t threads) {
  return static_cast<unsigned>(std::min<int64_t>((threads + kThreads - 1) / kThreads, 4096));
}

void write(const Tensor& leaves, const Tensor& sums, const Tensor& counts, int64_t capacity, const Rows& rows) {
  if (rows.count == 0) return;
  const Launch launch(leaves);
  const Tree tree(leaves, sums, counts, capacity);
  if (rows.count <= kOneBlockRows) {
    update_small_kernel<<<1, kOneBlock, 0, launch.stream>>>(tree, rows);
  } else {
    clear_kernel<<<blocks_for(rows.count), kThreads, 0, launch.stream>>>(tree, rows);
    if (rows.deltas) raise_kernel<<<blocks_for(rows.count), kThreads, 0, launch.stream>>>(tree, rows);
    for (int level = 0; level < tree.levels; ++level) {
      refresh_kernel<<<blocks_for(32 * rows.count), kThreads, 0, launch.stream>>>(tree, rows, level);
    }
  }
  check(cudaGetLastError());
}

}  // namespace

void priority_update(const Tensor& leaves, const Tensor& sums, const Tensor& counts, int64_t capacity,
                     const Tensor& indices, const Tensor& deltas, double alpha, double eps) {
  write(leaves, sums, counts, capacity,
        {data<int64_t>(indices), data<float>(deltas), indices.size(0), static_cast<float>(alpha),
         static_cast<float>(eps)});
}

void priority_clear(const Tensor& leaves, const Tensor& sums, const Tensor& counts, int64_t capacity,
                    const Tensor& indices) {
  write(leaves, sums, counts, capacity, {data<int64_t>(indices), nullptr, indices.size(0), 0.f, 0.f});
}

std::tuple<Tensor, Tensor> priority_sample(const Tensor& leaves, const Tensor& sums, const Tensor& counts,
                                           int64_t capacity, const Tensor& uniforms, double beta) {
  using torch::headeronly::ScalarType;
  const int64_t draws = uniforms.size(0);
  Tensor indices = torch::stable::new_empty(uniforms, {draws}, ScalarType::Long);
  Tensor is_weights = torch::stable::new_empty(uniforms, {draws}, ScalarType::Float);
  if (draws == 0) return {indices, is_weights};
  const Launch launch(leaves);
  sample_kernel<<<blocks_for(32 * draws), kThreads, 0, launch.stream>>>(
      Tree(leaves, sums, counts, capacity), data<double>(uniforms), draws, beta, indices.mutable_data_ptr<int64_t>(),
      is_weights.mutable_data_ptr<float>());
  check(cudaGetLastError());
  return {indices, is_weights};
}

}  // namespace dfkd::cuda
