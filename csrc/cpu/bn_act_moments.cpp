// Eval-mode BatchNorm, residual add, activation and the batch moments of BatchNorm's input, in one pass over the input.
//
//   d = x - shift,  pre = d * scale + bias [+ residual],  y = clamp(pre, low, high),  stats = (sum d, sum d * d, count)
//   g = dy * 1[low < pre < high],  dx = scale * g + dsum + 2 * d * dsum_sq,  dresidual = g
#include "bn_act_moments.h"  // before each_isa.h: what it defines must run on every processor

#define DFKD_KERNELS "kernels/bn_act_moments.h"
#include "each_isa.h"

#include "channel_work.h"

namespace dfkd::cpu {
namespace {

Range range_of(int64_t act) {
  constexpr float inf = std::numeric_limits<float>::infinity();
  return act == 0 ? Range{-inf, inf} : Range{0.f, act == 1 ? inf : 6.f};
}

Affine affine_of(const Tensor& shift, const Tensor& scale, const Tensor& bias) {
  return {data<float>(shift), data<float>(scale), data<float>(bias)};
}

template <typename T, bool kResidual>
void forward(const Layout& layout, ForwardIO<T> io, Affine at, Range range, float* stats) {
  if (!layout.channels_last) {
    const auto kernel = DFKD_PICK(forward_plane<T, kResidual>);
    MomentSums sums(layout.batch, layout.channels);
    for_planes(layout, [&](int64_t plane, int64_t c, int64_t first) {
      const int64_t n = plane / layout.channels;
      kernel(io.from(first), at.from(c), range, layout.inner, sums.sum(n) + c, sums.square(n) + c);
    });
    return sums.write(stats, layout.channels, layout.rows());
  }
  const auto kernel = DFKD_PICK(forward_chunk<T, kResidual>);
  const RowPlan plan(layout);
  const auto shift = plan.columns(at.shift), scale = plan.columns(at.scale), bias = plan.columns(at.bias);
  const Affine columns{shift.data(), scale.data(), bias.data()};
  MomentSums sums(plan.chunks, plan.width);
  plan.for_chunks([&](int64_t chunk, int64_t first, int64_t size) {
    kernel(io.from(first), columns, range, plan.width, size, sums.sum(chunk), sums.square(chunk));
  });
  sums.write(stats, layout.channels, layout.rows());
}

template <typename T, bool kFromY, bool kResidual>
void backward(const Layout& layout, BackwardIO<T> io, Affine at, MomentGradient gradient, Range range) {
  if (!layout.channels_last) {
    const auto kernel = DFKD_PICK(backward_plane<T, kFromY, kResidual>);
    return for_planes(layout, [&](int64_t, int64_t c, int64_t first) {
      kernel(io.from(first), at.from(c), gradient.from(c), range, layout.inner);
    });
  }
  const auto kernel = DFKD_PICK(backward_chunk<T, kFromY, kResidual>);
  const RowPlan plan(layout);
  const auto shift = plan.columns(at.shift), scale = plan.columns(at.scale), bias = plan.columns(at.bias);
  const auto dsum = plan.columns(gradient.sum), dsquare = plan.columns(gradient.square);
  const Affine columns{shift.data(), scale.data(), bias.data()};
  plan.for_chunks([&](int64_t, int64_t first, int64_t size) {
    kernel(io.from(first), columns, {dsum.data(), dsquare.data()}, range, plan.width, size);
  });
}

}  // namespace

std::tuple<Tensor, Tensor> bn_act_moments_forward(const Tensor& x, const Tensor& shift, const Tensor& scale,
                                                  const Tensor& bias, const OptionalTensor& residual, int64_t act) {
  const Layout layout = layout_of(x);
  Tensor y = torch::stable::empty_like(x);
  Tensor stats = torch::stable::new_empty(shift, {2 * layout.channels + 1});
  const Affine at = affine_of(shift, scale, bias);
  float* out = stats.mutable_data_ptr<float>();
  dispatch_float(x, [&](auto zero) {
    using T = decltype(zero);
    const ForwardIO<T> io{data<T>(x), data<T>(residual), y.mutable_data_ptr<T>()};
    dispatch_bool(residual.has_value(),
                  [&](auto has_residual) { forward<T, has_residual>(layout, io, at, range_of(act), out); });
  });
  return {y, stats};
}

std::tuple<Tensor, Tensor> bn_act_moments_backward(const Tensor& dy, const Tensor& x, const Tensor& shift,
                                                   const Tensor& scale, const Tensor& bias, const OptionalTensor& y,
                                                   const OptionalTensor& dsum, const OptionalTensor& dsum_sq,
                                                   int64_t act, bool want_dresidual) {
  const Layout layout = layout_of(x);
  Tensor dx = torch::stable::empty_like(x);
  Tensor dresidual = want_dresidual ? torch::stable::empty_like(x) : torch::stable::new_empty(x, {0});
  const auto dsums = channel_gradient(dsum, layout.channels, 1.f);
  const auto dsquares = channel_gradient(dsum_sq, layout.channels, 2.f);
  const MomentGradient gradient{dsums.data(), dsquares.data()};
  const Affine at = affine_of(shift, scale, bias);
  dispatch_float(x, [&](auto zero) {
    using T = decltype(zero);
    const BackwardIO<T> io{data<T>(dy), data<T>(x), data<T>(y), dx.mutable_data_ptr<T>(),
                           dresidual.mutable_data_ptr<T>()};
    dispatch_bool(y.has_value(), [&](auto from_y) {
      dispatch_bool(want_dresidual,
                    [&](auto residual) { backward<T, from_y, residual>(layout, io, at, gradient, range_of(act)); });
    });
  });
  return {dx, dresidual};
}

}  // namespace dfkd::cpu
