// The class activation map of each sample's label and its margin to a target.
//
//   M[b] = sum_k class_weights[labels[b], k] features[b, k],  margins = max(0, target - M),  mask = target - M > 0
//   grad_features[b, k] = -grad_margins[b] mask[b] class_weights[labels[b], k]
#define DFKD_KERNELS "kernels/cam_margin.h"
#include "each_isa.h"

#include <vector>

#include <torch/csrc/stable/ops.h>

#include "../dispatch.h"
#include "../layout.h"

namespace dfkd::cpu {
namespace {

// The label's row of class weights as floats; all zeros for a label that is no class.
template <typename T>
void label_weights(const T* class_weights, int64_t label, int64_t classes, int64_t channels, float* out) {
  if (label < 0 || label >= classes) return std::fill(out, out + channels, 0.f);
  DFKD_PICK(load_row<T>)(class_weights + label * channels, 1.f, channels, out);
}

}  // namespace

std::tuple<Tensor, Tensor> cam_margin_forward(const Tensor& features, const Tensor& class_weights, const Tensor& labels,
                                              const OptionalTensor& target_map, double target) {
  using torch::headeronly::ScalarType;
  const Layout layout = layout_of(features);
  const int64_t batch = layout.batch, channels = layout.channels, pixels = layout.inner;
  Tensor margins = torch::stable::new_empty(features, {batch, features.size(2), features.size(3)}, ScalarType::Float);
  Tensor mask = torch::stable::new_empty(margins, margins.sizes(), ScalarType::Bool);
  float* margin = margins.mutable_data_ptr<float>();
  bool* is_below = mask.mutable_data_ptr<bool>();
  const int64_t* label = data<int64_t>(labels);
  const std::vector<float> constant(pixels, static_cast<float>(target));
  const float* targets = target_map ? data<float>(target_map) : constant.data();
  dispatch_float(features, [&](auto feature) {
    dispatch_float(class_weights, [&](auto weight) {
      const auto kernel = DFKD_PICK(class_map<decltype(feature)>);
      const auto* maps = data<decltype(feature)>(features);
      const auto* rows = data<decltype(weight)>(class_weights);
      torch::stable::parallel_for(0, batch, 1, [&](int64_t begin, int64_t end) {
        std::vector<float> weights(channels);
        for (int64_t b = begin; b < end; ++b) {
          float* out = margin + b * pixels;
          label_weights(rows, label[b], class_weights.size(0), channels, weights.data());
          kernel(maps + b * channels * pixels, weights.data(), channels, pixels, layout.channels_last, out);
          for (int64_t i = 0; i < pixels; ++i) {
            const float gap = targets[i] - out[i];
            is_below[b * pixels + i] = gap > 0.f;
            out[i] = gap < 0.f ? 0.f : gap;
          }
        }
      });
    });
  });
  return {margins, mask};
}

void cam_margin_backward(const Tensor& grad_margins, const Tensor& mask, const Tensor& class_weights,
                         const Tensor& labels, const Tensor& grad_features) {
  const Layout layout = layout_of(grad_features);
  const int64_t channels = layout.channels, pixels = layout.inner;
  const float* gradient = data<float>(grad_margins);
  const bool* is_below = data<bool>(mask);
  const int64_t* label = data<int64_t>(labels);
  dispatch_float(grad_features, [&](auto feature) {
    dispatch_float(class_weights, [&](auto weight) {
      const auto kernel = DFKD_PICK(spread_gradient<decltype(feature)>);
      auto* out = grad_features.mutable_data_ptr<decltype(feature)>();
      const auto* rows = data<decltype(weight)>(class_weights);
      torch::stable::parallel_for(0, layout.batch, 1, [&](int64_t begin, int64_t end) {
        std::vector<float> weights(channels), pixel_gradient(pixels);
        for (int64_t b = begin; b < end; ++b) {
          label_weights(rows, label[b], class_weights.size(0), channels, weights.data());
          for (int64_t i = 0; i < pixels; ++i) {
            pixel_gradient[i] = is_below[b * pixels + i] ? gradient[b * pixels + i] : 0.f;
          }
          kernel(pixel_gradient.data(), weights.data(), channels, pixels, layout.channels_last,
                 out + b * channels * pixels);
        }
      });
    });
  });
}

}  // namespace dfkd::cpu
