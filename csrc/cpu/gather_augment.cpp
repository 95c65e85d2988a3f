// uint8 pool (P, H, W, C) -> normalised batch: gather, crop from the zero-padded image, flip and look up, in one pass.
//
//   out[b, c, y, x] = table[v, c],  v = pool[indices[b], y + dy, X + dx, c] or 0 outside,  X = W - 1 - x if flips[b],
//   else x
#include <algorithm>
#include <vector>

#include <torch/csrc/stable/ops.h>

#include "../dispatch.h"
#include "../layout.h"

namespace dfkd::cpu {
namespace {

struct Image {
  int64_t height, width, channels;

  int64_t size() const { return height * width * channels; }
};

struct Crop {
  int64_t dy, dx;
  bool flip;
};

// Columns [begin, end) of an output row have a source; `source(x)` is its column.
struct Span {
  int64_t begin, end, first, step;

  Span(const Image& image, const Crop& crop) {
    const int64_t low = std::clamp<int64_t>(-crop.dx, 0, image.width);
    const int64_t high = std::clamp<int64_t>(image.width - crop.dx, 0, image.width);
    begin = crop.flip ? image.width - high : low;
    end = crop.flip ? image.width - low : high;
    step = crop.flip ? -1 : 1;
    first = (crop.flip ? image.width - 1 - begin : begin) + crop.dx;
  }
};

// The source pixel of column `begin` of output row y; null where the whole row lies outside.
const uint8_t* source_row(const uint8_t* source, const Image& image, const Crop& crop, const Span& span, int64_t y) {
  const int64_t row = y + crop.dy;
  const bool inside = source && 0 <= row && row < image.height && span.begin < span.end;
  return inside ? source + (row * image.width + span.first) * image.channels : nullptr;
}

// Row y of the next image: it is read from main memory while this image's row is written.
void prefetch_row(const uint8_t* next, const Image& image, int64_t y) {
  const int64_t bytes = image.width * image.channels;
  for (int64_t i = 0; next && i < bytes; i += 64) __builtin_prefetch(next + y * bytes + i);
}

// One row of interleaved channels (kChannels of them, if not 0), from pixels `stride` bytes apart. The table is
// [channels, 256].
template <typename T, int kChannels>
void write_row(const uint8_t* pixel, int64_t stride, const Span& span, const Image& image, const T* __restrict table,
               T* __restrict out) {
  const int64_t channels = kChannels ? kChannels : image.channels;
  const auto blank = [&](int64_t from, int64_t to) {
    for (int64_t x = from; x < to; ++x) {
      for (int64_t c = 0; c < channels; ++c) out[x * channels + c] = table[256 * c];
    }
  };
  const int64_t begin = pixel ? span.begin : image.width, end = pixel ? span.end : image.width;
  blank(0, begin);
  for (int64_t x = begin; x < end; ++x, pixel += span.step * stride) {
    for (int64_t c = 0; c < channels; ++c) out[x * channels + c] = table[256 * c + pixel[c]];
  }
  blank(end, image.width);
}

template <typename T, int kChannels>
void write_channels_last(const uint8_t* source, const uint8_t* next, const Image& image, const Crop& crop,
                         const T* table, T* out) {
  const Span span(image, crop);
  for (int64_t y = 0; y < image.height; ++y, out += image.width * image.channels) {
    prefetch_row(next, image, y);
    const uint8_t* pixel = source_row(source, image, crop, span, y);
    write_row<T, kChannels>(pixel, image.channels, span, image, table, out);
  }
}

template <typename T>
void write_planes(const uint8_t* source, const uint8_t* next, const Image& image, const Crop& crop, const T* table,
                  T* out) {
  const Span span(image, crop);
  for (int64_t c = 0; c < image.channels; ++c, table += 256) {
    for (int64_t y = 0; y < image.height; ++y, out += image.width) {
      if (c == 0) prefetch_row(next, image, y);
      const uint8_t* pixel = source_row(source, image, crop, span, y);
      write_row<T, 1>(pixel ? pixel + c : nullptr, image.channels, span, image, table, out);
    }
  }
}

template <typename T>
using Writer = void (*)(const uint8_t*, const uint8_t*, const Image&, const Crop&, const T*, T*);

template <typename T>
Writer<T> writer_of(bool channels_last, int64_t channels) {
  if (!channels_last) return write_planes<T>;
  return channels == 3 ? write_channels_last<T, 3> : write_channels_last<T, 0>;
}

}  // namespace

void gather_augment(const Tensor& pool, const Tensor& indices, const Tensor& shifts, const Tensor& flips,
                    const Tensor& table, int64_t pad, const Tensor& out) {
  const Image image{pool.size(1), pool.size(2), pool.size(3)};
  const int64_t images = pool.size(0), batch = indices.size(0);
  const uint8_t* pixels = data<uint8_t>(pool);
  const int64_t *index = data<int64_t>(indices), *shift = data<int64_t>(shifts);
  const bool* flip = data<bool>(flips);
  const float* entries = data<float>(table);
  const bool channels_last = layout_of(out).channels_last;
  const auto image_at = [&](int64_t b) {
    return 0 <= index[b] && index[b] < images ? pixels + index[b] * image.size() : nullptr;
  };
  dispatch_float(out, [&](auto zero) {
    using T = decltype(zero);
    std::vector<T> lookup(256 * image.channels);
    for (int64_t c = 0; c < image.channels; ++c) {
      for (int64_t v = 0; v < 256; ++v) lookup[256 * c + v] = static_cast<T>(entries[v * image.channels + c]);
    }
    const Writer<T> write = writer_of<T>(channels_last, image.channels);
    T* result = out.mutable_data_ptr<T>();
    torch::stable::parallel_for(0, batch, 4, [&](int64_t begin, int64_t end) {
      for (int64_t b = begin; b < end; ++b) {
        const Crop crop{std::clamp(shift[2 * b], -pad, pad), std::clamp(shift[2 * b + 1], -pad, pad), flip[b]};
        const uint8_t* next = b + 1 < end ? image_at(b + 1) : nullptr;
        write(image_at(b), next, image, crop, lookup.data(), result + b * image.size());
      }
    });
  });
}

}  // namespace dfkd::cpu
