// What the vector code of bn_act_train and its caller share.
#pragma once

#include <cstdint>

#include "bn_act_moments.h"  // ForwardIO, BackwardIO

namespace dfkd::cpu {

// What normalises, one value per column, or one in all for a plane: y = act((x - mean) * scale + bias).
struct Normal {
  const float *mean, *scale, *bias;

  Normal from(int64_t c) const { return {mean + c, scale + c, bias + c}; }
};

// dx = g * scale + (at_zero + (x - mean) * slope): what all values of a channel do to one through its two moments.
struct Feedback {
  const float *at_zero, *slope;

  Feedback from(int64_t c) const { return {at_zero + c, slope + c}; }
};

}  // namespace dfkd::cpu
