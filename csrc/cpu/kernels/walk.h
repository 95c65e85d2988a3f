// The loops that the per-channel kernels share. Textual, see each_isa.h.
#include "../simd.h"

namespace dfkd::cpu::DFKD_ISA {

constexpr int64_t kPlaneBlock = 1 << 10;  // floats are summed in runs of this length, the runs in double

// Elements [row, end) at the columns from c on: their sum and sum of squares join those of the columns.
template <typename AtColumns>
DFKD_INLINE void add_column(const AtColumns& at_columns, int64_t first, int64_t last, int64_t width, int64_t n,
                            float* sum, float* square) {
  F32 s{}, q{};
  for (int64_t i = first; i < last; i += width) {
    const F32 d = at_columns(i, n);
    s += d;
    q += d * d;
  }
  store(sum, load(sum) + s);
  store(square, load(square) + q);
}

// `size` elements as rows of `width` columns, the last one cut short. visit(c) loads the constants of kLanes columns
// and returns a function (i, n) -> F32 of the n <= kLanes elements from i on, zero beyond them; sum [width] and square
// [width] receive its results and their squares. Four rows share one load of the constants. Here and below n is written
// as a constant wherever vectors are whole, so that nothing is tested there.
template <typename Visit>
DFKD_INLINE void sum_columns(int64_t width, int64_t size, float* sum, float* square, const Visit& visit) {
  int64_t row = 0;
  for (; row + 4 * width <= size; row += 4 * width) {
    for (int64_t c = 0; c < width; c += kLanes) {
      add_column(visit(c), row + c, row + 4 * width, width, kLanes, sum + c, square + c);
    }
  }
  for (; row < size; row += width) {
    for (int64_t c = 0; c < width && row + c < size; c += kLanes) {
      add_column(visit(c), row + c, row + c + 1, width, std::min(kLanes, size - row - c), sum + c, square + c);
    }
  }
}

// visit(i, n) over a run of elements: whole vectors, then what is left.
template <typename Visit>
DFKD_INLINE void each_vector(int64_t begin, int64_t end, const Visit& visit) {
  int64_t i = begin;
  for (; i + kLanes <= end; i += kLanes) visit(i, std::integral_constant<int64_t, kLanes>());
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

// visit(i, n, c) for all elements of rows of `width` columns.
template <typename Visit>
DFKD_INLINE void each_column(int64_t width, int64_t size, const Visit& visit) {
  for (int64_t row = 0; row < size; row += width) {
    each_vector(row, std::min(row + width, size), [&](int64_t i, auto n) { visit(i, n, i - row); });
  }
}

}  // namespace dfkd::cpu::DFKD_ISA
