// Parts of the backward of the selective scan: its views, its shared memory, the elementwise role of a thread, and the
// sums over the channels of a block.
#pragma once
#include <type_traits>

#include "selective_scan/cuda/device.cuh"

namespace bdam_fast::device {

constexpr int kHalf = kCudaTile / 2;

template <class T>
struct BackwardViews : ScanViews<T> {
  View<const T> dout;
  View<T> du, ddelta, dz;
  View<const float> dlast;             // (B, D, N); data may be null
  View<float> dfirst;                  // (B, D, N); data may be null
  float *sum_B, *sum_C;                // [B][G][blocks][L][NP], or constant: [chunks][B][D][NP]
  float *sum_A, *sum_skip, *sum_bias;  // [chunks][B][D][NP], [chunks][B][D] twice; the last two may be null
};

// Sizes and places in shared memory, in floats.
template <class T, int NC, int NS, int LN, int V, Access A, Case K>
struct BackwardLayout {
  static constexpr int kThreads = kScanThreads, kTile = kCudaTile, NP = NS * LN, kOwn = NC, kHeld = NS, kVector = V;
  static constexpr int kGroups = kThreads / LN, kChannels = NC * kGroups;
  static constexpr int kPitch = kChannels + 8;  // rows of threads meet in different banks
  // So do steps of a channel. Vectors do without: in float32 the block just fits the 99 kB of an sm_86, sm_89 or
  // sm_120.
  static constexpr int kStepPitch = A == Access::scalar ? kPitch : kChannels;
  static constexpr bool kTensorCore = std::is_same_v<T, __nv_bfloat16> && NS == 4 && LN == 4 && K != Case::constant;
  static constexpr int kYRows = kTensorCore ? 1 : LN;
  static constexpr int kItems = kHalf * kChannels / V;  // vectors of half a tile
  static constexpr int kEach = kItems > kThreads ? kItems / kThreads : 1;
  static constexpr int kInputs = 4, kKept = 3;  // u, delta, z, d out; u, d dt / d delta, d out y / d z
  static constexpr Access kAccess = A;
  static constexpr bool kAlongSteps = A == Access::time_vectors || A == Access::rows;  // so are the vectors
  static constexpr int kRaw = A == Access::scalar ? 2 * kEach * kThreads               // of one input
                              : A == Access::rows ? kChannels * Rows<T>::kElements
                                                  : kTile * kChannels;

  static constexpr int dt = 0, xu = dt + kTile * kStepPitch, dy = xu + kTile * kStepPitch;
  static constexpr int bc = dy + kTile * kStepPitch;                     // [step][B or C][NP]
  static constexpr int c_pairs = bc + kTile * 2 * NP;                    // [step][NP]: C for the tensor cores
  static constexpr int y = c_pairs + (kTensorCore ? kTile * NP : 0);     // [half's step][kYRows][kPitch]
  static constexpr int dxu = y + kHalf * kYRows * kPitch;                // [half's step][LN][kPitch]
  static constexpr int ddt = dxu + kHalf * LN * kPitch;                  // the same
  static constexpr int dbc = ddt + kHalf * LN * kPitch;                  // [half's step][B or C][kGroups][NP]
  static constexpr int kept = dbc + kHalf * 2 * kGroups * NP;            // [2 * kEach][kKept][thread][V]
  static constexpr int saved = kept + 2 * kEach * kKept * kThreads * V;  // [channel][thread][NS]
  static constexpr int vectors = saved + NC * kThreads * NS;             // D and bias of the channels
  static constexpr int kinds = vectors + 2 * kChannels;                  // [kTile]
  static constexpr int bases = kinds + kTile;                            // [10] pointers
  // Vectors: each thread's own pointers, [thread][2] of u, delta; of z, d out; of du, ddelta; [thread] of dz
  static constexpr int pointers = bases + 20;
  // Elements of T, for each input: [2 * kEach][thread], or [step][channel], or [channel][step], or the words of Rows
  static constexpr int raw = pointers + (A == Access::scalar ? 0 : 7 * kThreads * 2);
  static constexpr size_t bytes = raw * sizeof(float) + kInputs * kRaw * sizeof(T);
};

// The elementwise role of a thread: vectors of V adjacent channels (of one step) or V adjacent steps (of one channel).
template <class Layout, int V, Access A>
struct Items {
  int step, channel, steps_between, channels_between;
  bool time_first;

  BDAM_DEVICE explicit Items(bool scalar_time_first) {
    const int thread = threadIdx.x;
    time_first = Layout::kAlongSteps || (A == Access::scalar && scalar_time_first);
    if (time_first) {
      constexpr int kVectors = kHalf / V;
      step = thread % kVectors * V, channel = thread / kVectors;
      steps_between = 0, channels_between = Layout::kThreads / kVectors;
    } else {
      constexpr int kVectors = Layout::kChannels / V;
      step = thread / kVectors, channel = thread % kVectors * V;
      steps_between = Layout::kThreads / kVectors, channels_between = 0;
    }
  }
  // Item i of half `half`: its step in the tile and its channel in the block
  BDAM_DEVICE int step_of(int half, int i) const { return half * kHalf + step + i * steps_between; }
  BDAM_DEVICE int channel_of(int i) const { return channel + i * channels_between; }
  // [step][kStepPitch] arrays in shared memory
  BDAM_DEVICE static void put(float* array, int t, int c, const float (&x)[V]) {
    if constexpr (Layout::kAlongSteps) {
#pragma unroll
      for (int v = 0; v < V; ++v) array[(t + v) * Layout::kStepPitch + c] = x[v];
    } else {
      store<V>(array + t * Layout::kStepPitch + c, x);
    }
  }
  BDAM_DEVICE static void get(const float* array, int t, int pitch, int c, float (&x)[V]) {
    if constexpr (Layout::kAlongSteps) {
#pragma unroll
      for (int v = 0; v < V; ++v) x[v] = array[(t + v) * pitch + c];
    } else {
      load<V>(array + t * pitch + c, x);
    }
  }
  // Sum of x over the `Count` rows of step t
  template <int Count>
  BDAM_DEVICE static void add(const float* array, int t, int c, float (&sum)[V]) {
    get(array, t, Count * Layout::kPitch, c, sum);
#pragma unroll
    for (int r = 1; r < Count; ++r) {
      float more[V];
      get(array + r * Layout::kPitch, t, Count * Layout::kPitch, c, more);
#pragma unroll
      for (int v = 0; v < V; ++v) sum[v] += more[v];
    }
  }
};

struct alignas(16) TwoPointers {
  const void *first, *second;
};
// Address l steps and c channels from a block's first, where such offsets fit an int.
template <class U>
BDAM_DEVICE U* near(const Place& at, const View<U>& v, int l, int c) {
  return v.at(at.batch, at.begin, at.first) + (l * static_cast<int>(v.time) + c * static_cast<int>(v.channel));
}
template <class Layout>
BDAM_DEVICE TwoPointers& own_pointers(float* shared, int pair) {
  return reinterpret_cast<TwoPointers*>(shared + Layout::pointers)[pair * Layout::kThreads + threadIdx.x];
}
template <class Layout>
BDAM_DEVICE const void*& last_pointer(float* shared) {
  return reinterpret_cast<const void**>(shared + Layout::pointers + 3 * Layout::kThreads * 4)[threadIdx.x];
}
// Element `l` steps further on, within a batch item
template <class U>
BDAM_DEVICE U* later(const void* p, const View<U>& v, int l) {
  const int step = static_cast<int>(v.time) * static_cast<int>(sizeof(U));
  return reinterpret_cast<U*>(static_cast<char*>(const_cast<void*>(p)) + static_cast<int64_t>(l) * step);
}

// The gradient of the state after the chunk's last step, of the states of a thread: the s-th of those that share the
// channels of group g.
template <int NC, int NS, int NP, class T>
BDAM_DEVICE void enter_from_behind(const BackwardViews<T>& p, const Place& at, int g, int s, float (&carry)[NC][NS]) {
  const int64_t row = (static_cast<int64_t>(at.chunk) * p.batch + at.batch) * p.channels + at.first;
  if (at.begin + at.steps < p.length) {
    prefer_branch();
#pragma unroll
    for (int c = 0; c < NC; ++c)
      if (g * NC + c < at.count) load<NS>(p.chunk_state + (row + g * NC + c) * NP + s * NS, carry[c]);
  } else if (p.dlast.data) {
    prefer_branch();
#pragma unroll
    for (int c = 0; c < NC; ++c) {
      const float* from = p.dlast.at(at.batch, s * NS, at.first + g * NC + c);
#pragma unroll
      for (int i = 0; i < NS; ++i, from += p.dlast.time)
        if (g * NC + c < at.count && s * NS + i < p.states) carry[c][i] = *from;
    }
  }
}

// The sums over the block's channels for dB and dC (targets[0] and [1], null if constant) of the half tile from step
// `first` on. A thread adds quads of states of a (step, B or C) over its share of the groups of channels; then the
// kShare sharers combine.
template <class Layout, bool Constant, class Offset>
BDAM_DEVICE void add_groups(const float* dbc, const void* const* targets, int first, int end) {
  constexpr int NP = Layout::NP, kThreads = Layout::kThreads, kQuads = NP / 4, kWork = kHalf * 2 * kQuads,
                kRatio = kThreads / kWork;
  constexpr int kShare = kRatio > 8 ? 8 : kRatio > 0 ? kRatio : 1, kPasses = (kWork * kShare + kThreads - 1) / kThreads;
  static_assert(Layout::kGroups % kShare == 0 && kQuads * kShare <= 32 * (kShare == 1 ? 2 : 1));
#pragma unroll
  for (int pass = 0; pass < kPasses; ++pass) {
    const int id = pass * kThreads + static_cast<int>(threadIdx.x);
    const int quad = id % kQuads, sharer = id / kQuads % kShare, which = id / (kQuads * kShare);  // step * 2 + B or C
    float sum[4] = {0.f, 0.f, 0.f, 0.f};
    if (kWork * kShare % kThreads == 0 || which < kHalf * 2) {
      const float* source = dbc + (which * Layout::kGroups + sharer) * NP + quad * 4;
      load<4>(source, sum);
#pragma unroll
      for (int x = 1; x < Layout::kGroups / kShare; ++x) {
        float v[4];
        load<4>(source + x * kShare * NP, v);
#pragma unroll
        for (int i = 0; i < 4; ++i) sum[i] += v[i];
      }
    }
    // Each of two sharers goes on with half of the states, while there are states to halve.
    int kept = 4, state = quad * 4;
#pragma unroll
    for (int o = kQuads; o < kQuads * kShare; o *= 2) {
      const bool halve = kept > 1, upper = threadIdx.x & o;
      if (halve) {
        kept /= 2;
        state += upper ? kept : 0;
      }
#pragma unroll
      for (int i = 0; i < kept; ++i) {
        const float give = halve && !upper ? sum[i + kept] : sum[i], keep = halve && upper ? sum[i + kept] : sum[i];
        sum[i] = keep + __shfl_xor_sync(0xffffffffu, give, o);
      }
    }
    constexpr int kLeft = kShare >= 4 ? 1 : 4 / kShare;
    const int l = first + which / 2;
    if ((kWork * kShare % kThreads != 0 && which >= kHalf * 2) || sharer >= 4 || l >= end) continue;
    float* const target = static_cast<float*>(const_cast<void*>(targets[which % 2]));
    if (Constant && target == nullptr) continue;
    float left[kLeft];
#pragma unroll
    for (int i = 0; i < kLeft; ++i) left[i] = sum[i];
    store<kLeft>(target + (l * static_cast<Offset>(NP) + state), left);
  }
}

}  // namespace bdam_fast::device
