// The batch moments alone, for code that keeps its own BatchNorm: stats = (sum d, sum d * d, count) with d = x - shift,
// dx = dsum + 2 * d * dsum_sq.
#define DFKD_KERNELS "kernels/batch_moments.h"
#include "each_isa.h"

#include "channel_work.h"

namespace dfkd::cpu {
namespace {

template <typename T>
void forward(const Layout& layout, const T* x, const float* shift, float* stats) {
  if (!layout.channels_last) {
    const auto kernel = DFKD_PICK(sum_channel<T>);
    MomentSums sums(layout.batch, layout.channels);
    for_planes(layout, [&](int64_t plane, int64_t c, int64_t first) {
      const int64_t n = plane / layout.channels;
      kernel(x + first, shift[c], layout.inner, sums.sum(n) + c, sums.square(n) + c);
    });
    return sums.write(stats, layout.channels, layout.rows());
  }
  const auto kernel = DFKD_PICK(sum_chunk<T>);
  const RowPlan plan(layout);
  const auto shifts = plan.columns(shift);
  MomentSums sums(plan.chunks, plan.width);
  plan.for_chunks([&](int64_t chunk, int64_t first, int64_t size) {
    kernel(x + first, shifts.data(), plan.width, size, sums.sum(chunk), sums.square(chunk));
  });
  sums.write(stats, layout.channels, layout.rows());
}

template <typename T>
void backward(const Layout& layout, const T* x, const float* shift, const std::vector<float>& dsum,
              const std::vector<float>& dsquare, T* dx) {
  if (!layout.channels_last) {
    const auto kernel = DFKD_PICK(gradient_channel<T>);
    return for_planes(layout, [&](int64_t, int64_t c, int64_t first) {
      kernel(x + first, shift[c], dsum[c], dsquare[c], layout.inner, dx + first);
    });
  }
  const auto kernel = DFKD_PICK(gradient_chunk<T>);
  const RowPlan plan(layout);
  const auto shifts = plan.columns(shift), dsums = plan.columns(dsum.data()), dsquares = plan.columns(dsquare.data());
  plan.for_chunks([&](int64_t, int64_t first, int64_t size) {
    kernel(x + first, shifts.data(), dsums.data(), dsquares.data(), plan.width, size, dx + first);
  });
}

}  // namespace

Tensor batch_moments_forward(const Tensor& x, const Tensor& shift) {
  const Layout layout = layout_of(x);
  Tensor stats = torch::stable::new_empty(shift, {2 * layout.channels + 1});
  dispatch_float(x, [&](auto zero) {
    using T = decltype(zero);
    forward(layout, data<T>(x), data<float>(shift), stats.mutable_data_ptr<float>());
  });
  return stats;
}

Tensor batch_moments_backward(const Tensor& x, const Tensor& shift, const OptionalTensor& dsum,
                              const OptionalTensor& dsum_sq) {
  const Layout layout = layout_of(x);
  Tensor dx = torch::stable::empty_like(x);
  const auto dsums = channel_gradient(dsum, layout.channels, 1.f),
             dsquares = channel_gradient(dsum_sq, layout.channels, 2.f);
  dispatch_float(x, [&](auto zero) {
    using T = decltype(zero);
    backward(layout, data<T>(x), data<float>(shift), dsums, dsquares, dx.mutable_data_ptr<T>());
  });
  return dx;
}

}  // namespace dfkd::cpu
