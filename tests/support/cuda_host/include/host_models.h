// What csrc/common/device.cuh takes from inline assembly on a GPU, modelled on the CPU.
#pragma once
#include "cuda_bf16.h"
#include "cuda_fp16.h"
#include "cuda_runtime.h"

namespace bdam_fast::device {

// The .ftz instructions read and write subnormal numbers as zeros.
inline float flush(float x) { return std::fabs(x) < 0x1p-126f ? std::copysign(0.f, x) : x; }

// As wrong as the instructions may be: up to `ulps` units in the last place, by the bits of the argument; exact where
// the hardware is, at powers of two.
inline float approximate(float x, float y, int ulps) {
  if (!std::isfinite(y) || y == 0.f || (__float_as_uint(y) & 0x7fffffu) == 0) return y;
  const int hash = static_cast<int>(__float_as_uint(x) * 2654435761u >> 16) % (2 * ulps + 1) - ulps;
  return __uint_as_float(__float_as_uint(y) + hash);
}
inline float ex2(float x) { return approximate(x, flush(std::exp2(flush(x))), 2); }
inline float rcp(float x) { return approximate(x, flush(1.f / flush(x)), 1); }

inline uint32_t two_bf16(float low, float high) {
  return uint32_t{__float2bfloat16_rn(high).bits} << 16 | __float2bfloat16_rn(low).bits;
}
inline uint32_t two_half(float low, float high) {
  return uint32_t{__float2half_rn(high).bits} << 16 | __float2half_rn(low).bits;
}

// The copy happens at the wait; until then the destination is NaN. A kernel that does not wait, or overwrites the
// source too early, shows.
template <int Bytes>
inline void cp_async(void* shared, const void* global) {
  const bool aligned =
      reinterpret_cast<uintptr_t>(shared) % Bytes == 0 && reinterpret_cast<uintptr_t>(global) % Bytes == 0;
  if (!aligned) host_cuda::fail("%s: cp_async of %d bytes is not aligned", host_cuda::state.kernel, Bytes);
  std::memset(shared, 0xff, Bytes);
  host_cuda::state.current->copies.push_back({shared, global, Bytes});
}
inline void cp_async_part(void* shared, const void* global, int bytes) {
  if (reinterpret_cast<uintptr_t>(shared) % 16 != 0 || reinterpret_cast<uintptr_t>(global) % 16 != 0)
    host_cuda::fail("%s: cp_async_part is not aligned", host_cuda::state.kernel);
  if (bytes < 0 || bytes > 16) host_cuda::fail("%s: cp_async_part of %d bytes", host_cuda::state.kernel, bytes);
  std::memset(shared, 0xff, 16);
  host_cuda::state.current->copies.push_back({shared, global, static_cast<size_t>(bytes)});
}
inline void cp_async_wait() {
  auto& copies = host_cuda::state.current->copies;
  for (const host_cuda::Copy& c : copies) std::memcpy(c.to, c.from, c.bytes);
  copies.clear();
}

inline float truncate_to_tf32(float x) { return __uint_as_float(__float_as_uint(x) & 0xffffe000u); }

// Lane l holds rows l / 4 and l / 4 + 8 of A in columns l % 4 (a0, a1) and l % 4 + 4 (a2, a3); of B column l / 4, rows
// l % 4 and l % 4 + 4; of D rows l / 4 (d0, d1) and l / 4 + 8 (d2, d3), columns 2 (l % 4) and the next.
inline void mma_tf32(float (&d)[4], float a0, float a1, float a2, float a3, float b0, float b1) {
  struct Operands {
    float a[4], b[2];
  };
  const int lane = static_cast<int>(host_cuda::state.current->lane()), row = lane / 4, column = lane % 4 * 2;
  const auto multiply = [&](const auto& of) {
    for (int k = 0; k < 8; ++k) {
      const Operands left = of(row * 4 + k % 4), right[2] = {of(column * 4 + k % 4), of(column * 4 + 4 + k % 4)};
      for (int i = 0; i < 4; ++i)
        d[i] += truncate_to_tf32(left.a[k / 4 * 2 + i / 2]) * truncate_to_tf32(right[i % 2].b[k / 4]);
    }
    return 0;
  };
  host_cuda::exchange(~0u, Operands{{a0, a1, a2, a3}, {b0, b1}}, HOST_CUDA_PLACE, multiply);
}

inline void mma_tf32_first(float (&d)[4], float a0, float a1, float a2, float a3, float b0, float b1) {
  for (float& x : d) x = 0.f;
  mma_tf32(d, a0, a1, a2, a3, b0, b1);
}

// A vector access of a GPU must be aligned to its size.
inline void check_aligned(const void* p, size_t bytes) {
  if (reinterpret_cast<uintptr_t>(p) % bytes != 0)
    host_cuda::fail("%s: a vector of %zu bytes at an address that is no multiple of it", host_cuda::state.kernel,
                    bytes);
}

}  // namespace bdam_fast::device
