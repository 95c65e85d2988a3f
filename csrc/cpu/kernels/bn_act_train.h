// The vector code of bn_act_train.cpp, where the formulas stand. Textual, see each_isa.h.
#include "walk.h"

namespace dfkd::cpu::DFKD_ISA {

struct NormalVector {
  F32 mean, scale, bias;
};

DFKD_INLINE NormalVector load(Normal at, int64_t c) {
  return {load(at.mean + c), load(at.scale + c), load(at.bias + c)};
}
DFKD_INLINE NormalVector splat(Normal at) { return {splat(*at.mean), splat(*at.scale), splat(*at.bias)}; }

// pre above zero, slope * pre below: 0 is relu. A comparison with NaN is false: it passes, as in torch. An infinity is
// made finite first, or relu would make it NaN.
template <bool kAct>
DFKD_INLINE F32 activate(F32 pre, float slope) {
  if constexpr (!kAct) return pre;
  return pre < 0.f ? max(pre, splat(-std::numeric_limits<float>::max())) * slope : pre;
}

// The gradient behind the activation; `told` has the sign of what the activation read.
template <bool kAct>
DFKD_INLINE F32 gate(F32 gradient, F32 told, float slope) {
  if constexpr (!kAct) return gradient;
  return told <= 0.f ? gradient * slope : gradient;
}

template <typename T, bool kResidual, bool kAct>
DFKD_INLINE void normalize_vector(const ForwardIO<T>& io, int64_t i, int64_t n, const NormalVector& at, float slope) {
  F32 pre = (load(io.x + i, n) - at.mean) * at.scale + at.bias;
  if constexpr (kResidual) pre += load(io.residual + i, n);
  store(io.y + i, activate<kAct>(pre, slope), n);
}

template <typename T, bool kResidual, bool kAct>
void normalize_chunk(ForwardIO<T> io, Normal at, float slope, int64_t width, int64_t size) {
  each_column(width, size, [&](int64_t c) {
    return [&, columns = load(at, c)](int64_t i, auto n) {
      normalize_vector<T, kResidual, kAct>(io, i, n, columns, slope);
    };
  });
}

template <typename T, bool kResidual, bool kAct>
void normalize_plane(ForwardIO<T> io, Normal at, float slope, int64_t size) {
  const NormalVector channel = splat(at);
  each_vector(0, size, [&](int64_t i, auto n) { normalize_vector<T, kResidual, kAct>(io, i, n, channel, slope); });
}

// x - mean and the gradient behind the activation. kFromY: the output, kept, tells the sign, which x alone does not where
// there was a residual.
struct Pair {
  F32 d, g;
};

template <typename T, bool kFromY, bool kAct>
DFKD_INLINE Pair read_pair(const BackwardIO<T>& io, int64_t i, int64_t n, const NormalVector& at, float slope) {
  const F32 d = load(io.x + i, n) - at.mean;
  const F32 told = kFromY ? load(io.kept + i, n) : d * at.scale + at.bias;
  return {d, gate<kAct>(load(io.dy + i, n), told, slope)};
}

// First pass backward: sum += g, product += g * d, over the columns of a chunk. kResidual: g is what the residual gets.
template <typename T, bool kFromY, bool kResidual, bool kAct>
void reduce_chunk(BackwardIO<T> io, Normal at, float slope, int64_t width, int64_t size, float* sum, float* product) {
  const auto one = [&](int64_t i, auto n, const NormalVector& columns) {
    const Pair pair = read_pair<T, kFromY, kAct>(io, i, n, columns, slope);
    if constexpr (kResidual) store(io.dresidual + i, pair.g, n);
    return pair;
  };
  int64_t row = 0;
  for (; row + 4 * width <= size; row += 4 * width) {
    for (int64_t c = 0; c < width; c += kLanes) {
      const NormalVector columns = load(at, c);
      const Pair a = one(row + c, Full(), columns), b = one(row + width + c, Full(), columns);
      const Pair e = one(row + 2 * width + c, Full(), columns), f = one(row + 3 * width + c, Full(), columns);
      store(sum + c, load(sum + c) + ((a.g + b.g) + (e.g + f.g)));
      store(product + c, load(product + c) + ((a.g * a.d + b.g * b.d) + (e.g * e.d + f.g * f.d)));
    }
  }
  for (; row < size; row += width) {
    for (int64_t c = 0; c < width && row + c < size; c += kLanes) {
      const Pair pair = one(row + c, std::min(kLanes, size - row - c), load(at, c));  // g is zero beyond n
      store(sum + c, load(sum + c) + pair.g);
      store(product + c, load(product + c) + pair.g * pair.d);
    }
  }
}

template <typename T, bool kFromY, bool kResidual, bool kAct>
void reduce_plane(BackwardIO<T> io, Normal at, float slope, int64_t size, float* sum, float* product) {
  const NormalVector channel = splat(at);
  double total = 0.0, total_product = 0.0;
  for (int64_t begin = 0; begin < size; begin += kPlaneBlock) {
    F32 s{}, p{};
    each_vector(begin, std::min(begin + kPlaneBlock, size), [&](int64_t i, auto n) {
      const Pair pair = read_pair<T, kFromY, kAct>(io, i, n, channel, slope);
      if constexpr (kResidual) store(io.dresidual + i, pair.g, n);
      s += pair.g;
      p += pair.g * pair.d;
    });
    total += sum_lanes(s);
    total_product += sum_lanes(p);
  }
  *sum = static_cast<float>(total);
  *product = static_cast<float>(total_product);
}

// Second pass backward.
template <typename T, bool kFromY, bool kAct>
DFKD_INLINE void gradient_vector(const BackwardIO<T>& io, int64_t i, int64_t n, const NormalVector& at, F32 at_zero,
                                 F32 per_d, float slope) {
  const Pair pair = read_pair<T, kFromY, kAct>(io, i, n, at, slope);
  store(io.dx + i, pair.g * at.scale + (at_zero + pair.d * per_d), n);
}

template <typename T, bool kFromY, bool kAct>
void gradient_chunk(BackwardIO<T> io, Normal at, Feedback back, float slope, int64_t width, int64_t size) {
  each_column(width, size, [&](int64_t c) {
    return [&, columns = load(at, c), at_zero = load(back.at_zero + c), per_d = load(back.slope + c)](
               int64_t i, auto n) { gradient_vector<T, kFromY, kAct>(io, i, n, columns, at_zero, per_d, slope); };
  });
}

template <typename T, bool kFromY, bool kAct>
void gradient_plane(BackwardIO<T> io, Normal at, Feedback back, float slope, int64_t size) {
  const NormalVector channel = splat(at);
  const F32 at_zero = splat(*back.at_zero), per_d = splat(*back.slope);
  each_vector(0, size, [&](int64_t i, auto n) {
    gradient_vector<T, kFromY, kAct>(io, i, n, channel, at_zero, per_d, slope);
  });
}

// The sums of shifted values and squares: batch_moments has them too, in a file of its own instruction sets.
template <typename T>
void moments_chunk(const T* x, const float* shift, int64_t width, int64_t size, float* sum, float* square) {
  sum_columns(width, size, sum, square, [&](int64_t c) {
    return [x, at = load(shift + c)](int64_t i, auto n) { return keep_first(load(x + i, n) - at, n); };
  });
}

template <typename T>
void moments_plane(const T* x, float shift, int64_t size, float* sum, float* square) {
  sum_plane(size, sum, square, [&](int64_t i, auto n) { return keep_first(load(x + i, n) - splat(shift), n); });
}

}  // namespace dfkd::cpu::DFKD_ISA
