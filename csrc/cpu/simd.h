// kLanes floats at a time, in portable vector types. Textual: each_isa.h includes it, through a kernel file, once per
// instruction set; hence no include guard.
#include <cstdint>
#include <cstring>

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#define DFKD_INLINE inline __attribute__((always_inline))

namespace dfkd::cpu::DFKD_ISA {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;

// As wide as the registers: what is wider has its comparisons taken apart into scalars.
constexpr int64_t kLanes = DFKD_VECTOR_BYTES / 4;
using F32 = float __attribute__((vector_size(DFKD_VECTOR_BYTES)));
using U32 = uint32_t __attribute__((vector_size(DFKD_VECTOR_BYTES)));
using I32 = int32_t __attribute__((vector_size(DFKD_VECTOR_BYTES)));
using U16 = uint16_t __attribute__((vector_size(DFKD_VECTOR_BYTES / 2)));

DFKD_INLINE F32 splat(float value) { return F32{} + value; }
DFKD_INLINE U32 bits(F32 value) { return reinterpret_cast<U32>(value); }
DFKD_INLINE F32 from_bits(U32 value) { return reinterpret_cast<F32>(value); }
DFKD_INLINE F32 min(F32 a, F32 b) { return b < a ? b : a; }  // NaN in `a` stays
DFKD_INLINE F32 max(F32 a, F32 b) { return b > a ? b : a; }

// Zero beyond the first n lanes.
DFKD_INLINE F32 keep_first(F32 value, int64_t n) {
  I32 lane;
  for (int32_t i = 0; i < kLanes; ++i) lane[i] = i;
  return lane < static_cast<int32_t>(n) ? value : F32{};
}

// In lane order, so that a sum does not depend on the instruction set's shuffles.
DFKD_INLINE float sum_lanes(F32 value) {
  float total = 0.f;
  for (int64_t i = 0; i < kLanes; ++i) total += value[i];
  return total;
}

DFKD_INLINE float max_lanes(F32 value) {
  float out = value[0];
  for (int64_t i = 1; i < kLanes; ++i) out = value[i] > out ? value[i] : out;
  return out;
}

template <typename V>
DFKD_INLINE V load_bytes(const void* p) {
  V out;
  std::memcpy(&out, p, sizeof out);
  return out;
}

DFKD_INLINE F32 load(const float* p) { return load_bytes<F32>(p); }

// kLanes 16-bit values to 32 bits and back: one instruction each, where the compiler's own conversion takes several.
// (The pragma that sets the target does not define the compiler's feature macros, hence our own.)
DFKD_INLINE U32 load_u16(const void* p) {
#if DFKD_VECTOR_BYTES == 64
  return reinterpret_cast<U32>(_mm512_cvtepu16_epi32(_mm256_loadu_si256(static_cast<const __m256i*>(p))));
#elif DFKD_VECTOR_BYTES == 32
  return reinterpret_cast<U32>(_mm256_cvtepu16_epi32(_mm_loadu_si128(static_cast<const __m128i*>(p))));
#else
  return __builtin_convertvector(load_bytes<U16>(p), U32);
#endif
}

DFKD_INLINE void store_u16(void* p, U32 value) {
#if DFKD_VECTOR_BYTES == 64
  _mm256_storeu_si256(static_cast<__m256i*>(p), _mm512_cvtepi32_epi16(reinterpret_cast<__m512i>(value)));
#elif DFKD_VECTOR_BYTES == 32
  const __m256i all = reinterpret_cast<__m256i>(value);
  const __m128i packed = _mm_packus_epi32(_mm256_castsi256_si128(all), _mm256_extracti128_si256(all, 1));
  _mm_storeu_si128(static_cast<__m128i*>(p), packed);
#else
  const U16 low = __builtin_convertvector(value, U16);
  std::memcpy(p, &low, sizeof low);
#endif
}

DFKD_INLINE F32 load(const BFloat16* p) { return from_bits(load_u16(p) << 16); }

// Exponent and mantissa are moved into place and rescaled by 2^112, which also normalises subnormals.
DFKD_INLINE F32 load(const Half* p) {
  const U32 half = load_u16(p);
  const U32 magnitude = (half & 0x7fffu) << 13;
  const U32 scaled = bits(from_bits(magnitude) * 0x1p112f);
  const U32 finite = magnitude < (0x7c00u << 13) ? scaled : (scaled | 0x7f800000u);
  return from_bits(finite | ((half & 0x8000u) << 16));
}

DFKD_INLINE void store(float* p, F32 value) { std::memcpy(p, &value, sizeof value); }

// Round to nearest even; a NaN stays one (the rounding bias could carry it into the sign). The processor's own
// instruction also turns subnormal numbers into zero.
DFKD_INLINE void store(BFloat16* p, F32 value) {
#if DFKD_HAS_BF16
  const __m256bh rounded = _mm512_cvtneps_pbh(reinterpret_cast<__m512>(value));
  std::memcpy(static_cast<void*>(p), &rounded, sizeof rounded);
#else
  const U32 u = bits(value);
  const U32 rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
  store_u16(p, value == value ? rounded : U32{} + 0x7fc0u);
#endif
}

// Round to nearest even. Subnormal results are rounded by the float adder: the last place of 0.5f is the half's own.
DFKD_INLINE void store(Half* p, F32 value) {
  const U32 u = bits(value);
  const U32 magnitude = u & 0x7fffffffu;
  const U32 normal = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  const U32 subnormal = bits(from_bits(magnitude) + 0.5f) - 0x3f000000u;
  const U32 finite = magnitude < 0x38800000u ? subnormal : normal;
  const U32 special = magnitude > 0x7f800000u ? U32{} + 0x7e00u : U32{} + 0x7c00u;
  store_u16(p, (magnitude >= 0x47800000u ? special : finite) | ((u >> 16) & 0x8000u));
}

// The first n <= kLanes elements; the other lanes are zero.
template <typename T>
DFKD_INLINE F32 load(const T* p, int64_t n) {
  if (n == kLanes) return load(p);
  T buffer[kLanes] = {};
  std::memcpy(static_cast<void*>(buffer), p, n * sizeof(T));
  return load(buffer);
}

template <typename T>
DFKD_INLINE void store(T* p, F32 value, int64_t n) {
  if (n == kLanes) return store(p, value);
  T buffer[kLanes];
  store(buffer, value);
  std::memcpy(static_cast<void*>(p), buffer, n * sizeof(T));
}

// e^x within 2 units in the last place for x <= 88; 0 below -87.3, where float32 turns subnormal; NaN for NaN.
// Cody and Waite's reduction to |r| <= ln(2) / 2, then the Taylor polynomial of degree 7.
DFKD_INLINE F32 exp(F32 x) {
  const F32 clamped = max(x, splat(-87.3f));
  const F32 rounder = splat(0x1.8p23f);  // its last place is 1: adding it rounds to an integer
  const F32 shifted = clamped * 0x1.715476p0f + rounder;
  const F32 power = shifted - rounder;
  const F32 r = (clamped - power * 0x1.62e4p-1f) - power * 0x1.7f7d1cp-20f;
  F32 series = splat(1.f / 5040.f) * r + 1.f / 720.f;
  series = series * r + 1.f / 120.f;
  series = series * r + 1.f / 24.f;
  series = series * r + 1.f / 6.f;
  series = series * r + 0.5f;
  series = series * r + 1.f;
  series = series * r + 1.f;
  const F32 scale = from_bits((bits(shifted) - bits(rounder) + 127u) << 23);
  return x < -87.3f ? F32{} : series * scale;
}

}  // namespace dfkd::cpu::DFKD_ISA
