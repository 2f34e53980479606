// Stands in for the CUDA toolkit's header of this name: conversions, rounding to nearest even; no arithmetic.
#pragma once
#include "cuda_runtime.h"

struct __half {
  uint16_t bits;
};

inline float __half2float(__half h) {
  const uint32_t sign = uint32_t{h.bits} >> 15 << 31, exponent = h.bits >> 10 & 31, fraction = h.bits & 0x3ff;
  if (exponent == 31) return __uint_as_float(sign | 0x7f800000u | fraction << 13);
  if (exponent > 0) return __uint_as_float(sign | (exponent + 112) << 23 | fraction << 13);
  const float tiny = static_cast<float>(fraction) * 0x1p-24f;
  return sign ? -tiny : tiny;
}

inline __half __float2half_rn(float f) {
  const uint32_t bits = __float_as_uint(f), size = bits & 0x7fffffffu;
  const uint16_t sign = bits >> 16 & 0x8000;
  if (size > 0x7f800000u) return {0x7fff};
  if (size >= 0x47800000u) return {static_cast<uint16_t>(sign | 0x7c00)};  // 2^16 and more
  if (size < 0x38800000u)                                                  // below 2^-14: a multiple of 2^-24
    return {static_cast<uint16_t>(sign | static_cast<uint16_t>(std::nearbyint(std::fabs(f) * 0x1p24f)))};
  return {static_cast<uint16_t>(sign | (size + 0xfff + (size >> 13 & 1) - 0x38000000u) >> 13)};
}
