// The vector code of batch_moments.cpp, where the formulas stand. Textual, see each_isa.h.
#include "walk.h"

namespace dfkd::cpu::DFKD_ISA {

template <typename T>
void sum_chunk(const T* x, const float* shift, int64_t width, int64_t size, float* sum, float* square) {
  sum_columns(width, size, sum, square, [&](int64_t c) {
    return [x, at = load(shift + c)](int64_t i, auto n) { return keep_first(load(x + i, n) - at, n); };
  });
}

template <typename T>
void sum_channel(const T* x, float shift, int64_t size, float* sum, float* square) {
  sum_plane(size, sum, square, [&](int64_t i, auto n) { return keep_first(load(x + i, n) - splat(shift), n); });
}

template <typename T>
void gradient_chunk(const T* x, const float* shift, const float* dsum, const float* dsquare, int64_t width,
                    int64_t size, T* dx) {
  each_column(width, size, [&](int64_t c) {
    return [=, at = load(shift + c), sum = load(dsum + c), square = load(dsquare + c)](int64_t i, auto n) {
      store(dx + i, sum + (load(x + i, n) - at) * square, n);
    };
  });
}

template <typename T>
void gradient_channel(const T* x, float shift, float dsum, float dsquare, int64_t size, T* dx) {
  each_vector(0, size, [&](int64_t i, auto n) { store(dx + i, dsum + (load(x + i, n) - shift) * dsquare, n); });
}

}  // namespace dfkd::cpu::DFKD_ISA
