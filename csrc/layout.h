// How a dense tensor (N, C, *) lies in memory: rows of C neighbours (channels-last), or planes of one channel each.
#pragma once

#include <cstdint>

#include <torch/csrc/stable/tensor.h>

namespace dfkd {

struct Layout {
  bool dense;          // one of the two below, without gaps
  bool channels_last;  // element (row, channel) at row * channels + channel; else plane p = n * channels + channel
  int64_t batch, channels, inner;

  int64_t rows() const { return batch * inner; }
};

// True when the dimensions `order`, outermost first, lie densely; the stride of a dimension of size 1 means nothing.
template <typename Order>
bool is_dense_in(const torch::stable::Tensor& x, const Order& order, int64_t dims) {
  int64_t expected = 1;
  for (int64_t i = dims - 1; i >= 0; --i) {
    const int64_t dim = order(i);
    if (x.size(dim) != 1 && x.stride(dim) != expected) return false;
    expected *= x.size(dim);
  }
  return true;
}

inline Layout layout_of(const torch::stable::Tensor& x) {
  const int64_t dims = x.dim();
  Layout out{false, false, x.size(0), x.size(1), 1};
  for (int64_t dim = 2; dim < dims; ++dim) out.inner *= x.size(dim);
  // Channels-last order: batch, then the inner dimensions, then the channel.
  const auto rows_order = [dims](int64_t i) { return i == 0 ? 0 : i == dims - 1 ? 1 : i + 1; };
  out.channels_last = is_dense_in(x, rows_order, dims);
  out.dense = out.channels_last || x.is_contiguous();
  return out;
}

}  // namespace dfkd
