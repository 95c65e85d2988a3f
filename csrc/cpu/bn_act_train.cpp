// Train-mode BatchNorm, residual add and activation: two passes forward, two backward.
//
//   y = act((x - mean) * scale + bias [+ residual]),  scale = weight * rstd, with the batch's moments of each channel
//   g = dy * act',  dx = scale * (g - mean(g) - (x - mean) * rstd^2 * mean(g * (x - mean))),  dresidual = g
//   dweight = rstd * sum(g * (x - mean)),  dbias = sum(g)
//
// act(v) = v above zero, slope * v elsewhere; slope 1 is no activation, 0 is relu.
#include "bn_act_train.h"  // before each_isa.h: what it defines must run on every processor

#define DFKD_KERNELS "kernels/bn_act_train.h"
#include "each_isa.h"

#include "channel_work.h"

namespace dfkd::cpu {
namespace {

constexpr int64_t kSamples = 8;

// A value near each channel's mean, about which the sums keep their digits: the mean of a few of its values.
template <typename T>
std::vector<float> sampled_means(const Layout& layout, const T* x) {
  const int64_t rows = layout.rows(), taken = std::min(rows, kSamples);
  std::vector<float> means(layout.channels);
  for (int64_t c = 0; c < layout.channels; ++c) {
    float total = 0.f;
    for (int64_t i = 0; i < taken; ++i) {
      const int64_t row = i * rows / taken;
      const int64_t plane = row / layout.inner * layout.channels + c;
      total += static_cast<float>(
          x[layout.channels_last ? row * layout.channels + c : plane * layout.inner + row % layout.inner]);
    }
    const float mean = total / static_cast<float>(taken);
    means[c] = std::isfinite(mean) ? mean : 0.f;
  }
  return means;
}

// One call's constants of each channel. `stats` is mean, rstd and the unbiased variance, one row each.
struct Channels {
  const float *weight, *bias, *stats;
  int64_t size, count;
  std::vector<float> scale, offset;

  Channels(const Layout& layout, const OptionalTensor& weight, const OptionalTensor& bias, const float* stats)
      : weight(data<float>(weight)), bias(data<float>(bias)), stats(stats), size(layout.channels), count(layout.rows()),
        scale(size), offset(size) {}

  Normal normal() const { return {stats, scale.data(), offset.data()}; }

  void derive() {
    for (int64_t c = 0; c < size; ++c) {
      scale[c] = stats[size + c] * (weight ? weight[c] : 1.f);
      offset[c] = bias ? bias[c] : 0.f;
    }
  }
};

// From the sums of the shifted values and of their squares to `stats`.
void write_stats(const Channels& at, const MomentSums& sums, const std::vector<float>& shift, double eps, float* stats) {
  std::vector<float> moments(2 * at.size + 1);
  sums.write(moments.data(), at.size, at.count);
  const double count = static_cast<double>(at.count);
  for (int64_t c = 0; c < at.size; ++c) {
    const double delta = moments[c] / count, var = moments[at.size + c] / count - delta * delta;
    const double least = var < 0.0 ? 0.0 : var;  // a NaN stays one
    stats[c] = static_cast<float>(shift[c] + delta);
    stats[at.size + c] = static_cast<float>(1.0 / std::sqrt(least + eps));
    stats[2 * at.size + c] = static_cast<float>(least * (count / (count - 1.0)));
  }
}

template <typename T, bool kResidual, bool kAct>
void forward(const Layout& layout, ForwardIO<T> io, Channels& at, double eps, float slope, float* stats) {
  const auto shift = sampled_means(layout, io.x);
  if (!layout.channels_last) {
    const auto moments = DFKD_PICK(moments_plane<T>);
    MomentSums sums(layout.batch, layout.channels);
    for_planes(layout, [&](int64_t plane, int64_t c, int64_t first) {
      const int64_t n = plane / layout.channels;
      moments(io.x + first, shift[c], layout.inner, sums.sum(n) + c, sums.square(n) + c);
    });
    write_stats(at, sums, shift, eps, stats);
    at.derive();
    const auto normalize = DFKD_PICK(normalize_plane<T, kResidual, kAct>);
    return for_planes(layout, [&](int64_t, int64_t c, int64_t first) {
      normalize(io.from(first), at.normal().from(c), slope, layout.inner);
    });
  }
  const RowPlan plan(layout);
  const auto shifts = plan.columns(shift.data());
  const auto moments = DFKD_PICK(moments_chunk<T>);
  MomentSums sums(plan.chunks, plan.width);
  plan.for_chunks([&](int64_t chunk, int64_t first, int64_t size) {
    moments(io.x + first, shifts.data(), plan.width, size, sums.sum(chunk), sums.square(chunk));
  });
  write_stats(at, sums, shift, eps, stats);
  at.derive();
  const auto mean = plan.columns(stats), scale = plan.columns(at.scale.data()), offset = plan.columns(at.offset.data());
  const Normal columns{mean.data(), scale.data(), offset.data()};
  const auto normalize = DFKD_PICK(normalize_chunk<T, kResidual, kAct>);
  plan.for_chunks([&](int64_t, int64_t first, int64_t size) {
    normalize(io.from(first), columns, slope, plan.width, size);
  });
}

// What the sums of g and g * (x - mean) say: dweight, then dbias, and what each value of a channel gets from all.
struct Gradients {
  std::vector<float> at_zero, per_d;

  Gradients(const Channels& at, const MomentSums& sums, float* dparams) : at_zero(at.size), per_d(at.size) {
    std::vector<float> totals(2 * at.size + 1);
    sums.write(totals.data(), at.size, at.count);
    for (int64_t c = 0; c < at.size; ++c) {
      const double rstd = at.stats[at.size + c], factor = -static_cast<double>(at.scale[c]) / at.count;
      dparams[c] = static_cast<float>(rstd * totals[at.size + c]);
      dparams[at.size + c] = totals[c];
      at_zero[c] = static_cast<float>(factor * totals[c]);
      per_d[c] = static_cast<float>(factor * rstd * rstd * totals[at.size + c]);
    }
  }
};

template <typename T, bool kFromY, bool kResidual, bool kAct>
void backward(const Layout& layout, BackwardIO<T> io, const Channels& at, float slope, float* dparams) {
  BackwardIO<T> second = io;
  // what the first pass writes for the residual is g: the second need not read dy and y again
  if constexpr (kResidual) second.dy = io.dresidual;
  constexpr bool from_y = kFromY && !kResidual, act = kAct && !kResidual;
  if (!layout.channels_last) {
    const auto reduce = DFKD_PICK(reduce_plane<T, kFromY, kResidual, kAct>);
    MomentSums sums(layout.batch, layout.channels);
    for_planes(layout, [&](int64_t plane, int64_t c, int64_t first) {
      const int64_t n = plane / layout.channels;
      reduce(io.from(first), at.normal().from(c), slope, layout.inner, sums.sum(n) + c, sums.square(n) + c);
    });
    const Gradients found(at, sums, dparams);
    const Feedback back{found.at_zero.data(), found.per_d.data()};
    const auto gradient = DFKD_PICK(gradient_plane<T, from_y, act>);
    return for_planes(layout, [&](int64_t, int64_t c, int64_t first) {
      gradient(second.from(first), at.normal().from(c), back.from(c), slope, layout.inner);
    });
  }
  const RowPlan plan(layout);
  const auto mean = plan.columns(at.stats), scale = plan.columns(at.scale.data());
  const auto offset = plan.columns(at.offset.data());
  const Normal columns{mean.data(), scale.data(), offset.data()};
  const auto reduce = DFKD_PICK(reduce_chunk<T, kFromY, kResidual, kAct>);
  MomentSums sums(plan.chunks, plan.width);
  plan.for_chunks([&](int64_t chunk, int64_t first, int64_t size) {
    reduce(io.from(first), columns, slope, plan.width, size, sums.sum(chunk), sums.square(chunk));
  });
  const Gradients found(at, sums, dparams);
  const auto at_zero = plan.columns(found.at_zero.data()), per_d = plan.columns(found.per_d.data());
  const auto gradient = DFKD_PICK(gradient_chunk<T, from_y, act>);
  plan.for_chunks([&](int64_t, int64_t first, int64_t size) {
    gradient(second.from(first), columns, {at_zero.data(), per_d.data()}, slope, plan.width, size);
  });
}

}  // namespace

std::tuple<Tensor, Tensor> bn_act_train_forward(const Tensor& x, const OptionalTensor& weight,
                                                const OptionalTensor& bias, const OptionalTensor& residual, double eps,
                                                double slope) {
  const Layout layout = layout_of(x);
  Tensor y = torch::stable::empty_like(x);
  Tensor stats = torch::stable::new_empty(x, {3, layout.channels}, torch::headeronly::ScalarType::Float);
  float* const out = stats.mutable_data_ptr<float>();
  Channels at(layout, weight, bias, out);
  dispatch_float(x, [&](auto zero) {
    using T = decltype(zero);
    const ForwardIO<T> io{data<T>(x), data<T>(residual), y.mutable_data_ptr<T>()};
    dispatch_bool(slope != 1.0, [&](auto act) {
      dispatch_bool(residual.has_value(), [&](auto has_residual) {
        forward<T, has_residual, act>(layout, io, at, eps, static_cast<float>(slope), out);
      });
    });
  });
  return {y, stats};
}

std::tuple<Tensor, Tensor, Tensor> bn_act_train_backward(const Tensor& dy, const Tensor& x, const OptionalTensor& y,
                                                         const OptionalTensor& weight, const OptionalTensor& bias,
                                                         const Tensor& stats, double slope, bool want_dresidual) {
  const Layout layout = layout_of(x);
  Tensor dx = torch::stable::empty_like(x);
  Tensor dresidual = want_dresidual ? torch::stable::empty_like(x) : torch::stable::new_empty(x, {0});
  Tensor dparams = torch::stable::new_empty(stats, {2, layout.channels});
  Channels at(layout, weight, bias, data<float>(stats));
  at.derive();
  dispatch_float(x, [&](auto zero) {
    using T = decltype(zero);
    const BackwardIO<T> io{data<T>(dy), data<T>(x), data<T>(y), dx.mutable_data_ptr<T>(),
                           dresidual.mutable_data_ptr<T>()};
    dispatch_bool(slope != 1.0, [&](auto act) {
      dispatch_bool(y.has_value(), [&](auto from_y) {
        dispatch_bool(want_dresidual, [&](auto residual) {
          backward<T, from_y, residual, act>(layout, io, at, static_cast<float>(slope),
                                             dparams.mutable_data_ptr<float>());
        });
      });
    });
  });
  return {dx, dresidual, dparams};
}

}  // namespace dfkd::cpu
