// Eval-mode BatchNorm, residual add, activation and the batch moments of BatchNorm's input, in one pass over the input.
//
//   d = x - shift,  pre = d * scale + bias [+ residual],  y = act(pre),  stats = (sum d, sum d * d, count)
//   g = dy * act'(pre),  dx = scale * g + dsum + 2 * d * dsum_sq,  dresidual = g
#include "bn_act_moments.h"  // before each_isa.h: what it defines must run on every processor

#define DFKD_KERNELS "kernels/bn_act_moments.h"
#include "each_isa.h"

#include "channel_work.h"

namespace dfkd::cpu {
namespace {

Activation activation_of(int64_t act, double slope) {
  constexpr float inf = std::numeric_limits<float>::infinity();
  return {static_cast<Act>(act), act == 0 ? -inf : 0.f, act == 2 ? 6.f : inf, static_cast<float>(slope)};
}

Affine affine_of(const Tensor& shift, const Tensor& scale, const Tensor& bias) {
  return {data<float>(shift), data<float>(scale), data<float>(bias)};
}

template <typename T, bool kClamps, bool kResidual>
void forward(const Layout& layout, ForwardIO<T> io, Affine at, Activation to, float* stats) {
  if (!layout.channels_last) {
    const auto kernel = DFKD_PICK(forward_plane<T, kClamps, kResidual>);
    MomentSums sums(layout.batch, layout.channels);
    for_planes(layout, [&](int64_t plane, int64_t c, int64_t first) {
      const int64_t n = plane / layout.channels;
      kernel(io.from(first), at.from(c), to, layout.inner, sums.sum(n) + c, sums.square(n) + c);
    });
    return sums.write(stats, layout.channels, layout.rows());
  }
  const auto kernel = DFKD_PICK(forward_chunk<T, kClamps, kResidual>);
  const RowPlan plan(layout);
  const auto shift = plan.columns(at.shift), scale = plan.columns(at.scale), bias = plan.columns(at.bias);
  const Affine columns{shift.data(), scale.data(), bias.data()};
  MomentSums sums(plan.chunks, plan.width);
  plan.for_chunks([&](int64_t chunk, int64_t first, int64_t size) {
    kernel(io.from(first), columns, to, plan.width, size, sums.sum(chunk), sums.square(chunk));
  });
  sums.write(stats, layout.channels, layout.rows());
}

template <typename T, bool kClamps, bool kKept, bool kResidual>
void backward(const Layout& layout, BackwardIO<T> io, Affine at, MomentGradient gradient, Activation to) {
  if (!layout.channels_last) {
    const auto kernel = DFKD_PICK(backward_plane<T, kClamps, kKept, kResidual>);
    return for_planes(layout, [&](int64_t, int64_t c, int64_t first) {
      kernel(io.from(first), at.from(c), gradient.from(c), to, layout.inner);
    });
  }
  const auto kernel = DFKD_PICK(backward_chunk<T, kClamps, kKept, kResidual>);
  const RowPlan plan(layout);
  const auto shift = plan.columns(at.shift), scale = plan.columns(at.scale), bias = plan.columns(at.bias);
  const auto dsum = plan.columns(gradient.sum), dsquare = plan.columns(gradient.square);
  const Affine columns{shift.data(), scale.data(), bias.data()};
  plan.for_chunks([&](int64_t, int64_t first, int64_t size) {
    kernel(io.from(first), columns, {dsum.data(), dsquare.data()}, to, plan.width, size);
  });
}

}  // namespace

std::tuple<Tensor, Tensor> bn_act_moments_forward(const Tensor& x, const Tensor& shift, const Tensor& scale,
                                                  const Tensor& bias, const OptionalTensor& residual, int64_t act,
                                                  double slope) {
  const Layout layout = layout_of(x);
  Tensor y = torch::stable::empty_like(x);
  Tensor stats = torch::stable::new_empty(shift, {2 * layout.channels + 1});
  const Affine at = affine_of(shift, scale, bias);
  const Activation to = activation_of(act, slope);
  float* out = stats.mutable_data_ptr<float>();
  dispatch_float(x, [&](auto zero) {
    using T = decltype(zero);
    const ForwardIO<T> io{data<T>(x), data<T>(residual), y.mutable_data_ptr<T>()};
    dispatch_bool(to.clamps(), [&](auto clamps) {
      dispatch_bool(residual.has_value(),
                    [&](auto has_residual) { forward<T, clamps, has_residual>(layout, io, at, to, out); });
    });
  });
  return {y, stats};
}

std::tuple<Tensor, Tensor> bn_act_moments_backward(const Tensor& dy, const Tensor& x, const Tensor& shift,
                                                   const Tensor& scale, const Tensor& bias, const OptionalTensor& kept,
                                                   const OptionalTensor& dsum, const OptionalTensor& dsum_sq,
                                                   int64_t act, double slope, bool want_dresidual) {
  const Layout layout = layout_of(x);
  Tensor dx = torch::stable::empty_like(x);
  Tensor dresidual = want_dresidual ? torch::stable::empty_like(x) : torch::stable::new_empty(x, {0});
  const auto dsums = channel_gradient(dsum, layout.channels, 1.f);
  const auto dsquares = channel_gradient(dsum_sq, layout.channels, 2.f);
  const MomentGradient gradient{dsums.data(), dsquares.data()};
  const Affine at = affine_of(shift, scale, bias);
  const Activation to = activation_of(act, slope);
  dispatch_float(x, [&](auto zero) {
    using T = decltype(zero);
    const BackwardIO<T> io{data<T>(dy), data<T>(x), data<T>(kept), dx.mutable_data_ptr<T>(),
                           dresidual.mutable_data_ptr<T>()};
    dispatch_bool(to.clamps(), [&](auto clamps) {
      dispatch_bool(kept.has_value(), [&](auto has_kept) {
        dispatch_bool(want_dresidual,
                      [&](auto residual) { backward<T, clamps, has_kept, residual>(layout, io, at, gradient, to); });
      });
    });
  });
  return {dx, dresidual};
}

}  // namespace dfkd::cpu
