// Compiles the file DFKD_KERNELS once per instruction set, in the namespaces v4_bf16 (AVX-512 with BF16), v4 (AVX-512),
// v3 (AVX2, FMA) and generic, and picks one by CPUID: one wheel runs everywhere, without -march. Targets are set by
// pragma and not by target_clones, which lowers vector comparisons before it clones and so leaves them scalar in the
// clones.
#pragma once

// Whatever a kernel file uses is included here, or by the .cpp file before this one, outside the pragmas: an inline
// function that is defined inside one is compiled for that instruction set, and the linker may keep it for all callers.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <type_traits>

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 12
#define DFKD_X86_LEVELS 1
#include <immintrin.h>

#pragma GCC push_options
#pragma GCC target("arch=x86-64-v4", "avx512bf16")
#define DFKD_ISA v4_bf16
#define DFKD_VECTOR_BYTES 64
#define DFKD_HAS_BF16 1
#include DFKD_KERNELS
#undef DFKD_ISA
#undef DFKD_VECTOR_BYTES
#undef DFKD_HAS_BF16
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("arch=x86-64-v4")
#define DFKD_ISA v4
#define DFKD_VECTOR_BYTES 64
#define DFKD_HAS_BF16 0
#include DFKD_KERNELS
#undef DFKD_ISA
#undef DFKD_VECTOR_BYTES
#undef DFKD_HAS_BF16
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("arch=x86-64-v3")
#define DFKD_ISA v3
#define DFKD_VECTOR_BYTES 32
#define DFKD_HAS_BF16 0
#include DFKD_KERNELS
#undef DFKD_ISA
#undef DFKD_VECTOR_BYTES
#undef DFKD_HAS_BF16
#pragma GCC pop_options
#endif

#define DFKD_ISA generic
#define DFKD_VECTOR_BYTES 16
#define DFKD_HAS_BF16 0
#include DFKD_KERNELS
#undef DFKD_ISA
#undef DFKD_VECTOR_BYTES
#undef DFKD_HAS_BF16

namespace dfkd::cpu {

enum class Isa { generic, v3, v4, v4_bf16 };

// What the processor has; torch's ATEN_CPU_CAPABILITY (avx512, avx2, default) lowers it.
inline Isa isa() {
  static const Isa level = [] {
    Isa found = Isa::generic;
#ifdef DFKD_X86_LEVELS
    if (__builtin_cpu_supports("x86-64-v3")) found = Isa::v3;
    if (__builtin_cpu_supports("x86-64-v4")) found = __builtin_cpu_supports("avx512bf16") ? Isa::v4_bf16 : Isa::v4;
#endif
    const char* const asked = std::getenv("ATEN_CPU_CAPABILITY");
    const auto asks = [asked](const char* name) { return asked && std::strcmp(asked, name) == 0; };
    if (asks("default")) return Isa::generic;
    if (asks("avx2")) return std::min(found, Isa::v3);
    return asks("avx512") ? std::min(found, Isa::v4) : found;
  }();
  return level;
}

template <typename Function>
Function* pick(Function* v4_bf16, Function* v4, Function* v3, Function* generic) {
  switch (isa()) {
    case Isa::v4_bf16:
      return v4_bf16;
    case Isa::v4:
      return v4;
    case Isa::v3:
      return v3;
    default:
      return generic;
  }
}

}  // namespace dfkd::cpu

// DFKD_PICK(function<T, true>): the function for this processor.
#ifdef DFKD_X86_LEVELS
#define DFKD_PICK(...) \
  ::dfkd::cpu::pick(&v4_bf16::__VA_ARGS__, &v4::__VA_ARGS__, &v3::__VA_ARGS__, &generic::__VA_ARGS__)
#else
#define DFKD_PICK(...) (&generic::__VA_ARGS__)
#endif
