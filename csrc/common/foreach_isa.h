// Compiles one source once per instruction set. Usage, in the operator's cpu/dispatch.cpp, after every other include:
//
//   #define BDAM_ISA_SOURCE "selective_scan/cpu/kernel.inl"
//   #include "common/foreach_isa.h"
//
// BDAM_ISA_SOURCE is included after simd.inl inside the namespaces bdam_fast::avx512, ::avx2 and ::baseline (internal
// linkage), where kWidth is the number of float lanes. It must include .inl files only and define templates on the
// vector type. BDAM_FOR_ISA picks one at run time. Other compilers than GCC and other processors build the
// baseline alone, whose four lanes are SSE2 or NEON. No -ffast-math anywhere: NaN must stay NaN, and linking with it
// would set flush-to-zero for the whole process.
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
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#include <immintrin.h>
#define BDAM_X86_DISPATCH 1
#endif

#ifdef BDAM_X86_DISPATCH
#pragma GCC push_options
#pragma GCC target("arch=x86-64-v4")
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
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("arch=x86-64-v3")
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
#pragma GCC pop_options
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
