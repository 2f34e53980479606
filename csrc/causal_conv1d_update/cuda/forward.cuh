// The convolution's step on a GPU: a thread owns one channel of one batch item, reads its state into registers, walks
// over the steps and then moves the state. Nobody else reads or writes that state.
#pragma once
#include "causal_conv1d/cuda/forward.cuh"
#include "causal_conv1d_update/cuda/launch.h"

namespace bdam_fast::causal_conv1d_update {

using namespace device;

constexpr int kThreads = 128;

// T is the type of x and out, S that of the state.
template <class T, class S>
BDAM_DEVICE void update_channel(const ConvUpdateParams& p, int64_t b, int d) {
  constexpr int W = causal_conv1d::kGeneric;
  const causal_conv1d::Taps<1, W> taps(p.weight, p.bias, p.width, d, true);
  const auto state = view_of<S>(p.state);
  const auto x = view_of<const T>(p.x);
  const auto out = view_of<T>(p.out);
  float q[W][1];
#pragma unroll
  for (int i = 0; i < W - 1; ++i) q[i][0] = i >= taps.skip ? to_f(*state.at(b, p.entries - (W - 1) + i, d)) : 0.f;
  for (int64_t t = 0; t < p.length; ++t) {
    q[W - 1][0] = to_f(*x.at(b, t, d));
    const float s = taps.filter(q, 0);
    *out.at(b, t, d) = from_f<T>(p.silu ? s * sigmoid(s) : s);
    causal_conv1d::shift<1, W>(q);
  }
  // Entry j is the one that stood `length` entries later, in the state or in x.
  for (int64_t j = 0; j < p.entries; ++j) {
    const int64_t t = j + p.length - p.entries;
    *state.at(b, j, d) = t < 0 ? *state.at(b, j + p.length, d) : from_f<S>(to_f(*x.at(b, t, d)));
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads) update(const ConvUpdateParams p) {
  const unsigned groups = (static_cast<unsigned>(p.channels) + kThreads - 1) / kThreads;
  const int64_t b = blockIdx.x / groups;
  const int d = static_cast<int>(blockIdx.x % groups * kThreads + threadIdx.x);
  if (d >= p.channels) return;
  BDAM_SWITCH_PARAMETER_DTYPE(p.state.dtype, S, (update_channel<T, S>(p, b, d)));
}

}  // namespace bdam_fast::causal_conv1d_update
