// The distance of all layers' batch statistics from their targets, and its derivatives by the layers' sums.
//
//   delta = sum / n,  var = correction (sum_sq / n - delta^2),  correction = n / (n - 1) if unbiased, else 1
//   mean_gap = lerp(delta + (shift - target_mean), ema_mean - target_mean, momentum),  var_gap likewise
//   loss = sum_l w_l (|mean_gap| + |var_gap|), the L2 norms or their squares
#include <cmath>

#include <torch/csrc/stable/ops.h>

#include "../dispatch.h"
#include "../ops.h"

namespace dfkd::cpu {
namespace {

struct Layer {
  const float *sum, *sum_sq, *shift, *target_mean, *target_var, *ema_mean, *ema_var;
  int64_t channels;
  double count, correction, momentum, weight;

  double delta(int64_t c) const { return sum[c] / count; }
  double mean_gap(int64_t c) const {
    const double batch = delta(c) + (static_cast<double>(shift[c]) - target_mean[c]);
    return ema_mean ? batch + momentum * (static_cast<double>(ema_mean[c]) - target_mean[c] - batch) : batch;
  }
  double var_gap(int64_t c) const {
    const double batch = correction * (sum_sq[c] / count - delta(c) * delta(c)) - target_var[c];
    return ema_var ? batch + momentum * (static_cast<double>(ema_var[c]) - target_var[c] - batch) : batch;
  }
};

// The loss of a layer, and d loss / d gap = slope * gap for its two gaps; the norm's slope at 0 is taken as 0.
struct Distance {
  double value, slope;
};

Distance distance(double squares, double weight, bool squared) {
  if (squared) return {weight * squares, 2.0 * weight};
  const double norm = std::sqrt(squares);
  return {weight * norm, norm > 0.0 ? weight / norm : 0.0};
}

// Writes d loss / d sum and d loss / d sum_sq [channels] and returns the layer's loss.
double layer_loss(const Layer& layer, bool squared, float* dsum, float* dsum_sq) {
  double mean_squares = 0.0, var_squares = 0.0;
  for (int64_t c = 0; c < layer.channels; ++c) {
    mean_squares += layer.mean_gap(c) * layer.mean_gap(c);
    var_squares += layer.var_gap(c) * layer.var_gap(c);
  }
  const Distance mean = distance(mean_squares, layer.weight, squared),
                 var = distance(var_squares, layer.weight, squared);
  const double batch_share = (layer.ema_mean ? 1.0 - layer.momentum : 1.0) / layer.count;
  for (int64_t c = 0; c < layer.channels; ++c) {
    const double by_mean = batch_share * mean.slope * layer.mean_gap(c);
    const double by_var = batch_share * layer.correction * var.slope * layer.var_gap(c);
    dsum[c] = static_cast<float>(by_mean - 2.0 * layer.delta(c) * by_var);
    dsum_sq[c] = static_cast<float>(by_var);
  }
  return mean.value + var.value;
}

}  // namespace

std::tuple<Tensor, Tensor> bn_stat_loss(const TensorList& sum, const TensorList& sum_sq, const TensorList& shift,
                                       const TensorList& count, const TensorList& target_mean,
                                       const TensorList& target_var, const TensorList& ema_mean,
                                       const TensorList& ema_var, const OptionalTensor& momentum,
                                       const OptionalTensor& weights, int64_t kind, bool unbiased) {
  int64_t channels = 0;
  for (const Tensor& layer : sum) channels += layer.numel();
  Tensor loss = torch::stable::new_empty(sum[0], {}), coef = torch::stable::new_empty(sum[0], {2 * channels});
  float* out = coef.mutable_data_ptr<float>();
  double total = 0.0;
  for (size_t l = 0; l < sum.size(); ++l) {
    const double n = *data<float>(count[l]);
    const Layer layer{data<float>(sum[l]),
                      data<float>(sum_sq[l]),
                      data<float>(shift[l]),
                      data<float>(target_mean[l]),
                      data<float>(target_var[l]),
                      momentum ? data<float>(ema_mean[l]) : nullptr,
                      momentum ? data<float>(ema_var[l]) : nullptr,
                      sum[l].numel(),
                      n,
                      unbiased ? n / (n - 1.0) : 1.0,
                      momentum ? static_cast<double>(*data<float>(momentum)) : 0.0,
                      weights ? static_cast<double>(data<float>(weights)[l]) : 1.0};
    total += layer_loss(layer, kind == 1, out, out + channels);
    out += layer.channels;
  }
  *loss.mutable_data_ptr<float>() = static_cast<float>(total);
  return {loss, coef};
}

}  // namespace dfkd::cpu
