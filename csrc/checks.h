// Argument checks. Each message starts with the argument's name; the kernels rely on what is checked here.
#pragma once

#include <initializer_list>

#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include "layout.h"
#include "ops.h"

namespace dfkd {

using torch::headeronly::ScalarType;

inline void check_dtype(const char* name, const Tensor& x, ScalarType dtype) {
  STD_TORCH_CHECK(x.scalar_type() == dtype, name, ": expected dtype ", torch::headeronly::toString(dtype), ", got ",
                  torch::headeronly::toString(x.scalar_type()));
}

inline void check_float(const char* name, const Tensor& x) {
  const ScalarType dtype = x.scalar_type();
  STD_TORCH_CHECK(dtype == ScalarType::Float || dtype == ScalarType::BFloat16 || dtype == ScalarType::Half, name,
                  ": expected float32, bfloat16 or float16, got ", torch::headeronly::toString(dtype));
}

inline void check_range(const char* name, int64_t value, int64_t low, int64_t high) {
  STD_TORCH_CHECK(low <= value && value <= high, name, ": expected ", low, " to ", high, ", got ", value);
}

inline void check_device(const char* name, const Tensor& x, const Tensor& like) {
  STD_TORCH_CHECK(x.is_cuda() == like.is_cuda() && x.get_device_index() == like.get_device_index(), name,
                  ": on another device than the other tensors");
}

inline void check_sizes(const char* name, const Tensor& x, std::initializer_list<int64_t> sizes) {
  bool same = x.dim() == static_cast<int64_t>(sizes.size());
  for (int64_t dim = 0; same && dim < x.dim(); ++dim) same = x.size(dim) == sizes.begin()[dim];
  STD_TORCH_CHECK(same, name, ": unexpected shape");
}

// Contiguous, of the given dtype and shape, on the device of `like`.
inline void check_shape(const char* name, const Tensor& x, ScalarType dtype, std::initializer_list<int64_t> sizes,
                        const Tensor& like) {
  check_device(name, x, like);
  check_dtype(name, x, dtype);
  check_sizes(name, x, sizes);
  STD_TORCH_CHECK(x.is_contiguous(), name, ": expected a contiguous tensor");
}

// One value for each row of `like`.
inline void check_vector(const char* name, const Tensor& x, ScalarType dtype, const Tensor& like) {
  check_shape(name, x, dtype, {like.size(0)}, like);
}

// x (N, C, *), not empty, dense in one of the two layouts.
inline void check_activation(const char* name, const Tensor& x) {
  check_float(name, x);
  STD_TORCH_CHECK(x.dim() >= 2 && x.numel() > 0, name, ": expected a non-empty tensor (N, C, *)");
  STD_TORCH_CHECK(layout_of(x).dense, name, ": expected a contiguous or channels-last tensor");
}

// Same shape, dtype, device and memory layout, so that one offset serves both.
inline void check_same(const char* name, const OptionalTensor& x, const Tensor& like) {
  if (!x) return;
  check_device(name, *x, like);
  check_dtype(name, *x, like.scalar_type());
  STD_TORCH_CHECK(x->dim() == like.dim(), name, ": shape differs from x");
  for (int64_t dim = 0; dim < like.dim(); ++dim) {
    STD_TORCH_CHECK(x->size(dim) == like.size(dim), name, ": shape differs from x");
    STD_TORCH_CHECK(like.size(dim) == 1 || x->stride(dim) == like.stride(dim), name, ": memory layout differs from x");
  }
}

// One float32 value for each channel of x (N, C, *).
inline void check_channels(const char* name, const OptionalTensor& values, const Tensor& x) {
  if (values) check_shape(name, *values, ScalarType::Float, {x.size(1)}, x);
}

// One float32 vector for each layer, as long as that layer's sums.
inline void check_layers(const char* name, const TensorList& layers, const TensorList& sums) {
  STD_TORCH_CHECK(layers.size() == sums.size(), name, ": ", layers.size(), " entries, expected ", sums.size());
  for (size_t l = 0; l < layers.size(); ++l) {
    check_shape(name, layers[l], ScalarType::Float, {sums[l].numel()}, sums[0]);
  }
}

// features (B, K, h, w), class_weights (N, K), labels (B,)
inline void check_cam(const Tensor& features, const Tensor& class_weights, const Tensor& labels) {
  STD_TORCH_CHECK(features.dim() == 4, "features: expected shape (B, K, h, w)");
  check_float("class_weights", class_weights);
  STD_TORCH_CHECK(class_weights.dim() == 2, "class_weights: expected shape (N, K)");
  check_shape("class_weights", class_weights, class_weights.scalar_type(), {class_weights.size(0), features.size(1)},
              features);
  check_vector("labels", labels, ScalarType::Long, features);
}

// student, teacher (B, K)
inline void check_logits(const Tensor& student, const Tensor& teacher, double temperature) {
  check_float("student", student);
  check_float("teacher", teacher);
  STD_TORCH_CHECK(student.dim() == 2 && student.numel() > 0 && student.is_contiguous(),
                  "student: expected a contiguous, non-empty tensor (B, K)");
  check_shape("teacher", teacher, teacher.scalar_type(), {student.size(0), student.size(1)}, student);
  STD_TORCH_CHECK(temperature > 0, "temperature: expected a positive number, got ", temperature);
}

// leaves, sums and counts of a tree of fan-out 64, see NATIVE.md
inline void check_tree(const Tensor& leaves, const Tensor& sums, const Tensor& counts, int64_t capacity) {
  STD_TORCH_CHECK(capacity > 0, "capacity: expected 1 or more, got ", capacity);
  const auto blocks = [](int64_t entries) { return (entries + 63) / 64; };
  int64_t entries = 0, level = capacity;
  do {
    level = 64 * blocks(blocks(level));
    entries += level;
  } while (level > 64);
  check_shape("leaves", leaves, ScalarType::Float, {64 * blocks(capacity)}, leaves);
  check_shape("sums", sums, ScalarType::Double, {entries}, leaves);
  check_shape("counts", counts, ScalarType::Long, {entries}, leaves);
}

}  // namespace dfkd
