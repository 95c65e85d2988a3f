// The vector code of bn_act_moments.cpp, where the formulas stand. Textual, see each_isa.h.
#include "walk.h"

namespace dfkd::cpu::DFKD_ISA {

struct AffineVector {
  F32 shift, scale, bias;
};

DFKD_INLINE AffineVector load(Affine at, int64_t c) {
  return {load(at.shift + c), load(at.scale + c), load(at.bias + c)};
}
DFKD_INLINE AffineVector splat(Affine at) { return {splat(*at.shift), splat(*at.scale), splat(*at.bias)}; }

// The comparisons are false for NaN, which therefore passes, as in torch.
DFKD_INLINE F32 clamp(F32 value, float low, float high) { return min(max(value, splat(low)), splat(high)); }
DFKD_INLINE F32 gate(F32 gradient, F32 pre, float low, float high) {
  return (pre <= low) | (pre >= high) ? F32{} : gradient;
}

DFKD_INLINE F32 sigmoid(F32 value) { return 1.f / (exp(min(-value, splat(88.f))) + 1.f); }

// exp(-value^2 / 2), and from it the normal distribution's integral up to `value`: Abramowitz and Stegun 7.1.26, whose
// error is below 1e-7.
DFKD_INLINE F32 bell(F32 value) { return exp(value * value * -0.5f); }
DFKD_INLINE F32 normal_integral(F32 value, F32 bell) {
  const F32 t = 1.f / ((value < 0.f ? -value : value) * 0.23164189f + 1.f);  // 0.3275911 / sqrt(2)
  F32 series = t * 1.061405429f - 1.453152027f;
  series = series * t + 1.421413741f;
  series = series * t - 0.284496736f;
  series = (series * t + 0.254829592f) * t;
  const F32 tail = series * bell * 0.5f;
  return value < 0.f ? tail : 1.f - tail;
}

// gelu's tanh form is value * sigmoid(argument).
DFKD_INLINE F32 tanh_argument(F32 value) { return value * (value * value * 0.07135481f + 1.5957691f); }
DFKD_INLINE F32 tanh_argument_slope(F32 value) { return value * value * 0.21406444f + 1.5957691f; }

// One copy of each of the next two: inlined, they would make up most of the binary.
__attribute__((noinline)) F32 apply(F32 pre, const Activation& to) {
  switch (to.act) {
    case Act::silu:
      return pre * sigmoid(pre);
    case Act::hardswish:
      return pre * clamp(pre + 3.f, 0.f, 6.f) * (1.f / 6.f);
    case Act::hardsigmoid:
      return clamp(pre + 3.f, 0.f, 6.f) * (1.f / 6.f);
    case Act::gelu:
      return pre * normal_integral(pre, bell(pre));
    case Act::gelu_tanh:
      return pre * sigmoid(tanh_argument(pre));
    default:
      return pre > 0.f ? pre : pre * to.slope;
  }
}

// The gradient that reaches the activation's input.
__attribute__((noinline)) F32 gradient_of(F32 gradient, F32 pre, const Activation& to) {
  switch (to.act) {
    case Act::silu: {
      const F32 s = sigmoid(pre);
      return gradient * s * (pre * (1.f - s) + 1.f);
    }
    case Act::hardswish:
      return pre <= -3.f ? F32{} : (pre >= 3.f ? gradient : gradient * (pre * (1.f / 3.f) + 0.5f));
    case Act::hardsigmoid:
      return gate(gradient, pre, -3.f, 3.f) * (1.f / 6.f);
    case Act::gelu: {
      const F32 b = bell(pre);
      return gradient * (normal_integral(pre, b) + pre * b * 0.3989423f);
    }
    case Act::gelu_tanh: {
      const F32 s = sigmoid(tanh_argument(pre));
      return gradient * s * (pre * (1.f - s) * tanh_argument_slope(pre) + 1.f);
    }
    default:
      return pre > 0.f ? gradient : gradient * to.slope;
  }
}

// n elements from i on; returns d, zero beyond them.
template <typename T, bool kClamps, bool kResidual>
DFKD_INLINE F32 forward_vector(const ForwardIO<T>& io, int64_t i, int64_t n, const AffineVector& at,
                               const Activation& to) {
  const F32 d = load(io.x + i, n) - at.shift;
  F32 pre = d * at.scale + at.bias;
  if constexpr (kResidual) pre += load(io.residual + i, n);
  if constexpr (kClamps) {
    store(io.y + i, clamp(pre, to.low, to.high), n);
  } else {
    store(io.y + i, apply(pre, to), n);
  }
  return keep_first(d, n);
}

// kKept: there was a residual. The kept output decides what the activation let through, or the kept residual completes
// its input.
template <typename T, bool kClamps, bool kKept, bool kResidual>
DFKD_INLINE void backward_vector(const BackwardIO<T>& io, int64_t i, int64_t n, const AffineVector& at, F32 dsum,
                                 F32 dsquare, const Activation& to) {
  const F32 d = load(io.x + i, n) - at.shift;
  F32 pre = d * at.scale + at.bias;
  if constexpr (kKept) {
    const F32 kept = load(io.kept + i, n);
    pre = kClamps || to.keeps_output() ? kept : pre + kept;
  }
  F32 g = load(io.dy + i, n);
  if constexpr (kClamps) {
    g = gate(g, pre, to.low, to.high);
  } else {
    g = gradient_of(g, pre, to);
  }
  store(io.dx + i, g * at.scale + (dsum + d * dsquare), n);
  if constexpr (kResidual) store(io.dresidual + i, g, n);
}

template <typename T, bool kClamps, bool kResidual>
void forward_chunk(ForwardIO<T> io, Affine at, Activation to, int64_t width, int64_t size, float* sum, float* square) {
  sum_columns(width, size, sum, square, [&](int64_t c) {
    return [&, columns = load(at, c)](int64_t i, auto n) {
      return forward_vector<T, kClamps, kResidual>(io, i, n, columns, to);
    };
  });
}

template <typename T, bool kClamps, bool kResidual>
void forward_plane(ForwardIO<T> io, Affine at, Activation to, int64_t size, float* sum, float* square) {
  const AffineVector channel = splat(at);
  sum_plane(size, sum, square,
            [&](int64_t i, auto n) { return forward_vector<T, kClamps, kResidual>(io, i, n, channel, to); });
}

template <typename T, bool kClamps, bool kKept, bool kResidual>
void backward_chunk(BackwardIO<T> io, Affine at, MomentGradient gradient, Activation to, int64_t width, int64_t size) {
  each_column(width, size, [&](int64_t c) {
    return [&, columns = load(at, c), dsum = load(gradient.sum + c), dsquare = load(gradient.square + c)](
               int64_t i, auto n) {
      backward_vector<T, kClamps, kKept, kResidual>(io, i, n, columns, dsum, dsquare, to);
    };
  });
}

template <typename T, bool kClamps, bool kKept, bool kResidual>
void backward_plane(BackwardIO<T> io, Affine at, MomentGradient gradient, Activation to, int64_t size) {
  const AffineVector channel = splat(at);
  const F32 dsum = splat(*gradient.sum), dsquare = splat(*gradient.square);
  each_vector(0, size, [&](int64_t i, auto n) {
    backward_vector<T, kClamps, kKept, kResidual>(io, i, n, channel, dsum, dsquare, to);
  });
}

}  // namespace dfkd::cpu::DFKD_ISA
