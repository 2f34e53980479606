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
  float* checkpoint;   // [B][saved][NP / 4][D][4]: the states before every tile or second one; null if nothing is saved
  float* chunk_state;  // [chunks][B][D][NP]: the state that enters a chunk, or (pass state or carry) leaves it
  float* chunk_decay;  // [chunks][B][D][2]: sum of dt, and 0 if a reset stands in the chunk, else 1
  int64_t length, chunk;                                        // chunk: steps of a block, a multiple of kCudaChunkUnit
  int64_t saved_rows;                                           // of a batch item in `checkpoint`
  int batch, channels, states, groups, group_channels, blocks;  // blocks: of a batch item and group
  bool softplus, gated;
  int saved_shift;  // log2 of the steps from one saved state to the next
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

// A log2(e) of the state at `A`, which moves on to the next, or 0 of a state that is not there.
template <class T>
BDAM_DEVICE float next_rate(const ScanViews<T>& p, const float*& A, bool present) {
  const float value = present ? *A : 0.f;
  A += p.A.time;
  return decay_rate(value);
}

// State i of a thread that is the s-th of a channel's LN: quads of states go around the threads, so that a warp reads
// B, C and writes saved states in runs of 16 bytes.
template <int LN>
BDAM_DEVICE int state_index(int s, int i) {
  return (i / 4 * LN + s) * 4 + i % 4;
}

// Which of B and C a pass reads.
enum class Read { both, B, C };

// B and C of a tile of steps on their way to shared memory, [step][B or C][NP] floats. Lanes go along the states.
// Offset: int where an offset within a batch item fits.
template <class T, int NP, class Offset, Read R = Read::both>
struct Projections {
  static constexpr int kRow = (R == Read::both ? 2 : 1) * NP, kEach = kCudaTile * kRow / kScanThreads;
  static constexpr bool kWhole = kRow <= kScanThreads;  // a thread keeps to one of B and C and to one state
  static constexpr int kRows = kWhole ? kScanThreads / kRow : 1;
  static_assert(kCudaTile * kRow % kScanThreads == 0 && (kWhole || kRow % kScanThreads == 0));
  T value[kEach];
  const T* data;  // of the first item, if it stood at step `begin`
  Offset time;
  int end;  // steps from here on are absent; 0 for a surplus state

  BDAM_DEVICE static int step(int i) {
    return kWhole ? static_cast<int>(threadIdx.x) / kRow + i * kRows : i / (kRow / kScanThreads);
  }
  BDAM_DEVICE static int column(int i) {
    return kWhole ? static_cast<int>(threadIdx.x) % kRow
                  : static_cast<int>(threadIdx.x) + i % (kRow / kScanThreads) * kScanThreads;
  }
  BDAM_DEVICE static const ProjectionView<T>& view(const ScanViews<T>& p, int column) {
    return R == Read::B || (R == Read::both && column < NP) ? p.B : p.C;
  }
  BDAM_DEVICE static const T* at(const ScanViews<T>& p, const Place& place, int column, int64_t l) {
    const ProjectionView<T>& q = view(p, column);
    return q.steps.at(place.batch, l, column % NP) + place.group * q.group;
  }
  // Steps count up from `begin` or, with direction -1, down.
  BDAM_DEVICE Projections(const ScanViews<T>& p, const Place& place, int64_t begin, int direction, int length) {
    const ProjectionView<T>& q = view(p, column(0));
    data = at(p, place, column(0), begin);
    time = direction * static_cast<Offset>(q.steps.time);
#pragma unroll
    for (int i = 0; i < kEach; ++i) value[i] = from_f<T>(0.f);
    end = kWhole && (column(0) % NP >= p.states || q.constant) ? 0 : length;
  }
  // The same for a walk that fetches one tile after another, each by the offset 0.
  BDAM_DEVICE void move_on() { data += kCudaTile * time; }
  // Zero past the end, in padding and in surplus states: nothing there may reach a sum, not even NaN. `offset` is the
  // distance of step `first` from where `data` stands.
  template <Case K>
  BDAM_DEVICE void fetch(const ScanViews<T>& p, const Place& place, int64_t begin, int direction, int first,
                         int offset) {
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const int l = first + step(i);
      bool present = l < end;
      const T* source = data + (offset + step(i)) * time;
      if (!kWhole && present) {
        const ProjectionView<T>& q = view(p, column(i));
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

// A block's way to read and write (B, D, L) tensors: vectors of adjacent channels, vectors of adjacent steps, rows of
// adjacent steps (Rows), or elements one by one with any strides.
enum class Access { channel_vectors, time_vectors, rows, scalar };

// Steps of a channel that lie side by side in memory, upwards or (direction -1) downwards, from any element on: a tile
// of them lies in kWords aligned words of 16 bytes, which are copied: upwards the bytes that hold its steps and what
// lies before them in the first word, downwards whole words. No read leaves the tensor by more than the alignment of
// all memory.
template <class T>
struct Rows {
  static constexpr int kWide = 16 / sizeof(T), kWords = kCudaTile / kWide + 1, kElements = kWords * kWide;

  // A tile's first step among the elements of its words, `first` its address.
  BDAM_DEVICE static int place(const T* first, int direction) {
    const T* const lowest = direction > 0 ? first : first - (kCudaTile - 1);
    const int odd = static_cast<int>(reinterpret_cast<uintptr_t>(lowest) / sizeof(T) % kWide);
    return direction > 0 ? odd : odd + kCudaTile - 1;
  }
  // True if all words of the tile from step `first` on, which go downwards, lie within the row.
  BDAM_DEVICE static bool inside(int first, int length) { return first >= kWide && first + kCudaTile <= length; }
  // Begins to copy a tile of N tensors, `plane` elements apart, of which `count` steps exist.
  template <int N>
  BDAM_DEVICE static void copy(T* shared, int plane, const T* const (&words)[N], int place, int direction, int count,
                               bool inside) {
    if (direction > 0) {
      // Only bytes of steps that exist, so that no tile is a special one and an aligned one asks for no last word.
      if (count <= 0) return;
      const int bytes = (place + (count < kCudaTile ? count : kCudaTile)) * static_cast<int>(sizeof(T));
#pragma unroll
      for (int w = 0; w < kWords; ++w) {
        const int rest = bytes - 16 * w, part = rest < 0 ? 0 : rest < 16 ? rest : 16;
#pragma unroll
        for (int q = 0; q < N; ++q) cp_async_part(shared + q * plane + w * kWide, words[q] + w * kWide, part);
      }
    } else if (inside) {
      // No step of an aligned tile lies in the last word: the one before is read again, which takes less than a branch.
      const int last = (place == kCudaTile - 1 ? kWords - 2 : kWords - 1) * kWide;
#pragma unroll
      for (int q = 0; q < N; ++q) {
#pragma unroll
        for (int w = 0; w < kWords - 1; ++w) cp_async<16>(shared + q * plane + w * kWide, words[q] + w * kWide);
        cp_async<16>(shared + q * plane + (kWords - 1) * kWide, words[q] + last);
      }
    } else {
      int e = place;
      asm volatile("" : "+r"(e)::"memory");  // else pointers to it would be kept over the whole walk
#pragma unroll 1
      for (int t = 0; t < kCudaTile && t < count; ++t, --e)
#pragma unroll
        for (int q = 0; q < N; ++q) cp_async<sizeof(T)>(shared + q * plane + e, words[q] + e);
    }
  }
};

}  // namespace bdam_fast::device
