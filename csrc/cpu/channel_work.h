// How the per-channel kernels cut their work: by shape alone, never by the number of threads, so that sums repeat bit
// for bit.
#pragma once

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <vector>

#include <torch/csrc/stable/ops.h>

#include "../dispatch.h"
#include "../layout.h"

namespace dfkd::cpu {

constexpr int64_t kChunkElements = 1 << 15;  // 64 KiB of bf16: stays in the second-level cache beside its output

// Channels-last memory as rows of `width` columns: the least number of whole pixels that fills whole vectors, so that
// only the tensor's very end needs a partial vector. Column i belongs to channel i % channels.
struct RowPlan {
  int64_t channels, width, elements, chunk, chunks;

  explicit RowPlan(const Layout& layout) : channels(layout.channels), elements(layout.rows() * layout.channels) {
    constexpr int64_t lanes = 16,
                      wide =
                          128;  // the widest vector; narrow rows are joined to about `wide` columns: longer inner loops
    width = std::lcm(channels, lanes);
    width *= std::max<int64_t>(1, wide / width);
    chunk = std::max<int64_t>(1, kChunkElements / (4 * width)) * 4 * width;
    chunks = (elements + chunk - 1) / chunk;
  }

  // One value per channel -> one per column.
  std::vector<float> columns(const float* per_channel) const {
    std::vector<float> out(width);
    for (int64_t i = 0; i < width; ++i) out[i] = per_channel[i % channels];
    return out;
  }

  // step(chunk, first_element, size) for each chunk, on torch's threads.
  template <typename Step>
  void for_chunks(const Step& step) const {
    torch::stable::parallel_for(0, chunks, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) step(i, i * chunk, std::min(chunk, elements - i * chunk));
    });
  }
};

// step(plane, channel, first_element) for each plane of an NC* tensor, on torch's threads.
template <typename Step>
void for_planes(const Layout& layout, const Step& step) {
  const int64_t grain = std::max<int64_t>(1, kChunkElements / layout.inner);
  torch::stable::parallel_for(0, layout.batch * layout.channels, grain, [&](int64_t begin, int64_t end) {
    for (int64_t plane = begin; plane < end; ++plane) step(plane, plane % layout.channels, plane * layout.inner);
  });
}

// factor * gradient, one value per channel; a missing gradient is zero.
inline std::vector<float> channel_gradient(const OptionalTensor& gradient, int64_t channels, float factor) {
  std::vector<float> out(channels, 0.f);
  const float* values = data<float>(gradient);
  for (int64_t c = 0; values && c < channels; ++c) out[c] = factor * values[c];
  return out;
}

// Partial sums of the shifted values and of their squares, one pair of rows [width] for each part of the work.
class MomentSums {
 public:
  MomentSums(int64_t parts, int64_t width) : parts_(parts), width_(width), values_(parts * 2 * width, 0.f) {}

  float* sum(int64_t part) { return values_.data() + part * 2 * width_; }
  float* square(int64_t part) { return sum(part) + width_; }

  // stats [2 * channels + 1]: the totals, added in order and in double, and the count.
  void write(float* stats, int64_t channels, int64_t count) const {
    std::vector<double> total(2 * width_, 0.0);
    for (int64_t part = 0; part < parts_; ++part) {
      for (int64_t i = 0; i < 2 * width_; ++i) total[i] += values_[part * 2 * width_ + i];
    }
    for (int64_t moment = 0; moment < 2; ++moment) {
      for (int64_t channel = 0; channel < channels; ++channel) {
        double value = 0.0;
        for (int64_t i = channel; i < width_; i += channels) value += total[moment * width_ + i];
        stats[moment * channels + channel] = static_cast<float>(value);
      }
    }
    stats[2 * channels] = static_cast<float>(count);
  }

 private:
  int64_t parts_, width_;
  std::vector<float> values_;
};

}  // namespace dfkd::cpu
