// From run-time dtypes and flags to template arguments, and from (optional) tensors to pointers.
#pragma once

#include <type_traits>

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include "ops.h"

namespace dfkd {

// body(T()) with T = float, BFloat16 or Half.
template <typename Body>
void dispatch_float(const Tensor& x, const Body& body) {
  using torch::headeronly::ScalarType;
  switch (x.scalar_type()) {
    case ScalarType::Float:
      return body(float());
    case ScalarType::BFloat16:
      return body(torch::headeronly::BFloat16());
    case ScalarType::Half:
      return body(torch::headeronly::Half());
    default:
      STD_TORCH_CHECK(false, "expected float32, bfloat16 or float16");
  }
}

// body(std::true_type()) or body(std::false_type()).
template <typename Body>
void dispatch_bool(bool flag, const Body& body) {
  flag ? body(std::true_type()) : body(std::false_type());
}

template <typename T>
const T* data(const Tensor& x) {
  return x.const_data_ptr<T>();
}

template <typename T>
const T* data(const OptionalTensor& x) {
  return x ? x->const_data_ptr<T>() : nullptr;
}

}  // namespace dfkd
