// What the vector code of bn_act_moments and its caller share.
#pragma once

#include <cstdint>

namespace dfkd::cpu {

// The activation: values are clamped to it, gradients pass strictly inside it.
struct Range {
  float low, high;
};

// BatchNorm's constants: one value per column, or one in all for a plane.
struct Affine {
  const float *shift, *scale, *bias;

  Affine from(int64_t c) const { return {shift + c, scale + c, bias + c}; }
};

// Gradients of the two moments, likewise; `square` carries the factor 2 of d(d * d).
struct MomentGradient {
  const float *sum, *square;

  MomentGradient from(int64_t c) const { return {sum + c, square + c}; }
};

template <typename T>
struct ForwardIO {
  const T *x, *residual;
  T* y;

  ForwardIO from(int64_t i) const { return {x + i, residual ? residual + i : nullptr, y + i}; }
};

template <typename T>
struct BackwardIO {
  const T *dy, *x, *y;
  T *dx, *dresidual;

  BackwardIO from(int64_t i) const { return {dy + i, x + i, y ? y + i : nullptr, dx + i, dresidual + i}; }
};

}  // namespace dfkd::cpu
