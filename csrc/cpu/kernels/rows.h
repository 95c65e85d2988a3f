// Rows of any floating dtype to and from rows of float. Textual, see each_isa.h.
#include "walk.h"

namespace dfkd::cpu::DFKD_ISA {

// out = factor * row; returns the largest value.
template <typename T>
float load_row(const T* row, float factor, int64_t size, float* out) {
  F32 largest = splat(-std::numeric_limits<float>::infinity());
  float last = largest[0];
  each_vector(0, size, [&](int64_t i, auto n) {
    const F32 value = load(row + i, n) * factor;
    store(out + i, value, n);
    if (n == kLanes) {
      largest = max(largest, value);
    } else {
      for (int64_t lane = 0; lane < n; ++lane) last = std::max(last, value[lane]);
    }
  });
  return std::max(max_lanes(largest), last);
}

template <typename T>
void store_row(const float* row, int64_t size, T* out) {
  each_vector(0, size, [&](int64_t i, auto n) { store(out + i, load(row + i, n), n); });
}

}  // namespace dfkd::cpu::DFKD_ISA
