// What the vector code of bn_act_moments and its caller share.
#pragma once

#include <cstdint>

namespace dfkd::cpu {

// What `act` means in the schemas.
enum class Act : int64_t { none, relu, relu6, silu, hardswish, hardsigmoid, gelu, gelu_tanh, leaky_relu };

// The activation. Up to relu6 values are clamped to low and high, and gradients pass strictly between them.
struct Activation {
  Act act;
  float low, high, slope;

  bool clamps() const { return act <= Act::relu6; }
  // Whether its derivative is known from its output: backward then keeps that, and else the residual.
  bool keeps_output() const { return clamps() || act == Act::leaky_relu; }
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
  const T *dy, *x, *kept;
  T *dx, *dresidual;

  BackwardIO from(int64_t i) const { return {dy + i, x + i, kept ? kept + i : nullptr, dx + i, dresidual + i}; }
};

}  // namespace dfkd::cpu
