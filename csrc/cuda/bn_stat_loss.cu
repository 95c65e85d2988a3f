// All layers' statistics loss and its derivatives in two launches, formulas as in cpu/bn_stat_loss.cpp.
//
// The layers' pointers travel in the kernel's arguments: no table is copied to the device, and a captured graph holds
// it.
#include <algorithm>

#include <torch/csrc/stable/ops.h>

#include "../dispatch.h"
#include "../ops.h"
#include "launch.h"

namespace dfkd::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kMaxLayers = 384;  // of 80 bytes: 30 KiB of the 32 KiB that a kernel's arguments may take

struct Layer {
  const float *sum, *sum_sq, *shift, *count, *target_mean, *target_var, *ema_mean, *ema_var;
  int64_t channels, offset;  // offset: channels of the layers before
};

struct Layers {
  Layer entries[kMaxLayers];
};

struct Gaps {
  double delta, mean, var;
};

__device__ Gaps gaps_of(const Layer& layer, int64_t c, double count, double correction, double momentum) {
  Gaps out;
  out.delta = layer.sum[c] / count;
  out.mean = out.delta + (static_cast<double>(layer.shift[c]) - layer.target_mean[c]);
  out.var = correction * (layer.sum_sq[c] / count - out.delta * out.delta) - layer.target_var[c];
  if (layer.ema_mean) {
    out.mean += momentum * (static_cast<double>(layer.ema_mean[c]) - layer.target_mean[c] - out.mean);
    out.var += momentum * (static_cast<double>(layer.ema_var[c]) - layer.target_var[c] - out.var);
  }
  return out;
}

// d loss / d gap = slope * gap; the norm's slope at 0 is taken as 0.
__device__ double slope_of(double squares, double weight, bool squared) {
  if (squared) return 2.0 * weight;
  return squares > 0.0 ? weight / sqrt(squares) : 0.0;
}

// One block per layer. losses [layers], coef [2, total]: d loss / d sum, then d loss / d sum_sq.
__global__ void __launch_bounds__(kThreads)
    layer_kernel(const __grid_constant__ Layers layers, const float* momentum_ptr, const float* weights, bool squared,
                 bool unbiased, int64_t total, double* losses, float* coef) {
  __shared__ double shared[kThreads / 32];
  const Layer& layer = layers.entries[blockIdx.x];
  const double count = *layer.count, correction = unbiased ? count / (count - 1.0) : 1.0;
  const double momentum = momentum_ptr ? *momentum_ptr : 0.0, weight = weights ? weights[blockIdx.x] : 1.0;
  double mean_squares = 0.0, var_squares = 0.0;
  for (int64_t c = threadIdx.x; c < layer.channels; c += kThreads) {
    const Gaps gaps = gaps_of(layer, c, count, correction, momentum);
    mean_squares += gaps.mean * gaps.mean;
    var_squares += gaps.var * gaps.var;
  }
  mean_squares = block_sum(mean_squares, shared);
  var_squares = block_sum(var_squares, shared);
  const double batch_share = (layer.ema_mean ? 1.0 - momentum : 1.0) / count;
  const double mean_slope = batch_share * slope_of(mean_squares, weight, squared);
  const double var_slope = batch_share * correction * slope_of(var_squares, weight, squared);
  for (int64_t c = threadIdx.x; c < layer.channels; c += kThreads) {
    const Gaps gaps = gaps_of(layer, c, count, correction, momentum);
    const double by_var = var_slope * gaps.var;
    coef[layer.offset + c] = static_cast<float>(mean_slope * gaps.mean - 2.0 * gaps.delta * by_var);
    coef[total + layer.offset + c] = static_cast<float>(by_var);
  }
  if (threadIdx.x == 0) {
    losses[blockIdx.x] = weight * (squared ? mean_squares + var_squares : sqrt(mean_squares) + sqrt(var_squares));
  }
}

__global__ void __launch_bounds__(kThreads) sum_kernel(const double* losses, int64_t layers, float* loss) {
  __shared__ double shared[kThreads / 32];
  double value = 0.0;
  for (int64_t l = threadIdx.x; l < layers; l += kThreads) value += losses[l];
  value = block_sum(value, shared);
  if (threadIdx.x == 0) *loss = static_cast<float>(value);
}

}  // namespace

std::tuple<Tensor, Tensor> bn_stat_loss(const TensorList& sum, const TensorList& sum_sq, const TensorList& shift,
                                       const TensorList& count, const TensorList& target_mean,
                                       const TensorList& target_var, const TensorList& ema_mean,
                                       const TensorList& ema_var, const OptionalTensor& momentum,
                                       const OptionalTensor& weights, int64_t kind, bool unbiased) {
  const Launch launch(sum[0]);
  const int64_t num_layers = static_cast<int64_t>(sum.size());
  int64_t total = 0;
  for (const Tensor& layer : sum) total += layer.numel();
  Tensor loss = torch::stable::new_empty(sum[0], {});
  Tensor coef = torch::stable::new_empty(sum[0], {2 * total});
  Tensor losses = torch::stable::new_empty(sum[0], {num_layers}, torch::headeronly::ScalarType::Double);
  const auto of = [](const TensorList& list, int64_t l) { return data<float>(list[l]); };
  int64_t offset = 0;
  for (int64_t first = 0; first < num_layers; first += kMaxLayers) {
    const int64_t size = std::min(kMaxLayers, num_layers - first);
    Layers table{};
    for (int64_t i = 0; i < size; ++i) {
      const int64_t l = first + i;
      table.entries[i] = {of(sum, l),
                          of(sum_sq, l),
                          of(shift, l),
                          of(count, l),
                          of(target_mean, l),
                          of(target_var, l),
                          momentum ? of(ema_mean, l) : nullptr,
                          momentum ? of(ema_var, l) : nullptr,
                          sum[l].numel(),
                          offset};
      offset += sum[l].numel();
    }
    layer_kernel<<<size, kThreads, 0, launch.stream>>>(
        table, data<float>(momentum), weights ? data<float>(weights) + first : nullptr, kind == 1, unbiased, total,
        losses.mutable_data_ptr<double>() + first, coef.mutable_data_ptr<float>());
    check(cudaGetLastError());
  }
  sum_kernel<<<1, kThreads, 0, launch.stream>>>(data<double>(losses), num_layers, loss.mutable_data_ptr<float>());
  check(cudaGetLastError());
  return {loss, coef};
}

}  // namespace dfkd::cuda
