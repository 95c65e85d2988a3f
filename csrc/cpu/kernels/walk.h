// The loops that the per-channel kernels share. Textual, see each_isa.h.
#include "../simd.h"

namespace dfkd::cpu::DFKD_ISA {

constexpr int64_t kPlaneBlock = 1 << 10;  // floats are summed in runs of this length, the runs in double

// Whole vectors are visited with this count, a constant, so that nothing is tested there.
using Full = std::integral_constant<int64_t, kLanes>;

// `size` elements as rows of `width` columns, the last row cut short. visit(c) loads the constants of kLanes columns
// and returns a function at(i, n) of the n <= kLanes elements from i on. Four rows share one load of the constants.
template <typename Visit>
DFKD_INLINE void each_column(int64_t width, int64_t size, const Visit& visit) {
  int64_t row = 0;
  for (; row + 4 * width <= size; row += 4 * width) {
    for (int64_t c = 0; c < width; c += kLanes) {
      const auto at = visit(c);
      at(row + c, Full());
      at(row + width + c, Full());
      at(row + 2 * width + c, Full());
      at(row + 3 * width + c, Full());
    }
  }
  for (; row < size; row += width) {
    for (int64_t c = 0; c < width && row + c < size; c += kLanes) visit(c)(row + c, std::min(kLanes, size - row - c));
  }
}

// The same where at(i, n) -> F32, zero beyond n: its results and their squares join sum [width] and square [width].
template <typename Visit>
DFKD_INLINE void sum_columns(int64_t width, int64_t size, float* sum, float* square, const Visit& visit) {
  int64_t row = 0;
  for (; row + 4 * width <= size; row += 4 * width) {
    for (int64_t c = 0; c < width; c += kLanes) {
      const auto at = visit(c);
      const F32 d0 = at(row + c, Full()), d1 = at(row + width + c, Full());
      const F32 d2 = at(row + 2 * width + c, Full()), d3 = at(row + 3 * width + c, Full());
      store(sum + c, load(sum + c) + ((d0 + d1) + (d2 + d3)));
      store(square + c, load(square + c) + ((d0 * d0 + d1 * d1) + (d2 * d2 + d3 * d3)));
    }
  }
  for (; row < size; row += width) {
    for (int64_t c = 0; c < width && row + c < size; c += kLanes) {
      const F32 d = visit(c)(row + c, std::min(kLanes, size - row - c));
      store(sum + c, load(sum + c) + d);
      store(square + c, load(square + c) + d * d);
    }
  }
}

// visit(i, n) over a run of elements: whole vectors, then what is left.
template <typename Visit>
DFKD_INLINE void each_vector(int64_t begin, int64_t end, const Visit& visit) {
  int64_t i = begin;
  for (; i + kLanes <= end; i += kLanes) visit(i, Full());
  if (i < end) visit(i, end - i);
}

// The sums of one plane of `size` elements of a single channel: visit(i, n) -> F32.
template <typename Visit>
DFKD_INLINE void sum_plane(int64_t size, float* sum, float* square, const Visit& visit) {
  double total = 0.0, total_square = 0.0;
  for (int64_t begin = 0; begin < size; begin += kPlaneBlock) {
    F32 s{}, q{};
    each_vector(begin, std::min(begin + kPlaneBlock, size), [&](int64_t i, auto n) {
      const F32 d = visit(i, n);
      s += d;
      q += d * d;
    });
    total += sum_lanes(s);
    total_square += sum_lanes(q);
  }
  *sum = static_cast<float>(total);
  *square = static_cast<float>(total_square);
}

}  // namespace dfkd::cpu::DFKD_ISA
