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
DFKD_INLINE F32 clamp(F32 value, Range range) { return min(max(value, splat(range.low)), splat(range.high)); }
DFKD_INLINE F32 gate(F32 gradient, F32 pre, Range range) {
  return (pre <= range.low) | (pre >= range.high) ? F32{} : gradient;
}

// n elements from i on; returns d, zero beyond them.
template <typename T, bool kResidual>
DFKD_INLINE F32 forward_vector(const ForwardIO<T>& io, int64_t i, int64_t n, const AffineVector& at, Range range) {
  const F32 d = load(io.x + i, n) - at.shift;
  F32 pre = d * at.scale + at.bias;
  if constexpr (kResidual) pre += load(io.residual + i, n);
  store(io.y + i, clamp(pre, range), n);
  return keep_first(d, n);
}

// kFromY: the output decides what the activation let through, since its input is not known without the residual.
template <typename T, bool kFromY, bool kResidual>
DFKD_INLINE void backward_vector(const BackwardIO<T>& io, int64_t i, int64_t n, const AffineVector& at, F32 dsum,
                                 F32 dsquare, Range range) {
  const F32 d = load(io.x + i, n) - at.shift;
  const F32 pre = kFromY ? load(io.y + i, n) : d * at.scale + at.bias;
  const F32 g = gate(load(io.dy + i, n), pre, range);
  store(io.dx + i, g * at.scale + (dsum + d * dsquare), n);
  if constexpr (kResidual) store(io.dresidual + i, g, n);
}

template <typename T, bool kResidual>
void forward_chunk(ForwardIO<T> io, Affine at, Range range, int64_t width, int64_t size, float* sum, float* square) {
  sum_columns(width, size, sum, square, [&](int64_t c) {
    return [&, columns = load(at, c)](int64_t i, auto n) {
      return forward_vector<T, kResidual>(io, i, n, columns, range);
    };
  });
}

template <typename T, bool kResidual>
void forward_plane(ForwardIO<T> io, Affine at, Range range, int64_t size, float* sum, float* square) {
  const AffineVector channel = splat(at);
  sum_plane(size, sum, square,
            [&](int64_t i, auto n) { return forward_vector<T, kResidual>(io, i, n, channel, range); });
}

template <typename T, bool kFromY, bool kResidual>
void backward_chunk(BackwardIO<T> io, Affine at, MomentGradient gradient, Range range, int64_t width, int64_t size) {
  each_column(width, size, [&](int64_t c) {
    return [&, columns = load(at, c), dsum = load(gradient.sum + c), dsquare = load(gradient.square + c)](
               int64_t i, auto n) { backward_vector<T, kFromY, kResidual>(io, i, n, columns, dsum, dsquare, range); };
  });
}

template <typename T, bool kFromY, bool kResidual>
void backward_plane(BackwardIO<T> io, Affine at, MomentGradient gradient, Range range, int64_t size) {
  const AffineVector channel = splat(at);
  const F32 dsum = splat(*gradient.sum), dsquare = splat(*gradient.square);
  each_vector(0, size, [&](int64_t i, auto n) {
    backward_vector<T, kFromY, kResidual>(io, i, n, channel, dsum, dsquare, range);
  });
}

}  // namespace dfkd::cpu::DFKD_ISA
