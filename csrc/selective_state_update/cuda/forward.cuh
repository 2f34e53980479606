// One step of the selective scan on a GPU, the state updated in place: kUpdateLanes threads share a channel, whose
// states go around them, so that a warp reads the states of four channels in runs. Memory-bound: the state is read and
// written once.
#pragma once
#include "common/device.cuh"
#include "selective_state_update/selective_state_update.h"

namespace bdam_fast::device {

constexpr int kUpdateThreads = 128, kUpdateLanes = 8;

BDAM_DEVICE float state_to_f(double v) { return static_cast<float>(v); }
template <class S>
BDAM_DEVICE float state_to_f(S v) {
  return to_f(v);
}
BDAM_DEVICE void store_state(double* p, float v) { *p = v; }
template <class S>
BDAM_DEVICE void store_state(S* p, float v) {
  *p = from_f<S>(v);
}

template <class T, class S>
struct UpdateViews {
  View<S> state;                                 // (B, D, N): time = state
  View<const T> x, dt, z;                        // (B, D); z.data may be null
  View<T> out;                                   // (B, D)
  View<const float> A, skip, bias;               // (D, N): time = state; (D,), data may be null
  View<const T> B, C;                            // (B, G, N): time = group, channel = state
  int64_t rows;                                  // B * D
  int channels, states, B_channels, C_channels;  // of a group of B and of C
  bool softplus;
};

template <class T, class S>
__global__ void __launch_bounds__(kUpdateThreads) state_update(UpdateViews<T, S> p) {
  const int lane = threadIdx.x % kUpdateLanes;
  const int64_t row = blockIdx.x * static_cast<int64_t>(kUpdateThreads / kUpdateLanes) + threadIdx.x / kUpdateLanes;
  const bool live = row < p.rows;
  const int64_t b = live ? row / p.channels : 0;
  const int d = live ? static_cast<int>(row % p.channels) : 0;
  const float x = to_f(*p.x.at(b, 0, d)), raw = to_f(*p.dt.at(b, 0, d)) + (p.bias.data ? *p.bias.at(0, 0, d) : 0.f);
  float dt = raw, unused;
  if (p.softplus) softplus(raw, dt, unused);
  float y = 0.f;
  for (int n = lane; live && n < p.states; n += kUpdateLanes) {
    S* const place = p.state.at(b, n, d);
    const float e = ex2(dt * decay_rate(*p.A.at(0, n, d)));
    const float h = fmaf(e, state_to_f(*place), dt * x * to_f(*p.B.at(b, d / p.B_channels, n)));
    y = fmaf(h, to_f(*p.C.at(b, d / p.C_channels, n)), y);
    store_state(place, h);
  }
#pragma unroll
  for (int o = 1; o < kUpdateLanes; o *= 2) y += __shfl_xor_sync(0xffffffffu, y, o);
  if (!live || lane != 0) return;
  if (p.skip.data) y = fmaf(*p.skip.at(0, 0, d), x, y);
  if (p.z.data) {
    const float z = to_f(*p.z.at(b, 0, d));
    y *= z * sigmoid(z);
  }
  *p.out.at(b, 0, d) = from_f<T>(y);
}

}  // namespace bdam_fast::device
