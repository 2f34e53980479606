// Compiles one source once per instruction set. Usage, in the operator's cpu/dispatch.cpp, after every other include:
//
//   #define BDAM_ISA_SOURCE "selective_scan/cpu/kernel.inl"
//   #include "common/foreach_isa.h"
//
// BDAM_ISA_SOURCE is included after simd.inl inside the namespaces bdam_fast::avx512, ::avx2 and ::baseline (internal
// linkage), where kWidth is the number of float lanes. It must include .inl files only and define templates on the
// vector type. BDAM_FOR_ISA picks one at run time. Other compilers than GCC and Clang and other processors build
// the baseline alone, whose four lanes are SSE2 or NEON. No -ffast-math anywhere: NaN must stay NaN, and linking with
// it would set flush-to-zero for the whole process.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <limits>
#include <type_traits>
#include <utility>

#include "common/dtype.h"
#include "common/runtime.h"
#include "common/scratch.h"
#ifdef BDAM_X86_DISPATCH
#include <immintrin.h>
#define BDAM_PRAGMA(text) _Pragma(#text)
#ifdef __clang__
// Clang has no pragma for all that follows; each function is given the attribute. Lambdas get its features, not its
// arch=.
#define BDAM_V3 "avx2,fma,f16c,bmi,bmi2,lzcnt,movbe,popcnt"
#define BDAM_V4 BDAM_V3 ",avx512f,avx512bw,avx512cd,avx512dq,avx512vl"
#define BDAM_BEGIN_ISA(isa) BDAM_PRAGMA(clang attribute push(__attribute__((target(isa))), apply_to = function))
#define BDAM_END_ISA _Pragma("clang attribute pop")
#else
#define BDAM_V3 "arch=x86-64-v3"
#define BDAM_V4 "arch=x86-64-v4"
#define BDAM_BEGIN_ISA(isa) _Pragma("GCC push_options") BDAM_PRAGMA(GCC target(isa))
#define BDAM_END_ISA _Pragma("GCC pop_options")
#endif
#endif

#ifdef BDAM_X86_DISPATCH
BDAM_BEGIN_ISA(BDAM_V4)
namespace bdam_fast {
namespace {
namespace avx512 {
constexpr int kWidth = 16;
#include "common/simd.inl"
#include "common/tile.inl"
#include BDAM_ISA_SOURCE
}  // namespace avx512
}  // namespace
}  // namespace bdam_fast
BDAM_END_ISA

BDAM_BEGIN_ISA(BDAM_V3)
namespace bdam_fast {
namespace {
namespace avx2 {
constexpr int kWidth = 8;
#include "common/simd.inl"
#include "common/tile.inl"
#include BDAM_ISA_SOURCE
}  // namespace avx2
}  // namespace
}  // namespace bdam_fast
BDAM_END_ISA
#endif

namespace bdam_fast {
namespace {
namespace baseline {
constexpr int kWidth = 4;
#include "common/simd.inl"
#include "common/tile.inl"
#include BDAM_ISA_SOURCE
}  // namespace baseline
}  // namespace
}  // namespace bdam_fast

// Calls function<vector type>(arguments...): double always at the baseline (two lanes, libm's exp; it is there for
// checks, not for speed), float at the instruction set in use.
#ifdef BDAM_X86_DISPATCH
#define BDAM_FOR_ISA(is_double, function, ...)                                                                        \
  do {                                                                                                                \
    if (is_double)                                                                                                    \
      ::bdam_fast::baseline::function<::bdam_fast::baseline::vec<double, 2>>(__VA_ARGS__);                            \
    else if (::bdam_fast::current_isa() == ::bdam_fast::Isa::avx512)                                                  \
      ::bdam_fast::avx512::function<::bdam_fast::avx512::vec<float, ::bdam_fast::avx512::kWidth>>(__VA_ARGS__);       \
    else if (::bdam_fast::current_isa() == ::bdam_fast::Isa::avx2)                                                    \
      ::bdam_fast::avx2::function<::bdam_fast::avx2::vec<float, ::bdam_fast::avx2::kWidth>>(__VA_ARGS__);             \
    else                                                                                                              \
      ::bdam_fast::baseline::function<::bdam_fast::baseline::vec<float, ::bdam_fast::baseline::kWidth>>(__VA_ARGS__); \
  } while (0)
#else
#define BDAM_FOR_ISA(is_double, function, ...)                                                                        \
  do {                                                                                                                \
    if (is_double)                                                                                                    \
      ::bdam_fast::baseline::function<::bdam_fast::baseline::vec<double, 2>>(__VA_ARGS__);                            \
    else                                                                                                              \
      ::bdam_fast::baseline::function<::bdam_fast::baseline::vec<float, ::bdam_fast::baseline::kWidth>>(__VA_ARGS__); \
  } while (0)
#endif
