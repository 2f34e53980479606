// Small kernels before and between the passes of the selective scan: kinds of steps, and states that enter the chunks.
#pragma once
#include "selective_scan/cuda/device.cuh"

namespace bdam_fast::device {

constexpr int kPlainThreads = 256;

// seq_idx (B, L), in processed order, as ScanStep. A padded step (negative) is skipped; a step whose index differs from
// that of the step processed before it starts from a zero state. Padding before a step is walked back over: few steps,
// as a rule.
static __global__ void scan_steps(const int32_t* index, int64_t batch_stride, int64_t time_stride, int64_t batch,
                                  int64_t length, int8_t* steps) {
  const int64_t count = batch * length;
  for (int64_t e = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x; e < count;
       e += static_cast<int64_t>(gridDim.x) * blockDim.x) {
    const int32_t* row = index + e / length * batch_stride;
    const int64_t t = e % length;
    const int32_t own = row[t * time_stride];
    int64_t before = t - 1;
    while (before >= 0 && row[before * time_stride] < 0) --before;
    steps[e] = own < 0 ? kPadding : before >= 0 && row[before * time_stride] != own ? kReset : kStep;
  }
}

// From the state that leaves each chunk entered by a zero state, to the state that really enters each: with exp(A sum
// dt) for the decay over a chunk, or 0 where a sequence ends in it. Forward from the first chunk with `first`, or, for
// the gradient of the state, from the last chunk with `first` = d last_state. In place.
struct ChunkViews {
  View<const float> A, first;  // first.data may be null
  float *state, *decay;
  int chunks, batch, channels, states, padded;
  bool backward;
};
static __global__ void combine_chunks(ChunkViews p) {
  const int64_t rows = static_cast<int64_t>(p.batch) * p.channels, count = rows * p.padded;
  for (int64_t e = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x; e < count;
       e += static_cast<int64_t>(gridDim.x) * blockDim.x) {
    const int64_t row = e / p.padded;
    const int n = e % p.padded, channel = row % p.channels;
    const bool present = n < p.states;
    const float a = present ? decay_rate(*p.A.at(0, n, channel)) : 0.f;
    float enters = p.first.data && present ? *p.first.at(row / p.channels, n, channel) : 0.f;
    for (int i = 0; i < p.chunks; ++i) {
      const int c = p.backward ? p.chunks - 1 - i : i;
      float& place = p.state[(c * rows + row) * p.padded + n];
      const float leaves = i + 1 < p.chunks ? place : 0.f;  // that of the last one is not known, nor needed
      const float* decay = p.decay + (c * rows + row) * 2;
      place = enters;
      // A state of zero stays so, whatever the decay over the chunk: that of a growing state may be infinite.
      if (i + 1 < p.chunks)
        enters = decay[1] == 0.f || enters == 0.f ? leaves : fmaf(ex2(a * decay[0]), enters, leaves);
    }
  }
}

}  // namespace bdam_fast::device
