// Compiles the file DFKD_KERNELS once per instruction set, in the namespaces v4 (AVX-512), v3 (AVX2, FMA) and generic,
// and picks one by CPUID: one wheel runs everywhere, without -march. Targets are set by pragma and not by
// target_clones, which lowers vector comparisons before it clones and so leaves them scalar in the clones.
#pragma once

// Whatever a kernel file includes must be seen here first, outside the pragmas.
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
#pragma GCC target("arch=x86-64-v4")
#define DFKD_ISA v4
#define DFKD_VECTOR_BYTES 64
#include DFKD_KERNELS
#undef DFKD_ISA
#undef DFKD_VECTOR_BYTES
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("arch=x86-64-v3")
#define DFKD_ISA v3
#define DFKD_VECTOR_BYTES 32
#include DFKD_KERNELS
#undef DFKD_ISA
#undef DFKD_VECTOR_BYTES
#pragma GCC pop_options
#endif

#define DFKD_ISA generic
#define DFKD_VECTOR_BYTES 16
#include DFKD_KERNELS
#undef DFKD_ISA
#undef DFKD_VECTOR_BYTES

namespace dfkd::cpu {

// 2 for v4, 1 for v3, 0 for generic; torch's ATEN_CPU_CAPABILITY (avx512, avx2, default) lowers it.
inline int isa_level() {
  static const int level = [] {
    int found = 0;
#ifdef DFKD_X86_LEVELS
    found = __builtin_cpu_supports("x86-64-v4") ? 2 : __builtin_cpu_supports("x86-64-v3") ? 1 : 0;
#endif
    const char* asked = std::getenv("ATEN_CPU_CAPABILITY");
    const int limit = !asked || !std::strcmp(asked, "avx512") ? 2 : !std::strcmp(asked, "avx2") ? 1 : 0;
    return std::min(found, limit);
  }();
  return level;
}

}  // namespace dfkd::cpu

// DFKD_PICK(function<T, true>): the function for this processor.
#ifdef DFKD_X86_LEVELS
#define DFKD_PICK(...)                                \
  (::dfkd::cpu::isa_level() == 2   ? &v4::__VA_ARGS__ \
   : ::dfkd::cpu::isa_level() == 1 ? &v3::__VA_ARGS__ \
                                   : &generic::__VA_ARGS__)
#else
#define DFKD_PICK(...) (&generic::__VA_ARGS__)
#endif
