// The operators of `dfkd_native`: schemas and argument checks. What each computes: kernels/dfkd_kernels/NATIVE.md.
#include <torch/csrc/stable/library.h>

#include "checks.h"
#include "ops.h"

namespace dfkd {
namespace {

std::tuple<Tensor, Tensor> bn_act_moments_forward(const Tensor& x, const Tensor& shift, const Tensor& scale,
                                                  const Tensor& bias, const OptionalTensor& residual, int64_t act) {
  check_activation("x", x);
  check_channels("shift", shift, x);
  check_channels("scale", scale, x);
  check_channels("bias", bias, x);
  check_same("residual", residual, x);
  check_range("act", act, 0, 2);
  return cpu::bn_act_moments_forward(x, shift, scale, bias, residual, act);
}

std::tuple<Tensor, Tensor> bn_act_moments_backward(const Tensor& dy, const Tensor& x, const Tensor& shift,
                                                   const Tensor& scale, const Tensor& bias, const OptionalTensor& y,
                                                   const OptionalTensor& dsum, const OptionalTensor& dsum_sq,
                                                   int64_t act, bool want_dresidual) {
  check_activation("x", x);
  check_same("dy", dy, x);
  check_same("y", y, x);
  check_channels("shift", shift, x);
  check_channels("scale", scale, x);
  check_channels("bias", bias, x);
  check_channels("dsum", dsum, x);
  check_channels("dsum_sq", dsum_sq, x);
  check_range("act", act, 0, 2);
  return cpu::bn_act_moments_backward(dy, x, shift, scale, bias, y, dsum, dsum_sq, act, want_dresidual);
}

Tensor batch_moments_forward(const Tensor& x, const Tensor& shift) {
  check_activation("x", x);
  check_channels("shift", shift, x);
  return cpu::batch_moments_forward(x, shift);
}

Tensor batch_moments_backward(const Tensor& x, const Tensor& shift, const OptionalTensor& dsum,
                              const OptionalTensor& dsum_sq) {
  check_activation("x", x);
  check_channels("shift", shift, x);
  check_channels("dsum", dsum, x);
  check_channels("dsum_sq", dsum_sq, x);
  return cpu::batch_moments_backward(x, shift, dsum, dsum_sq);
}

}  // namespace
}  // namespace dfkd

STABLE_TORCH_LIBRARY(dfkd_native, m) {
  m.def(
      "bn_act_moments_forward(Tensor x, Tensor shift, Tensor scale, Tensor bias, Tensor? residual, int act)"
      " -> (Tensor y, Tensor stats)");
  m.def(
      "bn_act_moments_backward(Tensor dy, Tensor x, Tensor shift, Tensor scale, Tensor bias, Tensor? y, Tensor? dsum,"
      " Tensor? dsum_sq, int act, bool want_dresidual) -> (Tensor dx, Tensor dresidual)");
  m.def("batch_moments_forward(Tensor x, Tensor shift) -> Tensor stats");
  m.def("batch_moments_backward(Tensor x, Tensor shift, Tensor? dsum, Tensor? dsum_sq) -> Tensor dx");
}

STABLE_TORCH_LIBRARY_IMPL(dfkd_native, CPU, m) {
  m.impl("bn_act_moments_forward", TORCH_BOX(&dfkd::bn_act_moments_forward));
  m.impl("bn_act_moments_backward", TORCH_BOX(&dfkd::bn_act_moments_backward));
  m.impl("batch_moments_forward", TORCH_BOX(&dfkd::batch_moments_forward));
  m.impl("batch_moments_backward", TORCH_BOX(&dfkd::batch_moments_backward));
}
