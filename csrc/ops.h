// The operators of `dfkd_native`, one function per device. library.cpp has checked the arguments before it calls one.
#pragma once

#include <optional>
#include <tuple>
#include <vector>

#include <torch/csrc/stable/tensor.h>

namespace dfkd {

using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

namespace cpu {
std::tuple<Tensor, Tensor> bn_act_moments_forward(const Tensor& x, const Tensor& shift, const Tensor& scale,
                                                  const Tensor& bias, const OptionalTensor& residual, int64_t act);
std::tuple<Tensor, Tensor> bn_act_moments_backward(const Tensor& dy, const Tensor& x, const Tensor& shift,
                                                   const Tensor& scale, const Tensor& bias, const OptionalTensor& y,
                                                   const OptionalTensor& dsum, const OptionalTensor& dsum_sq,
                                                   int64_t act, bool want_dresidual);
Tensor batch_moments_forward(const Tensor& x, const Tensor& shift);
Tensor batch_moments_backward(const Tensor& x, const Tensor& shift, const OptionalTensor& dsum,
                              const OptionalTensor& dsum_sq);
}  // namespace cpu
}  // namespace dfkd
