// Shared by the device code of all operators. No torch in here. The same source runs on the CPU, where BDAM_CUDA_HOST
// is defined and tests/cuda_host/include stands in for the CUDA toolkit.
//
// Offsets between batch items, steps and channels are formed in int64_t (View): a tensor may pass 2^31 elements. Within
// a tile, which is small, they are ints.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>

#include "common/dtype.h"

#define BDAM_DEVICE __device__ __forceinline__

#ifdef BDAM_CUDA_HOST
#include <host_models.h>
#define BDAM_START(kernel, grid, block, shared_bytes, stream, ...)                                             \
  (static_cast<void>(stream), ::host_cuda::launch(reinterpret_cast<const void*>(kernel), #kernel, grid, block, \
                                                  shared_bytes, [=] { (kernel)(__VA_ARGS__); }))
#define BDAM_SHARED(type, name) type* const name = reinterpret_cast<type*>(::host_cuda::state.shared)
#else
#define BDAM_START(kernel, grid, block, shared_bytes, stream, ...) \
  (kernel)<<<grid, block, shared_bytes, stream>>>(__VA_ARGS__)
// The dynamic shared memory of the block, aligned to 16 bytes. One declaration for all types: a name has one type.
#define BDAM_SHARED(type, name)                                      \
  extern __shared__ __align__(16) unsigned char bdam_shared_bytes[]; \
  type* const name = reinterpret_cast<type*>(bdam_shared_bytes)
#endif

// BDAM_LAUNCH((kernel<T, 4>), grid, block, shared_bytes, stream, arguments...) runs a kernel and throws a
// std::runtime_error that names it where it cannot be started (an empty grid, for instance).
#define BDAM_LAUNCH(kernel, grid, block, shared_bytes, stream, ...)                                               \
  do {                                                                                                            \
    const size_t bdam_bytes = (shared_bytes);                                                                     \
    if (bdam_bytes > ::bdam_fast::device::kSharedWithoutAsking)                                                   \
      ::bdam_fast::device::check_started(                                                                         \
          #kernel, cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)(bdam_bytes))); \
    BDAM_START(kernel, grid, block, bdam_bytes, stream, __VA_ARGS__);                                             \
    ::bdam_fast::device::check_started(#kernel, cudaGetLastError());                                              \
  } while (0)

#define BDAM_DTYPE_CASE(dtype, T, type, ...) \
  case ::bdam_fast::Dtype::dtype: {          \
    using T = type;                          \
    __VA_ARGS__;                             \
    break;                                   \
  }
#define BDAM_DEVICE_DTYPE_CASES(T, ...)                \
  BDAM_DTYPE_CASE(f32, T, float, __VA_ARGS__)          \
  BDAM_DTYPE_CASE(bf16, T, __nv_bfloat16, __VA_ARGS__) \
  BDAM_DTYPE_CASE(f16, T, __half, __VA_ARGS__)
// Runs the statement with T bound to the device's type of a Dtype, in a kernel: parameters have any of them.
#define BDAM_SWITCH_PARAMETER_DTYPE(dtype, T, ...) \
  switch (dtype) {                                 \
    BDAM_DEVICE_DTYPE_CASES(T, __VA_ARGS__)        \
    BDAM_DTYPE_CASE(f64, T, double, __VA_ARGS__)   \
  }
// The same on the host for activations, which are not float64: that is the CPU's and the reference's.
#define BDAM_SWITCH_DEVICE_DTYPE(dtype, T, ...)                                 \
  switch (dtype) {                                                              \
    BDAM_DEVICE_DTYPE_CASES(T, __VA_ARGS__)                                     \
    case ::bdam_fast::Dtype::f64:                                               \
      throw std::runtime_error("the CUDA kernels take no float64 activations"); \
  }

namespace bdam_fast::device {

constexpr size_t kSharedWithoutAsking = 48 * 1024;
constexpr float kLog2e = 1.4426950408889634f, kLn2 = 0.6931471805599453f;

inline void check_started(const char* kernel, cudaError_t error) {
  if (error != cudaSuccess)
    throw std::runtime_error(std::string("bdam_fast: CUDA kernel ") + kernel + ": " + cudaGetErrorString(error));
}

// --- single instructions

#ifndef BDAM_CUDA_HOST
// 2^x to 2 ulp, 1 / x to 1 ulp; subnormal numbers are zeros. There is no logarithm: lg2.approx is right to 2^-22
// absolutely where its argument is near 1, and a softplus by it to 2e-4 of a step of 0.001 (measured on an H200: 8e-6
// of an output).
BDAM_DEVICE float ex2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
BDAM_DEVICE float rcp(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
// Two floats rounded into one register, `low` in its lower half.
BDAM_DEVICE uint32_t two_bf16(float low, float high) {
  uint32_t y;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
  return y;
}
BDAM_DEVICE uint32_t two_half(float low, float high) {
  uint32_t y;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
  return y;
}
// Begins a copy of 4, 8 or 16 aligned bytes to shared memory; this thread sees it after cp_async_wait(), the block
// after the next barrier. 2 bytes have no such instruction and are copied at once.
template <int Bytes>
BDAM_DEVICE void cp_async(void* shared, const void* global) {
  static_assert(Bytes == 2 || Bytes == 4 || Bytes == 8 || Bytes == 16);
  if constexpr (Bytes == 2)
    *static_cast<uint16_t*>(shared) = *static_cast<const uint16_t*>(global);
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"((unsigned)__cvta_generic_to_shared(shared)),
                 "l"(global), "n"(Bytes)
                 : "memory");
}
// Begins a copy of the first `bytes` of 16 aligned bytes; the others become zeros and are not read.
BDAM_DEVICE void cp_async_part(void* shared, const void* global, int bytes) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 16, %2;" ::"r"((unsigned)__cvta_generic_to_shared(shared)),
               "l"(global), "r"(bytes)
               : "memory");
}
BDAM_DEVICE void cp_async_wait() { asm volatile("cp.async.wait_all;" ::: "memory"); }
// D (16 x 8) += A (16 x 8) B (8 x 8) of a warp; the low 13 bits of the factors are ignored. Lane l holds of A rows l /
// 4 and l / 4 + 8 in columns l % 4 (a0, a1) and l % 4 + 4 (a2, a3); of B column l / 4 in rows l % 4 and l % 4 + 4; of D
// rows l / 4 (d[0], d[1]) and l / 4 + 8 (d[2], d[3]) in columns 2 (l % 4) and the next.
BDAM_DEVICE void mma_tf32(float (&d)[4], float a0, float a1, float a2, float a3, float b0, float b1) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(__float_as_uint(a0)), "r"(__float_as_uint(a1)), "r"(__float_as_uint(a2)), "r"(__float_as_uint(a3)),
        "r"(__float_as_uint(b0)), "r"(__float_as_uint(b1)));
}
// The same with D starting from zero, for which the instruction needs no registers.
BDAM_DEVICE void mma_tf32_first(float (&d)[4], float a0, float a1, float a2, float a3, float b0, float b1) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%10,%10,%10,%10};"
      : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
      : "r"(__float_as_uint(a0)), "r"(__float_as_uint(a1)), "r"(__float_as_uint(a2)), "r"(__float_as_uint(a3)),
        "r"(__float_as_uint(b0)), "r"(__float_as_uint(b1)), "f"(0.f));
}
BDAM_DEVICE void check_aligned(const void*, size_t) {}
#endif

// --- conversion; T is float, __half or __nv_bfloat16, for single parameters double too

BDAM_DEVICE float to_f(float v) { return v; }
BDAM_DEVICE float to_f(double v) { return static_cast<float>(v); }
BDAM_DEVICE float to_f(__half v) { return __half2float(v); }
BDAM_DEVICE float to_f(__nv_bfloat16 v) { return __bfloat162float(v); }

template <class T>
BDAM_DEVICE T from_f(float v);
template <>
BDAM_DEVICE float from_f<float>(float v) {
  return v;
}
template <>
BDAM_DEVICE double from_f<double>(float v) {
  return v;
}
template <>
BDAM_DEVICE __half from_f<__half>(float v) {
  return __float2half_rn(v);
}
template <>
BDAM_DEVICE __nv_bfloat16 from_f<__nv_bfloat16>(float v) {
  return __float2bfloat16_rn(v);
}

// V adjacent elements that are loaded and stored by one instruction (V * sizeof(T) is 2, 4, 8 or 16), at an address
// that is a multiple of its size.
template <class T, int V>
struct alignas(sizeof(T) * V) Pack {
  T v[V];
};

template <class T, int V>
BDAM_DEVICE void unpack(const Pack<T, V>& p, float (&r)[V]) {
#pragma unroll
  for (int i = 0; i < V; ++i) r[i] = to_f(p.v[i]);
}
// Two bf16 of a register become floats by one shift and one mask.
template <int V>
BDAM_DEVICE void unpack(const Pack<__nv_bfloat16, V>& p, float (&r)[V]) {
  if constexpr (V % 2 == 0) {
#pragma unroll
    for (int i = 0; i < V; i += 2) {
      uint32_t bits;
      memcpy(&bits, &p.v[i], sizeof bits);
      r[i] = __uint_as_float(bits << 16);
      r[i + 1] = __uint_as_float(bits & 0xffff0000u);
    }
  } else {
#pragma unroll
    for (int i = 0; i < V; ++i) r[i] = to_f(p.v[i]);
  }
}

BDAM_DEVICE uint32_t two_of(__nv_bfloat16, float low, float high) { return two_bf16(low, high); }
BDAM_DEVICE uint32_t two_of(__half, float low, float high) { return two_half(low, high); }
// 16-bit elements are rounded in pairs, by one instruction.
template <class T, int V>
BDAM_DEVICE Pack<T, V> pack(const float (&r)[V]) {
  Pack<T, V> p;
  if constexpr (sizeof(T) == 2 && V % 2 == 0) {
#pragma unroll
    for (int i = 0; i < V; i += 2) {
      const uint32_t bits = two_of(T{}, r[i], r[i + 1]);
      memcpy(&p.v[i], &bits, sizeof bits);
    }
  } else {
#pragma unroll
    for (int i = 0; i < V; ++i) p.v[i] = from_f<T>(r[i]);
  }
  return p;
}

template <int V, class T>
BDAM_DEVICE Pack<T, V> load_pack(const T* p) {
  check_aligned(p, sizeof(Pack<T, V>));
  return *reinterpret_cast<const Pack<T, V>*>(p);
}
template <class T, int V>
BDAM_DEVICE void store_pack(T* p, const Pack<T, V>& v) {
  check_aligned(p, sizeof(Pack<T, V>));
  *reinterpret_cast<Pack<T, V>*>(p) = v;
}
// The same with conversion: V elements of T in memory, floats in registers.
template <int V, class T>
BDAM_DEVICE void load(const T* p, float (&r)[V]) {
  unpack(load_pack<V>(p), r);
}
template <int V, class T>
BDAM_DEVICE void store(T* p, const float (&r)[V]) {
  store_pack(p, pack<T>(r));
}

// --- functions of the operators

// softplus is max(x, 0) + log(1 + t), t = e^-|x|: a polynomial for log(1 + t) / t on [0, 1] (3e-7 relative in float32),
// which leaves small steps their digits, and takes no second special function. Right at +-inf, NaN for NaN.
BDAM_DEVICE float softplus_of(float x, float t) {
  float p = fmaf(t, -0.0085392045f, 0.044089615f);
  p = fmaf(t, fmaf(t, fmaf(t, p, -0.10768169f), 0.1774524f), -0.24495462f);
  p = fmaf(t, fmaf(t, fmaf(t, p, 0.3327548f), -0.49997404f), 0.9999998f);
  return fmaf(t, p, fmaxf(x, 0.f));
}
BDAM_DEVICE float softplus(float x) { return softplus_of(x, ex2(-fabsf(x) * kLog2e)); }
// softplus and its derivative.
BDAM_DEVICE void softplus(float x, float& sp, float& dsp) {
  const float t = ex2(-fabsf(x) * kLog2e), r = rcp(1.f + t);
  sp = softplus_of(x, t);
  dsp = x > 0.f ? r : t * r;
}
// softplus(x ln 2) / ln 2: the same with log2(1 + t).
BDAM_DEVICE float binary_softplus(float x) {
  const float t = ex2(-fabsf(x));
  float p = fmaf(t, -0.012319467f, 0.06360787f);
  p = fmaf(t, fmaf(t, fmaf(t, p, -0.15535185f), 0.2560097f), -0.3533948f);
  p = fmaf(t, fmaf(t, fmaf(t, p, 0.4800637f), -0.7213101f), 1.4426948f);
  return fmaf(t, p, fmaxf(x, 0.f));
}
BDAM_DEVICE float sigmoid(float x) { return rcp(1.f + ex2(-x * kLog2e)); }
// A log2(e) of a state's A. Beyond the largest number it would be infinite, and NaN in a step of dt = 0.
BDAM_DEVICE float decay_rate(float A) {
  constexpr float kLargest = 3.4028234663852886e38f;
  const float rate = A * kLog2e;
  return rate < -kLargest ? -kLargest : rate > kLargest ? kLargest : rate;
}
// d silu(x) / dx, given s = sigmoid(x)
BDAM_DEVICE float silu_derivative(float x, float s) { return s * fmaf(x, 1.f - s, 1.f); }

// --- tensors

// A Stream whose element type is known: (batch, time, channel), strides in elements, any of them negative or zero.
template <class T>
struct View {
  T* data;
  int64_t batch, time, channel;

  BDAM_DEVICE T* at(int64_t b, int64_t t, int64_t d) const { return data + (b * batch + t * time + d * channel); }
};
template <class T>
__host__ BDAM_DEVICE View<T> view_of(const Stream& s) {
  return {reinterpret_cast<T*>(s.data), s.batch, s.time, s.channel};
}

}  // namespace bdam_fast::device
