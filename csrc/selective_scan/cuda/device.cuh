// Shared by the kernels of the selective scan: their parameters, the place of a block, the states of a thread and the
// projections B and C of a tile of steps. B batch, L length, D channels, N states, G groups.
//
// A thread owns NS states of a channel (forward) or of NC channels (backward) and walks the steps in order; LN threads
// share a channel, so that NP = NS * LN states are held. Where NP exceeds N, the surplus states have A = B = C = 0 and
// stay 0.
#pragma once
#include "common/device.cuh"
#include "selective_scan/cuda/launch.h"

namespace bdam_fast::device {

constexpr int kScanThreads = 128;

// The variant that a kernel is compiled for. `usual`: with softplus and z, without seq_idx. `general`: these looked up
// at run time. `constant`: also B or C the same in all steps, whose sums over the steps take registers.
enum class Case { usual, general, constant };

// B or C: per step (B, G, N, L) as (batch, time, state), or constant (D, N) in float32.
template <class T>
struct ProjectionView {
  View<const T> steps;
  int64_t group;              // stride between groups
  View<const float> channel;  // (D, N): time = state
  bool constant;
};

template <class T>
struct ScanViews {
  View<const T> u, delta, z;  // without z (gated is false) u stands in its place, to save branches
  ProjectionView<T> B, C;
  View<const float> A;           // (D, N): time = state
  View<const float> skip, bias;  // (D,); data may be null
  View<const float> first;       // (B, D, N): the state before the first step; data may be null
  const int8_t* steps;           // [B][L] ScanStep in processed order; null without seq_idx
  float* checkpoint;             // [B][tiles][NP / 4][D][4]: the states before the tiles; null if nothing is saved
  float* chunk_state;     // [chunks][B][D][NP]: the state that enters a chunk, or (pass state or carry) leaves it
  float* chunk_decay;     // [chunks][B][D][2]: sum of dt, and 0 if a reset stands in the chunk, else 1
  int64_t length, chunk;  // chunk: steps of a block, a multiple of kCudaChunkUnit
  int batch, channels, states, groups, group_channels, blocks;  // blocks: of a batch item and group
  bool softplus, gated;
  bool time_first;  // scalar access: lanes go along the steps, which are closer in memory than the channels
};

// In a block that is rarely run: else its assignments become selections, which all others pay for.
BDAM_DEVICE void prefer_branch() { asm volatile("" ::: "memory"); }

// Which channels of which batch item and group, and which steps, a block works on.
struct Place {
  int batch, group, block, chunk;
  int first, count;  // channels
  int64_t begin;     // first step
  int steps;         // of this chunk
};
template <class T>
BDAM_DEVICE Place place_of(const ScanViews<T>& p, int block_channels) {
  Place q;
  const unsigned row = blockIdx.x / p.blocks;  // a batch item and group
  q.block = blockIdx.x % p.blocks;
  q.batch = row / p.groups;
  q.group = row % p.groups;
  q.chunk = blockIdx.y;
  const int within = q.block * block_channels;
  q.first = q.group * p.group_channels + within;
  q.count = p.group_channels - within < block_channels ? p.group_channels - within : block_channels;
  q.begin = q.chunk * p.chunk;
  q.steps = static_cast<int>(p.length - q.begin < p.chunk ? p.length - q.begin : p.chunk);
  return q;
}

// State i of a thread that is the s-th of a channel's LN: quads of states go around the threads, so that a warp reads
// B, C and writes saved states in runs of 16 bytes.
template <int LN>
BDAM_DEVICE int state_index(int s, int i) {
  return (i / 4 * LN + s) * 4 + i % 4;
}

// B and C of a tile of steps on their way to shared memory, [step][B or C][NP] floats. Lanes go along the states.
// Offset: int where an offset within a batch item fits.
template <class T, int NP, class Offset>
struct Projections {
  static constexpr int kRow = 2 * NP, kEach = kCudaTile * kRow / kScanThreads;
  static constexpr bool kWhole = kRow <= kScanThreads;  // a thread keeps to one of B and C and to one state
  static constexpr int kRows = kWhole ? kScanThreads / kRow : 1;
  static_assert(kCudaTile * kRow % kScanThreads == 0 && (kWhole || kRow % kScanThreads == 0));
  T value[kEach];
  const T* data;  // of the first item at step `begin`
  Offset time;
  int end;  // steps from here on are absent; 0 for a surplus state

  BDAM_DEVICE static int step(int i) {
    return kWhole ? static_cast<int>(threadIdx.x) / kRow + i * kRows : i / (kRow / kScanThreads);
  }
  BDAM_DEVICE static int column(int i) {
    return kWhole ? static_cast<int>(threadIdx.x) % kRow
                  : static_cast<int>(threadIdx.x) + i % (kRow / kScanThreads) * kScanThreads;
  }
  BDAM_DEVICE static const T* at(const ScanViews<T>& p, const Place& place, int column, int64_t l) {
    const ProjectionView<T>& q = column < NP ? p.B : p.C;
    return q.steps.at(place.batch, l, column % NP) + place.group * q.group;
  }
  // Steps count up from `begin` or, with direction -1, down.
  BDAM_DEVICE Projections(const ScanViews<T>& p, const Place& place, int64_t begin, int direction, int length) {
    const ProjectionView<T>& q = column(0) < NP ? p.B : p.C;
    data = at(p, place, column(0), begin);
    time = direction * static_cast<Offset>(q.steps.time);
#pragma unroll
    for (int i = 0; i < kEach; ++i) value[i] = from_f<T>(0.f);
    end = kWhole && (column(0) % NP >= p.states || q.constant) ? 0 : length;
  }
  // Zero past the end, in padding and in surplus states: nothing there may reach a sum, not even NaN.
  template <Case K>
  BDAM_DEVICE void fetch(const ScanViews<T>& p, const Place& place, int64_t begin, int direction, int first) {
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const int l = first + step(i);
      bool present = l < end;
      const T* source = data + l * time;
      if (!kWhole && present) {
        const ProjectionView<T>& q = column(i) < NP ? p.B : p.C;
        present = column(i) % NP < p.states && !q.constant;
        source = at(p, place, column(i), begin + direction * l);
      }
      if (K != Case::usual && present && p.steps)
        present = p.steps[place.batch * p.length + begin + direction * l] != kPadding;
      value[i] = from_f<T>(0.f);
      if (present) value[i] = *source;
    }
  }
  BDAM_DEVICE void stash(float* shared) const {
#pragma unroll
    for (int i = 0; i < kEach; ++i) shared[step(i) * kRow + column(i)] = to_f(value[i]);
  }
};

// A block's way to read and write (B, D, L) tensors: vectors of adjacent channels, vectors of adjacent steps, or
// elements one by one with any strides.
enum class Access { channel_vectors, time_vectors, scalar };

}  // namespace bdam_fast::device
