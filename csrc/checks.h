// Argument checks. Each message starts with the argument's name; the kernels rely on what is checked here.
#pragma once

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
                  ": on another device than the first tensor");
}

// x (N, C, *), not empty, dense in one of the two layouts.
inline void check_activation(const char* name, const Tensor& x) {
  check_float(name, x);
  STD_TORCH_CHECK(x.dim() >= 2 && x.numel() > 0, name, ": expected a non-empty tensor (N, C, *)");
  STD_TORCH_CHECK(layout_of(x).dense, name, ": expected a contiguous or channels-last tensor");
}

// Same shape, dtype, device and memory layout, so that one offset serves both.
inline void check_same(const char* name, const Tensor& x, const Tensor& like) {
  check_device(name, x, like);
  STD_TORCH_CHECK(x.scalar_type() == like.scalar_type(), name, ": dtype differs from x");
  STD_TORCH_CHECK(x.dim() == like.dim(), name, ": shape differs from x");
  for (int64_t dim = 0; dim < x.dim(); ++dim) {
    STD_TORCH_CHECK(x.size(dim) == like.size(dim), name, ": shape differs from x");
    STD_TORCH_CHECK(x.size(dim) == 1 || x.stride(dim) == like.stride(dim), name, ": memory layout differs from x");
  }
}

inline void check_same(const char* name, const OptionalTensor& x, const Tensor& like) {
  if (x) check_same(name, *x, like);
}

// Contiguous, of the given dtype and shape, on the device of `like`.
inline void check_shape(const char* name, const Tensor& x, ScalarType dtype, std::initializer_list<int64_t> shape,
                        const Tensor& like) {
  check_device(name, x, like);
  check_dtype(name, x, dtype);
  bool same = x.dim() == static_cast<int64_t>(shape.size());
  for (int64_t dim = 0; same && dim < x.dim(); ++dim) same = x.size(dim) == shape.begin()[dim];
  STD_TORCH_CHECK(same, name, ": unexpected shape");
  STD_TORCH_CHECK(x.is_contiguous(), name, ": expected a contiguous tensor");
}

inline void check_channels(const char* name, const Tensor& values, const Tensor& x) {
  check_shape(name, values, ScalarType::Float, {x.size(1)}, x);
}

inline void check_channels(const char* name, const OptionalTensor& values, const Tensor& x) {
  if (values) check_channels(name, *values, x);
}

}  // namespace dfkd
