// The operators of `dfkd_native`, one function per device. library.cpp has checked the arguments before it calls one;
// what each computes: kernels/dfkd_kernels/NATIVE.md.
#pragma once

#include <cstdint>
#include <optional>
#include <tuple>
#include <vector>

#include <torch/csrc/stable/tensor.h>

namespace dfkd {

using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;
using TensorList = std::vector<Tensor>;

namespace cpu {
std::tuple<Tensor, Tensor> bn_act_moments_forward(const Tensor& x, const Tensor& shift, const Tensor& scale,
                                                  const Tensor& bias, const OptionalTensor& residual, int64_t act,
                                                  double slope);
std::tuple<Tensor, Tensor> bn_act_moments_backward(const Tensor& dy, const Tensor& x, const Tensor& shift,
                                                   const Tensor& scale, const Tensor& bias, const OptionalTensor& kept,
                                                   const OptionalTensor& dsum, const OptionalTensor& dsum_sq,
                                                   int64_t act, double slope, bool want_dresidual);
Tensor batch_moments_forward(const Tensor& x, const Tensor& shift);
Tensor batch_moments_backward(const Tensor& x, const Tensor& shift, const OptionalTensor& dsum,
                              const OptionalTensor& dsum_sq);
std::tuple<Tensor, Tensor> bn_act_train_forward(const Tensor& x, const OptionalTensor& weight,
                                                const OptionalTensor& bias, const OptionalTensor& residual, double eps,
                                                double slope);
std::tuple<Tensor, Tensor, Tensor> bn_act_train_backward(const Tensor& dy, const Tensor& x, const OptionalTensor& y,
                                                         const OptionalTensor& weight, const OptionalTensor& bias,
                                                         const Tensor& stats, double slope, bool want_dresidual);
std::tuple<Tensor, Tensor> cam_margin_forward(const Tensor& features, const Tensor& class_weights, const Tensor& labels,
                                              const OptionalTensor& target_map, double target);
void cam_margin_backward(const Tensor& grad_margins, const Tensor& mask, const Tensor& class_weights,
                         const Tensor& labels, const Tensor& grad_features);
std::tuple<Tensor, Tensor, Tensor> kd_kl_forward(const Tensor& student, const Tensor& teacher, double temperature);
std::tuple<Tensor, Tensor> kd_kl_backward(const Tensor& grad_kl, const Tensor& student, const Tensor& teacher,
                                          const Tensor& lse_student, const Tensor& lse_teacher, const Tensor& kl,
                                          double temperature, bool need_student, bool need_teacher);
std::tuple<Tensor, Tensor, Tensor> kd_kl_priority_forward(const Tensor& student, const Tensor& teacher,
                                                          const Tensor& indices, const Tensor& is_weights,
                                                          const Tensor& leaves, const Tensor& sums,
                                                          const Tensor& counts, int64_t capacity, double temperature,
                                                          double alpha, double eps);
}  // namespace cpu

// Operators that also have a CUDA form.
#define DFKD_DECLARE_DEVICE_OPERATORS                                                                              \
  std::tuple<Tensor, Tensor> bn_stat_loss(const TensorList& sum, const TensorList& sum_sq, const TensorList& shift, \
                                         const TensorList& count, const TensorList& target_mean,                   \
                                         const TensorList& target_var, const TensorList& ema_mean,                 \
                                         const TensorList& ema_var, const OptionalTensor& momentum,                \
                                         const OptionalTensor& weights, int64_t kind, bool unbiased);              \
  void gather_augment(const Tensor& pool, const Tensor& indices, const Tensor& shifts, const Tensor& flips,        \
                      const Tensor& table, int64_t pad, const Tensor& out);                                        \
  void priority_update(const Tensor& leaves, const Tensor& sums, const Tensor& counts, int64_t capacity,           \
                       const Tensor& indices, const Tensor& deltas, double alpha, double eps);                     \
  void priority_clear(const Tensor& leaves, const Tensor& sums, const Tensor& counts, int64_t capacity,            \
                      const Tensor& indices);                                                                      \
  std::tuple<Tensor, Tensor> priority_sample(const Tensor& leaves, const Tensor& sums, const Tensor& counts,       \
                                             int64_t capacity, const Tensor& uniforms, double beta);

namespace cpu {
DFKD_DECLARE_DEVICE_OPERATORS
}
namespace cuda {
DFKD_DECLARE_DEVICE_OPERATORS
}

}  // namespace dfkd
