// Stands in for the CUDA toolkit's header of this name: the part of the language and of the run-time library that the
// kernels use, on the CPU (host_fibers.h). The kernels' sources are compiled unchanged by a C++ compiler, with this
// folder in front of the include path and BDAM_CUDA_HOST defined.
#pragma once
#include <algorithm>
#include <cmath>
#include <map>

#include "host_fibers.h"

#define __global__
#define __device__
#define __host__
#define __constant__ static
#define __shared__ static  // blocks run one after another; unlike dynamic shared memory it is not NaN at their start
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __align__(n) alignas(n)

#define threadIdx (host_cuda::state.current->index)
#define blockIdx (host_cuda::state.block_index)
#define blockDim (host_cuda::state.block)
#define gridDim (host_cuda::state.grid)

// --- barriers and shuffles; macros, so that messages name the line

#define HOST_CUDA_PLACE (host_cuda::Place{__FILE__, __LINE__})
#define __syncthreads() host_cuda::wait_for_block(HOST_CUDA_PLACE)
#define __syncwarp(...) host_cuda::wait_for_warp(host_cuda::mask_or_all(__VA_ARGS__), HOST_CUDA_PLACE)
#define __shfl_sync(mask, ...) host_cuda::shuffle_indexed(mask, HOST_CUDA_PLACE, __VA_ARGS__)
#define __shfl_xor_sync(mask, ...) host_cuda::shuffle_xor(mask, HOST_CUDA_PLACE, __VA_ARGS__)
#define __shfl_up_sync(mask, ...) host_cuda::shuffle_up(mask, HOST_CUDA_PLACE, __VA_ARGS__)
#define __shfl_down_sync(mask, ...) host_cuda::shuffle_down(mask, HOST_CUDA_PLACE, __VA_ARGS__)

namespace host_cuda {

inline uint32_t mask_or_all(uint32_t mask = ~0u) { return mask; }

// The value of lane `source`, which `width` lanes from `base` on may be asked for; one's own where it lies outside.
template <class T>
T shuffle(uint32_t mask, Place place, T value, int source, int lowest, int end) {
  const int lane = static_cast<int>(state.current->lane());
  const int from = source < lowest || source >= end ? lane : source;
  return exchange(mask, value, place, [&](const auto& of) { return of(from); });
}
inline int base_lane(int width) { return static_cast<int>(state.current->lane()) & ~(width - 1); }
template <class T>
T shuffle_indexed(uint32_t mask, Place place, T value, int source, int width = kWarp) {
  const int base = base_lane(width);
  return shuffle(mask, place, value, base + (source & (width - 1)), base, base + width);
}
template <class T>
T shuffle_xor(uint32_t mask, Place place, T value, int bits, int width = kWarp) {
  return shuffle(mask, place, value, static_cast<int>(state.current->lane()) ^ bits, 0, base_lane(width) + width);
}
template <class T>
T shuffle_up(uint32_t mask, Place place, T value, unsigned delta, int width = kWarp) {
  const int base = base_lane(width), lane = static_cast<int>(state.current->lane());
  return shuffle(mask, place, value, lane - static_cast<int>(delta), base, base + width);
}
template <class T>
T shuffle_down(uint32_t mask, Place place, T value, unsigned delta, int width = kWarp) {
  const int base = base_lane(width), lane = static_cast<int>(state.current->lane());
  return shuffle(mask, place, value, lane + static_cast<int>(delta), base, base + width);
}

}  // namespace host_cuda

// --- single instructions

template <class T>
inline T __ldg(const T* p) {
  return *p;
}
inline float __uint_as_float(uint32_t bits) {
  float f;
  std::memcpy(&f, &bits, sizeof f);
  return f;
}
inline uint32_t __float_as_uint(float f) {
  uint32_t bits;
  std::memcpy(&bits, &f, sizeof f);
  return bits;
}
using std::max;
using std::min;

// --- the run-time library

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorInvalidConfiguration = 9 };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };

namespace host_cuda {

inline cudaError_t last_error = cudaSuccess;
inline std::map<const void*, size_t> shared_limits;  // raised by cudaFuncSetAttribute
constexpr size_t kSharedDefault = 48 << 10, kSharedMost = 227 << 10;

// kernel<<<grid, block, shared_bytes>>>(arguments of body); refuses what a GPU would refuse.
inline void launch(const void* kernel, const char* name, dim3 grid, dim3 block, size_t shared_bytes,
                   std::function<void()> body) {
  const auto limit = shared_limits.find(kernel);
  const unsigned threads = threads_of(block);
  if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535 ||
      threads == 0 || threads > 1024 || block.z > 64)
    last_error = cudaErrorInvalidConfiguration;
  else if (shared_bytes > (limit == shared_limits.end() ? kSharedDefault : limit->second))
    last_error = cudaErrorInvalidValue;
  else
    run_grid(name, grid, block, shared_bytes, std::move(body));
}

}  // namespace host_cuda

inline cudaError_t cudaGetLastError() {
  const cudaError_t error = host_cuda::last_error;
  host_cuda::last_error = cudaSuccess;
  return error;
}
inline const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaSuccess             ? "no error"
         : error == cudaErrorInvalidValue ? "invalid argument"
                                          : "invalid configuration argument";
}
template <class Kernel>
inline cudaError_t cudaFuncSetAttribute(Kernel* kernel, cudaFuncAttribute, int bytes) {
  if (bytes < 0 || static_cast<size_t>(bytes) > host_cuda::kSharedMost) return cudaErrorInvalidValue;
  host_cuda::shared_limits[reinterpret_cast<const void*>(kernel)] = bytes;
  return cudaSuccess;
}
