// Small kernels that try the emulation and the helpers of common/device.cuh, some of them broken on purpose.
#pragma once
#include "common/device.cuh"

namespace bdam_fast::probe {

using namespace device;

constexpr int kThreads = 64;

// Reverses each block's 64 numbers through shared memory.
template <bool Barrier>
__global__ void __launch_bounds__(kThreads) reverse_block(const float* in, float* out) {
  BDAM_SHARED(float, tile);
  const int i = threadIdx.x, first = blockIdx.x * kThreads;
  tile[i] = in[first + i];
  if constexpr (Barrier) __syncthreads();
  out[first + i] = tile[kThreads - 1 - i];
}

// Half of the threads never come to the barrier.
__global__ void __launch_bounds__(kThreads) divergent_barrier(float* out) {
  if (threadIdx.x < kThreads / 2) __syncthreads();
  out[threadIdx.x] = 1.f;
}
__global__ void __launch_bounds__(kThreads) two_barriers(float* out) {
  if (threadIdx.x < kThreads / 2)
    __syncthreads();
  else
    __syncwarp();
  out[threadIdx.x] = 1.f;
}

__global__ void __launch_bounds__(kThreads) past_the_end(float* out, int n) { out[threadIdx.x + n] = 1.f; }
__global__ void __launch_bounds__(kThreads) past_the_shared_end(float* out) {
  BDAM_SHARED(float, tile);
  tile[threadIdx.x + 1] = 1.f;
  out[threadIdx.x] = tile[threadIdx.x];
}
__global__ void __launch_bounds__(kThreads) misaligned(const float* in, float* out) {
  float r[4];
  load<4>(in + 1, r);
  out[threadIdx.x] = r[0];
}

// out[4 * lane + i]: up, down, xor within 8 lanes and a broadcast of the lane's number
__global__ void shuffles(float* out) {
  const int lane = threadIdx.x;
  const float v = static_cast<float>(lane);
  float r[4] = {__shfl_up_sync(~0u, v, 3), __shfl_down_sync(~0u, v, 3), __shfl_xor_sync(~0u, v, 5, 8),
                __shfl_sync(~0u, v, 7)};
  store<4>(out + 4 * lane, r);
}
// Each half of the warp sums its own lanes.
__global__ void half_warp_sums(float* out) {
  const uint32_t mask = threadIdx.x < 16 ? 0x0000ffffu : 0xffff0000u;
  float v = static_cast<float>(threadIdx.x);
  for (int o = 8; o > 0; o /= 2) v += __shfl_xor_sync(mask, v, o);
  out[threadIdx.x] = v;
}

template <class T>
__global__ void convert(const float* in, float* out, int n) {
  for (int i = threadIdx.x; i < n; i += blockDim.x) out[i] = to_f(from_f<T>(in[i]));
}
__global__ void functions(const float* in, float* out, int n) {
  for (int i = threadIdx.x; i < n; i += blockDim.x) {
    softplus(in[i], out[i], out[n + i]);
    out[2 * n + i] = sigmoid(in[i]);
  }
}

// One 16 x 8 tile of A (row-major) times B (8 x 8, row-major).
__global__ void matrix_product(const float* a, const float* b, float* out) {
  const int row = threadIdx.x / 4, column = threadIdx.x % 4;
  float d[4] = {};
  mma_tf32(d, a[row * 8 + column], a[(row + 8) * 8 + column], a[row * 8 + column + 4], a[(row + 8) * 8 + column + 4],
           b[column * 8 + row], b[(column + 4) * 8 + row]);
  for (int i = 0; i < 4; ++i) out[(row + i / 2 * 8) * 8 + 2 * column + i % 2] = d[i];
}

template <bool Wait>
__global__ void __launch_bounds__(kThreads) copy_async(const float* in, float* out) {
  BDAM_SHARED(float, tile);
  const int i = threadIdx.x;
  cp_async<16>(tile + 4 * i, in + 4 * i);
  if constexpr (Wait) cp_async_wait();
  __syncthreads();
  out[i] = tile[4 * (kThreads - 1 - i)];
}

}  // namespace bdam_fast::probe
