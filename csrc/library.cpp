// The operators of `dfkd_native`: schemas and argument checks. What each computes: kernels/dfkd_kernels/NATIVE.md.
#include <torch/csrc/stable/library.h>

#include "checks.h"
#include "ops.h"

// cuda:: or cpu::, by the device of `tensor`.
#ifdef DFKD_CUDA
#define DFKD_ON_DEVICE(tensor, call) ((tensor).is_cuda() ? cuda::call : cpu::call)
#else
#define DFKD_ON_DEVICE(tensor, call) (cpu::call)
#endif

namespace dfkd {
namespace {

std::tuple<Tensor, Tensor> bn_act_moments_forward(const Tensor& x, const Tensor& shift, const Tensor& scale,
                                                  const Tensor& bias, const OptionalTensor& residual, int64_t act,
                                                  double slope) {
  check_activation("x", x);
  check_channels("shift", shift, x);
  check_channels("scale", scale, x);
  check_channels("bias", bias, x);
  check_same("residual", residual, x);
  check_range("act", act, 0, 8);
  return cpu::bn_act_moments_forward(x, shift, scale, bias, residual, act, slope);
}

std::tuple<Tensor, Tensor> bn_act_moments_backward(const Tensor& dy, const Tensor& x, const Tensor& shift,
                                                   const Tensor& scale, const Tensor& bias, const OptionalTensor& kept,
                                                   const OptionalTensor& dsum, const OptionalTensor& dsum_sq,
                                                   int64_t act, double slope, bool want_dresidual) {
  check_activation("x", x);
  check_same("dy", dy, x);
  check_same("kept", kept, x);
  check_channels("shift", shift, x);
  check_channels("scale", scale, x);
  check_channels("bias", bias, x);
  check_channels("dsum", dsum, x);
  check_channels("dsum_sq", dsum_sq, x);
  check_range("act", act, 0, 8);
  return cpu::bn_act_moments_backward(dy, x, shift, scale, bias, kept, dsum, dsum_sq, act, slope, want_dresidual);
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

std::tuple<Tensor, Tensor> bn_act_train_forward(const Tensor& x, const OptionalTensor& weight,
                                                const OptionalTensor& bias, const OptionalTensor& residual, double eps,
                                                double slope) {
  check_activation("x", x);
  check_channels("weight", weight, x);
  check_channels("bias", bias, x);
  check_same("residual", residual, x);
  STD_TORCH_CHECK(x.numel() > x.size(1), "x: expected more than one value in each channel");
  return cpu::bn_act_train_forward(x, weight, bias, residual, eps, slope);
}

std::tuple<Tensor, Tensor, Tensor> bn_act_train_backward(const Tensor& dy, const Tensor& x, const OptionalTensor& y,
                                                         const OptionalTensor& weight, const OptionalTensor& bias,
                                                         const Tensor& stats, double slope, bool want_dresidual) {
  check_activation("x", x);
  check_same("dy", dy, x);
  check_same("y", y, x);
  check_channels("weight", weight, x);
  check_channels("bias", bias, x);
  check_shape("stats", stats, ScalarType::Float, {3, x.size(1)}, x);
  return cpu::bn_act_train_backward(dy, x, y, weight, bias, stats, slope, want_dresidual);
}

std::tuple<Tensor, Tensor> bn_stat_loss(const TensorList& sum, const TensorList& sum_sq, const TensorList& shift,
                                       const TensorList& count, const TensorList& target_mean,
                                       const TensorList& target_var, const TensorList& ema_mean,
                                       const TensorList& ema_var, const OptionalTensor& momentum,
                                       const OptionalTensor& weights, int64_t kind, bool unbiased) {
  STD_TORCH_CHECK(!sum.empty(), "sum: expected one entry per layer");
  check_layers("sum", sum, sum);
  check_layers("sum_sq", sum_sq, sum);
  check_layers("shift", shift, sum);
  check_layers("target_mean", target_mean, sum);
  check_layers("target_var", target_var, sum);
  STD_TORCH_CHECK(count.size() == sum.size(), "count: ", count.size(), " entries, expected ", sum.size());
  for (const Tensor& layer : count) check_shape("count", layer, ScalarType::Float, {}, sum[0]);
  if (momentum) {
    check_shape("momentum", *momentum, ScalarType::Float, {}, sum[0]);
    check_layers("ema_mean", ema_mean, sum);
    check_layers("ema_var", ema_var, sum);
  }
  if (weights) check_shape("weights", *weights, ScalarType::Float, {static_cast<int64_t>(sum.size())}, sum[0]);
  check_range("kind", kind, 0, 1);
  return DFKD_ON_DEVICE(sum[0], bn_stat_loss(sum, sum_sq, shift, count, target_mean, target_var, ema_mean, ema_var,
                                            momentum, weights, kind, unbiased));
}

std::tuple<Tensor, Tensor> cam_margin_forward(const Tensor& features, const Tensor& class_weights, const Tensor& labels,
                                              const OptionalTensor& target_map, double target) {
  check_activation("features", features);
  check_cam(features, class_weights, labels);
  if (target_map) {
    check_shape("target_map", *target_map, ScalarType::Float, {features.size(2), features.size(3)}, features);
  }
  return cpu::cam_margin_forward(features, class_weights, labels, target_map, target);
}

void cam_margin_backward(const Tensor& grad_margins, const Tensor& mask, const Tensor& class_weights,
                         const Tensor& labels, const Tensor& grad_features) {
  check_activation("grad_features", grad_features);
  check_cam(grad_features, class_weights, labels);
  const auto pixels = {grad_features.size(0), grad_features.size(2), grad_features.size(3)};
  check_shape("grad_margins", grad_margins, ScalarType::Float, pixels, grad_features);
  check_shape("mask", mask, ScalarType::Bool, pixels, grad_features);
  cpu::cam_margin_backward(grad_margins, mask, class_weights, labels, grad_features);
}

std::tuple<Tensor, Tensor, Tensor> kd_kl_forward(const Tensor& student, const Tensor& teacher, double temperature) {
  check_logits(student, teacher, temperature);
  return cpu::kd_kl_forward(student, teacher, temperature);
}

std::tuple<Tensor, Tensor> kd_kl_backward(const Tensor& grad_kl, const Tensor& student, const Tensor& teacher,
                                          const Tensor& lse_student, const Tensor& lse_teacher, const Tensor& kl,
                                          double temperature, bool need_student, bool need_teacher) {
  check_logits(student, teacher, temperature);
  check_vector("grad_kl", grad_kl, ScalarType::Float, student);
  check_vector("lse_student", lse_student, ScalarType::Float, student);
  check_vector("lse_teacher", lse_teacher, ScalarType::Float, student);
  check_vector("kl", kl, ScalarType::Float, student);
  return cpu::kd_kl_backward(grad_kl, student, teacher, lse_student, lse_teacher, kl, temperature, need_student,
                             need_teacher);
}

std::tuple<Tensor, Tensor, Tensor> kd_kl_priority_forward(const Tensor& student, const Tensor& teacher,
                                                          const Tensor& indices, const Tensor& is_weights,
                                                          const Tensor& leaves, const Tensor& sums,
                                                          const Tensor& counts, int64_t capacity, double temperature,
                                                          double alpha, double eps) {
  check_logits(student, teacher, temperature);
  check_vector("indices", indices, ScalarType::Long, student);
  check_vector("is_weights", is_weights, ScalarType::Float, student);
  check_tree(leaves, sums, counts, capacity);
  return cpu::kd_kl_priority_forward(student, teacher, indices, is_weights, leaves, sums, counts, capacity, temperature,
                                     alpha, eps);
}

void gather_augment(const Tensor& pool, const Tensor& indices, const Tensor& shifts, const Tensor& flips,
                    const Tensor& table, int64_t pad, const Tensor& out) {
  STD_TORCH_CHECK(pool.dim() == 4 && pool.numel() > 0 && pool.is_contiguous(),
                  "pool: expected a contiguous, non-empty tensor (P, H, W, C)");
  check_dtype("pool", pool, ScalarType::Byte);
  STD_TORCH_CHECK(indices.dim() == 1, "indices: expected shape (B,)");
  const int64_t batch = indices.size(0);
  check_shape("indices", indices, ScalarType::Long, {batch}, out);
  check_shape("shifts", shifts, ScalarType::Long, {batch, 2}, out);
  check_shape("flips", flips, ScalarType::Bool, {batch}, out);
  check_shape("table", table, ScalarType::Float, {256, pool.size(3)}, out);
  check_activation("out", out);
  check_sizes("out", out, {batch, pool.size(3), pool.size(1), pool.size(2)});
  STD_TORCH_CHECK(pad >= 0, "pad: expected 0 or more, got ", pad);
  if (!out.is_cuda()) check_device("pool", pool, out);
  DFKD_ON_DEVICE(out, gather_augment(pool, indices, shifts, flips, table, pad, out));
}

void priority_update(const Tensor& leaves, const Tensor& sums, const Tensor& counts, int64_t capacity,
                     const Tensor& indices, const Tensor& deltas, double alpha, double eps) {
  check_tree(leaves, sums, counts, capacity);
  check_shape("indices", indices, ScalarType::Long, {indices.numel()}, leaves);
  check_vector("deltas", deltas, ScalarType::Float, indices);
  DFKD_ON_DEVICE(leaves, priority_update(leaves, sums, counts, capacity, indices, deltas, alpha, eps));
}

void priority_clear(const Tensor& leaves, const Tensor& sums, const Tensor& counts, int64_t capacity,
                    const Tensor& indices) {
  check_tree(leaves, sums, counts, capacity);
  check_shape("indices", indices, ScalarType::Long, {indices.numel()}, leaves);
  DFKD_ON_DEVICE(leaves, priority_clear(leaves, sums, counts, capacity, indices));
}

std::tuple<Tensor, Tensor> priority_sample(const Tensor& leaves, const Tensor& sums, const Tensor& counts,
                                           int64_t capacity, const Tensor& uniforms, double beta) {
  check_tree(leaves, sums, counts, capacity);
  check_shape("uniforms", uniforms, ScalarType::Double, {uniforms.numel()}, leaves);
  return DFKD_ON_DEVICE(leaves, priority_sample(leaves, sums, counts, capacity, uniforms, beta));
}

void register_device_operators(torch::stable::detail::StableLibrary& m) {
  m.impl("bn_stat_loss", TORCH_BOX(&bn_stat_loss));
  m.impl("gather_augment", TORCH_BOX(&gather_augment));
  m.impl("priority_update", TORCH_BOX(&priority_update));
  m.impl("priority_clear", TORCH_BOX(&priority_clear));
  m.impl("priority_sample", TORCH_BOX(&priority_sample));
}

}  // namespace
}  // namespace dfkd

STABLE_TORCH_LIBRARY(dfkd_native, m) {
  m.def(
      "bn_act_moments_forward(Tensor x, Tensor shift, Tensor scale, Tensor bias, Tensor? residual, int act,"
      " float slope) -> (Tensor y, Tensor stats)");
  m.def(
      "bn_act_moments_backward(Tensor dy, Tensor x, Tensor shift, Tensor scale, Tensor bias, Tensor? kept,"
      " Tensor? dsum, Tensor? dsum_sq, int act, float slope, bool want_dresidual) -> (Tensor dx, Tensor dresidual)");
  m.def("batch_moments_forward(Tensor x, Tensor shift) -> Tensor stats");
  m.def("batch_moments_backward(Tensor x, Tensor shift, Tensor? dsum, Tensor? dsum_sq) -> Tensor dx");
  m.def(
      "bn_act_train_forward(Tensor x, Tensor? weight, Tensor? bias, Tensor? residual, float eps, float slope)"
      " -> (Tensor y, Tensor stats)");
  m.def(
      "bn_act_train_backward(Tensor dy, Tensor x, Tensor? y, Tensor? weight, Tensor? bias, Tensor stats, float slope,"
      " bool want_dresidual) -> (Tensor dx, Tensor dresidual, Tensor dparams)");
  m.def(
      "bn_stat_loss(Tensor[] sum, Tensor[] sum_sq, Tensor[] shift, Tensor[] count, Tensor[] target_mean,"
      " Tensor[] target_var, Tensor[] ema_mean, Tensor[] ema_var, Tensor? momentum, Tensor? weights, int kind,"
      " bool unbiased) -> (Tensor loss, Tensor coef)");
  m.def(
      "cam_margin_forward(Tensor features, Tensor class_weights, Tensor labels, Tensor? target_map, float target)"
      " -> (Tensor margins, Tensor mask)");
  m.def(
      "cam_margin_backward(Tensor grad_margins, Tensor mask, Tensor class_weights, Tensor labels,"
      " Tensor(a!) grad_features) -> ()");
  m.def(
      "kd_kl_forward(Tensor student, Tensor teacher, float temperature)"
      " -> (Tensor kl, Tensor lse_student, Tensor lse_teacher)");
  m.def(
      "kd_kl_backward(Tensor grad_kl, Tensor student, Tensor teacher, Tensor lse_student, Tensor lse_teacher,"
      " Tensor kl, float temperature, bool need_student, bool need_teacher)"
      " -> (Tensor grad_student, Tensor grad_teacher)");
  m.def(
      "kd_kl_priority_forward(Tensor student, Tensor teacher, Tensor indices, Tensor is_weights, Tensor(a!) leaves,"
      " Tensor(b!) sums, Tensor(c!) counts, int capacity, float temperature, float alpha, float eps)"
      " -> (Tensor kl, Tensor lse_student, Tensor lse_teacher)");
  m.def(
      "gather_augment(Tensor pool, Tensor indices, Tensor shifts, Tensor flips, Tensor table, int pad,"
      " Tensor(a!) out) -> ()");
  m.def(
      "priority_update(Tensor(a!) leaves, Tensor(b!) sums, Tensor(c!) counts, int capacity, Tensor indices,"
      " Tensor deltas, float alpha, float eps) -> ()");
  m.def("priority_clear(Tensor(a!) leaves, Tensor(b!) sums, Tensor(c!) counts, int capacity, Tensor indices) -> ()");
  m.def(
      "priority_sample(Tensor leaves, Tensor sums, Tensor counts, int capacity, Tensor uniforms, float beta)"
      " -> (Tensor indices, Tensor is_weights)");
}

STABLE_TORCH_LIBRARY_IMPL(dfkd_native, CPU, m) {
  m.impl("bn_act_moments_forward", TORCH_BOX(&dfkd::bn_act_moments_forward));
  m.impl("bn_act_moments_backward", TORCH_BOX(&dfkd::bn_act_moments_backward));
  m.impl("batch_moments_forward", TORCH_BOX(&dfkd::batch_moments_forward));
  m.impl("batch_moments_backward", TORCH_BOX(&dfkd::batch_moments_backward));
  m.impl("bn_act_train_forward", TORCH_BOX(&dfkd::bn_act_train_forward));
  m.impl("bn_act_train_backward", TORCH_BOX(&dfkd::bn_act_train_backward));
  m.impl("cam_margin_forward", TORCH_BOX(&dfkd::cam_margin_forward));
  m.impl("cam_margin_backward", TORCH_BOX(&dfkd::cam_margin_backward));
  m.impl("kd_kl_forward", TORCH_BOX(&dfkd::kd_kl_forward));
  m.impl("kd_kl_backward", TORCH_BOX(&dfkd::kd_kl_backward));
  m.impl("kd_kl_priority_forward", TORCH_BOX(&dfkd::kd_kl_priority_forward));
  dfkd::register_device_operators(m);
}

#ifdef DFKD_CUDA
STABLE_TORCH_LIBRARY_IMPL(dfkd_native, CUDA, m) { dfkd::register_device_operators(m); }
#endif
