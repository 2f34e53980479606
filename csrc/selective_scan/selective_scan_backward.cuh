// Selective scan, backward. A block owns kChannels channels and walks tiles of 8 steps from the last to the first:
//
//   1 elementwise, (8 steps) x (channels): dt, dt u and d y into shared memory
//   2 states, for the two halves of the tile, the later first: from the saved state forward, keeping exp(dt A) and h of
//   4
//     steps in registers, then the reverse recurrence over them
//   3 elementwise, after each half: du, ddelta, dz, and the sums over the block's channels for dB and dC
//
// In 2 a thread has NC channels x NS states, LN threads share its channels: with 4 x 4 the sums over channels for dB
// and dC are formed in the thread down to a quarter, and B, C, dt, dt u are read once for 16 states. Counted on sm_90,
// 16 states: 1 x 16 takes 22.8 instructions per state, 2 x 8 21.4, 4 x 4 19.6 (with tiles of 4 steps, that save twice
// as much). Sums over states for d(dt u) and d(dt) meet in shared memory. So does y, needed for dz, but for bf16, where
// it is a tensor core product, whose inputs are cut to 10 bits: the error (4e-4 of y) stays below dz's own rounding. It
// would not in float16, nor would d(dt u) bear it in any type, for the sum ddelta_bias is float32.
//
// No atomics: partial sums go to a workspace, sum_partials adds them in a fixed order.
#pragma once
#include <type_traits>

#include "selective_scan/selective_scan_device.cuh"

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
template <class T, int NC, int NS, int LN, int V>
struct BackwardLayout {
  static constexpr int kThreads = kScanThreads, kTile = kCudaTile, NP = NS * LN;
  static constexpr int kGroups = kThreads / LN, kChannels = NC * kGroups;
  static constexpr int kPitch = kChannels + 8;  // steps of a channel, and rows of threads, meet in different banks
  static constexpr bool kTensorCore = std::is_same_v<T, __nv_bfloat16>;
  static constexpr int kYRows = kTensorCore ? LN / 4 : LN;
  static constexpr int kItems = kHalf * kChannels / V;  // vectors of half a tile
  static constexpr int kEach = kItems > kThreads ? kItems / kThreads : 1;
  static constexpr int kInputs = 4, kKept = 3;  // u, delta, z, d out; u, d dt / d delta, d out y / d z

  static constexpr int dt = 0, xu = dt + kTile * kPitch, dy = xu + kTile * kPitch;
  static constexpr int bc = dy + kTile * kPitch;                         // [step][B or C][NP]
  static constexpr int y = bc + kTile * 2 * NP;                          // [half's step][kYRows][kPitch]
  static constexpr int dxu = y + kHalf * kYRows * kPitch;                // [half's step][LN][kPitch]
  static constexpr int ddt = dxu + kHalf * LN * kPitch;                  // the same
  static constexpr int dbc = ddt + kHalf * LN * kPitch;                  // [half's step][B or C][kGroups][NP]
  static constexpr int kept = dbc + kHalf * 2 * kGroups * NP;            // [2 * kEach][kKept][thread][V]
  static constexpr int saved = kept + 2 * kEach * kKept * kThreads * V;  // [channel][thread][NS]
  static constexpr int vectors = saved + NC * kThreads * NS;             // D and bias of the channels
  static constexpr int kinds = vectors + 2 * kChannels;                  // [kTile]
  static constexpr int bases = kinds + kTile;                            // [7] pointers
  static constexpr int raw = bases + 16;                                 // [2 * kEach][kInputs][thread][V] of T
  static constexpr size_t bytes = raw * sizeof(float) + 2 * kEach * kInputs * kThreads * V * sizeof(T);
};

// The elementwise role of a thread: vectors of V adjacent channels (of one step) or V adjacent steps (of one channel).
template <class Layout, int V, Access A>
struct Items {
  int step, channel, steps_between, channels_between;
  bool time_first;

  BDAM_DEVICE explicit Items(bool scalar_time_first) {
    const int thread = threadIdx.x;
    time_first = A == Access::time_vectors || (A == Access::scalar && scalar_time_first);
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
  BDAM_DEVICE static bool present(int count_of_thread) { return Layout::kItems >= Layout::kThreads || count_of_thread; }
  // [step][kPitch] arrays in shared memory
  BDAM_DEVICE static void put(float* array, int t, int c, const float (&x)[V]) {
    if (A == Access::time_vectors) {
#pragma unroll
      for (int v = 0; v < V; ++v) array[(t + v) * Layout::kPitch + c] = x[v];
    } else {
      store<V>(array + t * Layout::kPitch + c, x);
    }
  }
  // `between`: rows between one step's and the next
  BDAM_DEVICE static void get(const float* array, int t, int between, int c, float (&x)[V]) {
    if (A == Access::time_vectors) {
#pragma unroll
      for (int v = 0; v < V; ++v) x[v] = array[(t + v) * between * Layout::kPitch + c];
    } else {
      load<V>(array + t * between * Layout::kPitch + c, x);
    }
  }
};

// Tensor cores drop the low 13 bits: a mean relative loss of 2^-11 / (2 ln 2), given back here.
constexpr float kDropped = 1.f + 0.00035222f;

template <class T, int NC, int NS, int LN, int V, Access A, Case K>
struct Backward {
  using Layout = BackwardLayout<T, NC, NS, LN, V>;
  using Offset = std::conditional_t<A == Access::scalar, int64_t, int>;  // within a chunk; the launcher sees to it
  static constexpr int NP = NS * LN, kPitch = Layout::kPitch, kEach = Layout::kEach, kThreads = kScanThreads;
  static constexpr int kTile = kCudaTile;
  static constexpr bool Packed = K != Case::usual, Constant = K == Case::constant;

  const BackwardViews<T>& p;
  float* const shared;
  const Place at;
  const Items<Layout, V, A> items;
  Projections<T, NP> projections;
  const int s, g;  // the thread among those that share channels, and its group of channels
  float a[NC][NS], dA[NC][NS], carry[NC][NS], h[NC][NS];
  float skip_sum[kEach * V], bias_sum[kEach * V];
  static constexpr int kFixedC = Constant ? NC : 1, kFixedS = Constant ? NS : 1;
  float fixed_B[kFixedC][kFixedS], fixed_C[kFixedC][kFixedS], dB[kFixedC][kFixedS], dC[kFixedC][kFixedS];

  BDAM_DEVICE Backward(const BackwardViews<T>& views, float* memory)
      : p(views),
        shared(memory),
        at(place_of(views, Layout::kChannels)),
        items(views.time_first),
        projections(views, at, at.begin, 1, at.steps),
        s(threadIdx.x % LN),
        g(threadIdx.x / LN) {
#pragma unroll
    for (int c = 0; c < NC; ++c)
#pragma unroll
      for (int i = 0; i < NS; ++i) {
        const int n = s * NS + i, own = g * NC + c, channel = at.first + own;
        const bool present = own < at.count && n < p.states;
        a[c][i] = present ? *p.A.at(0, n, channel) * kLog2e : 0.f;
        dA[c][i] = h[c][i] = carry[c][i] = 0.f;
        if (own < at.count && at.begin + at.steps < p.length)
          carry[c][i] = p.chunk_state[row(at.chunk, channel) * NP + n];
        else if (present && p.dlast.data)
          carry[c][i] = *p.dlast.at(at.batch, n, channel);
        if (Constant) {
          fixed_B[c][i] = present && p.B.constant ? *p.B.channel.at(0, n, channel) : 0.f;
          fixed_C[c][i] = present && p.C.constant ? *p.C.channel.at(0, n, channel) : 0.f;
          dB[c][i] = dC[c][i] = 0.f;
        }
      }
#pragma unroll
    for (int i = 0; i < kEach * V; ++i) skip_sum[i] = bias_sum[i] = 0.f;
    if (threadIdx.x == 0) {
      note(kU, p.u), note(kDelta, p.delta), note(kZ, p.z), note(kDout, p.dout);
      note(kDu, p.du), note(kDdelta, p.ddelta), note(kDz, p.dz);
    }
#pragma unroll
    for (int c = 0; c < NC; ++c) store<NS>(saved(c), h[c]);  // of absent channels they stay 0
    for (int c = threadIdx.x; c < Layout::kChannels; c += kThreads) {
      const bool present = c < at.count;
      shared[Layout::vectors + c] = present && p.skip.data ? *p.skip.at(0, 0, at.first + c) : 0.f;
      shared[Layout::vectors + Layout::kChannels + c] = present && p.bias.data ? *p.bias.at(0, 0, at.first + c) : 0.f;
    }
  }

  BDAM_DEVICE int64_t row(int chunk, int channel) const {
    return (static_cast<int64_t>(chunk) * p.batch + at.batch) * p.channels + channel;
  }
  // The tensors in the order of `bases`, where their elements of this block's first step and channel are noted: to form
  // such an address takes ten instructions.
  enum Tensor { kU, kDelta, kZ, kDout, kDu, kDdelta, kDz };
  template <class U>
  BDAM_DEVICE void note(Tensor which, const View<U>& v) {
    reinterpret_cast<const void**>(shared + Layout::bases)[which] = v.at(at.batch, at.begin, at.first);
  }
  template <class U>
  BDAM_DEVICE U* element(Tensor which, const View<U>& v, int l, int c) const {
    U* const base = reinterpret_cast<U* const*>(shared + Layout::bases)[which];
    const Offset time = A == Access::time_vectors ? 1 : v.time, channel = A == Access::channel_vectors ? 1 : v.channel;
    return base + (l * time + c * channel);
  }
  BDAM_DEVICE bool item_exists() const {
    return Layout::kItems >= kThreads || static_cast<int>(threadIdx.x) < Layout::kItems;
  }
  BDAM_DEVICE bool present(int first, int half, int i) const {
    return item_exists() && items.channel_of(i) < at.count && first + items.step_of(half, i) < at.steps;
  }
  BDAM_DEVICE bool padded(int l) const {
    return Packed && p.steps && p.steps[at.batch * p.length + at.begin + l] == kPadding;
  }
  BDAM_DEVICE Pack<T, V>* raw(int half, int i, int input) const {
    return reinterpret_cast<Pack<T, V>*>(shared + Layout::raw) +
           ((half * kEach + i) * Layout::kInputs + input) * kThreads + threadIdx.x;
  }
  BDAM_DEVICE float* kept(int half, int i, int which) const {
    return shared + Layout::kept +
           (((half * kEach + i) * Layout::kKept + which) * kThreads + static_cast<int>(threadIdx.x)) * V;
  }
  BDAM_DEVICE float* saved(int c) const {
    return shared + Layout::saved + (c * kThreads + static_cast<int>(threadIdx.x)) * NS;
  }

  // Begins to bring what this thread itself will use of the tile from step `first` on; no barrier belongs to it. Past
  // the end of steps or channels the last ones are read again, which takes less than a branch.
  BDAM_DEVICE void fetch(int first) {
#pragma unroll
    for (int half = 0; half < 2; ++half)
#pragma unroll
      for (int i = 0; i < kEach; ++i) {
        const int l = min(first + items.step_of(half, i), at.steps - (A == Access::time_vectors ? V : 1));
        const int c = min(items.channel_of(i), at.count - (A == Access::channel_vectors ? V : 1));
        cp_async<sizeof(Pack<T, V>)>(raw(half, i, 0), element(kU, p.u, l, c));
        cp_async<sizeof(Pack<T, V>)>(raw(half, i, 1), element(kDelta, p.delta, l, c));
        cp_async<sizeof(Pack<T, V>)>(raw(half, i, 2), element(kZ, p.z, l, c));
        cp_async<sizeof(Pack<T, V>)>(raw(half, i, 3), element(kDout, p.dout, l, c));
      }
    const int64_t tile = at.batch * ((p.length + kTile - 1) / kTile) + (at.begin + first) / kTile;
    const float* source = p.checkpoint + (tile * (NP / 4) * p.channels + at.first) * 4 +
                          (s * NS / 4 * p.channels + g * NC) * 4 + s * NS % 4;
#pragma unroll
    for (int c = 0; c < NC; ++c)
      if (g * NC + c < at.count) cp_async<NS * 4>(saved(c), source + c * 4);
    projections.template fetch<K>(p, at, at.begin, 1, first);
  }

  // 1: dt, dt u, d y of the whole tile to shared memory
  BDAM_DEVICE void enter(int first) {
#pragma unroll
    for (int half = 0; half < 2; ++half)
#pragma unroll
      for (int i = 0; i < kEach; ++i) {
        if (!item_exists()) continue;
        const int t = items.step_of(half, i), c = items.channel_of(i);
        const bool there = present(first, half, i);
        float u[V], x[V], z[V], go[V], bias[V], dt[V], slope[V], dy[V], dz[V], xu[V];
        unpack(*raw(half, i, 0), u);
        unpack(*raw(half, i, 1), x);
        unpack(*raw(half, i, 2), z);
        unpack(*raw(half, i, 3), go);
        const float* const biases = shared + Layout::vectors + Layout::kChannels + c;
        if (A == Access::time_vectors) {
#pragma unroll
          for (int v = 0; v < V; ++v) bias[v] = *biases;
        } else {
          load<V>(biases, bias);
        }
#pragma unroll
        for (int v = 0; v < V; ++v) {
          const float si = sigmoid(z[v]), gs = go[v] * si;
          softplus(x[v] + bias[v], dt[v], slope[v]);
          if (K != Case::usual && !p.softplus) dt[v] = x[v] + bias[v], slope[v] = 1.f;
          dy[v] = K == Case::usual || p.gated ? gs * z[v] : go[v];
          dz[v] = gs * fmaf(z[v], 1.f - si, 1.f);
          xu[v] = dt[v] * u[v];
        }
        bool whole = there;
        if (Packed) {
#pragma unroll
          for (int v = 0; v < (A == Access::time_vectors ? V : 1); ++v) whole = whole && !padded(first + t + v);
        }
        if (!whole) {  // dt = 0 keeps the state, and no gradient enters
#pragma unroll
          for (int v = 0; v < V; ++v)
            if (!there || !Packed || padded(first + t + (A == Access::time_vectors ? v : 0)))
              u[v] = dt[v] = slope[v] = dy[v] = dz[v] = xu[v] = 0.f;
        }
        items.put(shared + Layout::dt, t, c, dt);
        items.put(shared + Layout::xu, t, c, xu);
        items.put(shared + Layout::dy, t, c, dy);
        store<V>(kept(half, i, 0), u);
        store<V>(kept(half, i, 1), slope);
        store<V>(kept(half, i, 2), dz);
      }
    projections.stash(shared + Layout::bc);
    if (Packed && static_cast<int>(threadIdx.x) < kTile) {
      const int l = first + static_cast<int>(threadIdx.x);
      const bool known = p.steps && l < at.steps;
      shared[Layout::kinds + threadIdx.x] = known ? p.steps[at.batch * p.length + at.begin + l] : int8_t{kStep};
    }
  }

  BDAM_DEVICE bool reset(int t) const { return Packed && shared[Layout::kinds + t] == kReset; }
  BDAM_DEVICE void restore() {
#pragma unroll
    for (int c = 0; c < NC; ++c) {
      load<NS>(saved(c), h[c]);
    }
  }
  // B and C of step t for this thread's states
  BDAM_DEVICE void projection(int t, int which, float (&v)[NS]) const {
    load<NS>(shared + Layout::bc + (t * 2 + which) * NP + s * NS, v);
  }
  BDAM_DEVICE float b_of(const float (&v)[NS], int c, int i) const {
    return Constant && p.B.constant ? fixed_B[Constant ? c : 0][Constant ? i : 0] : v[i];
  }
  BDAM_DEVICE float c_of(const float (&v)[NS], int c, int i) const {
    return Constant && p.C.constant ? fixed_C[Constant ? c : 0][Constant ? i : 0] : v[i];
  }

  // 2, forward over one step. With Keep, E is exp(dt A) and H the state before the step.
  template <bool Keep>
  BDAM_DEVICE void advance(int t, float (&E)[NC][NS], float (&H)[NC][NS]) {
    float dt[NC], xu[NC], vb[NS];
    load<NC>(shared + Layout::dt + t * kPitch + g * NC, dt);
    load<NC>(shared + Layout::xu + t * kPitch + g * NC, xu);
    projection(t, 0, vb);
    const bool fresh = reset(t);
#pragma unroll
    for (int c = 0; c < NC; ++c)
#pragma unroll
      for (int i = 0; i < NS; ++i) {
        const float e = ex2(dt[c] * a[c][i]), before = h[c][i];
        if (Keep) E[c][i] = e, H[c][i] = before;
        h[c][i] = fmaf(e, fresh ? 0.f : before, xu[c] * b_of(vb, c, i));
      }
  }

  // 2, backward over one step: t in the tile, half_t in its half. `carry` comes in as the gradient of h_t that stems
  // from later steps.
  BDAM_DEVICE void reverse(int t, int half_t, const float (&E)[NC][NS], const float (&H)[NC][NS]) {
    float dt[NC], xu[NC], dy[NC], vb[NS], vc[NS], gh[NC][NS], sum_B[NS], sum_C[NS];
    float y[NC], dxu[NC], ddt[NC];
    load<NC>(shared + Layout::dt + t * kPitch + g * NC, dt);
    load<NC>(shared + Layout::xu + t * kPitch + g * NC, xu);
    load<NC>(shared + Layout::dy + t * kPitch + g * NC, dy);
    projection(t, 0, vb);
    projection(t, 1, vc);
    const bool fresh = reset(t);
    read_out(vc, y);
#pragma unroll
    for (int c = 0; c < NC; ++c) {
      dxu[c] = ddt[c] = 0.f;
#pragma unroll
      for (int i = 0; i < NS; ++i) {
        const float b = b_of(vb, c, i), before = H[c][i];
        gh[c][i] = fmaf(c_of(vc, c, i), dy[c], carry[c][i]);
        sum_C[i] = c ? fmaf(dy[c], h[c][i], sum_C[i]) : dy[c] * h[c][i];
        sum_B[i] = c ? fmaf(xu[c], gh[c][i], sum_B[i]) : xu[c] * gh[c][i];
        if (Constant) {
          dB[Constant ? c : 0][Constant ? i : 0] = fmaf(xu[c], gh[c][i], dB[Constant ? c : 0][Constant ? i : 0]);
          dC[Constant ? c : 0][Constant ? i : 0] = fmaf(dy[c], h[c][i], dC[Constant ? c : 0][Constant ? i : 0]);
        }
        dxu[c] = fmaf(gh[c][i], b, dxu[c]);
        carry[c][i] = E[c][i] * gh[c][i];
        float q = carry[c][i] * before;
        if (fresh) carry[c][i] = q = 0.f;  // and no product with what stands before the reset
        ddt[c] = fmaf(q, a[c][i], ddt[c]);
        dA[c][i] = fmaf(q, dt[c], dA[c][i]);
        h[c][i] = before;
      }
    }
    store_y(half_t, y);
    store<NC>(shared + Layout::dxu + (half_t * LN + s) * kPitch + g * NC, dxu);
    store<NC>(shared + Layout::ddt + (half_t * LN + s) * kPitch + g * NC, ddt);
    store<NS>(shared + Layout::dbc + ((half_t * 2 + 0) * Layout::kGroups + g) * NP + s * NS, sum_B);
    store<NS>(shared + Layout::dbc + ((half_t * 2 + 1) * Layout::kGroups + g) * NP + s * NS, sum_C);
  }
  // <C, h>: of this thread's states or, by tensor cores, of those of four threads. Rows l / 4 and l / 4 + 8 of the
  // first factor are two channels, its columns and the second factor's rows the states; a column of that one is C of
  // the four threads from 4 column on. With 16 states these are all the same; else a row is right in the column of its
  // number.
  static constexpr bool kOneColumn = LN == 4;
  BDAM_DEVICE void read_out(const float (&vc)[NS], float (&y)[NC]) const {
    if constexpr (Layout::kTensorCore && !Constant) {
#pragma unroll
      for (int c = 0; c < NC; c += 2) {
        float sum[4];
        mma_tf32_first(sum, h[c][0], h[c + 1][0], h[c][1], h[c + 1][1], vc[0], vc[1]);
#pragma unroll
        for (int i = 2; i < NS; i += 2)
          mma_tf32(sum, h[c][i], h[c + 1][i], h[c][i + 1], h[c + 1][i + 1], vc[i], vc[i + 1]);
        const int odd = kOneColumn ? 0 : threadIdx.x / 4 % 2;
        y[c] = odd ? sum[1] : sum[0], y[c + 1] = odd ? sum[3] : sum[2];
      }
    } else {
#pragma unroll
      for (int c = 0; c < NC; ++c) {
        y[c] = 0.f;
#pragma unroll
        for (int i = 0; i < NS; ++i) y[c] = fmaf(c_of(vc, c, i), h[c][i], y[c]);
      }
      if (Layout::kTensorCore) {
#pragma unroll
        for (int c = 0; c < NC; ++c) {
          y[c] += __shfl_xor_sync(0xffffffffu, y[c], 1);
          y[c] += __shfl_xor_sync(0xffffffffu, y[c], 2);
        }
      }
    }
  }
  BDAM_DEVICE void store_y(int half_t, const float (&y)[NC]) {
    constexpr int kShare = LN / Layout::kYRows;
    const bool chosen =
        kOneColumn || Constant || kShare == 1 ? s % kShare == 0 : s % 4 == static_cast<int>(threadIdx.x) / 8 % 4;
    if (chosen) store<NC>(shared + Layout::y + (half_t * Layout::kYRows + s / kShare) * kPitch + g * NC, y);
  }

  // Sum over the rows of step t
  template <int Rows>
  BDAM_DEVICE void add_rows(const float* array, int t, int c, float (&sum)[V]) const {
    items.get(array, t, Rows, c, sum);
#pragma unroll
    for (int r = 1; r < Rows; ++r) {
      float more[V];
      items.get(array + r * kPitch, t, Rows, c, more);
#pragma unroll
      for (int v = 0; v < V; ++v) sum[v] += more[v];
    }
  }
  // 3: the results of one half
  BDAM_DEVICE void leave(int first, int half) {
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      if (!item_exists()) continue;
      const int t = items.step_of(half, i), ht = t - half * kHalf, c = items.channel_of(i);
      float u[V], slope[V], dz[V], dt[V], dy[V], y[V], dxu[V], ddt[V], skip[V], du[V], ddelta[V];
      load<V>(kept(half, i, 0), u);
      load<V>(kept(half, i, 1), slope);
      load<V>(kept(half, i, 2), dz);
      items.get(shared + Layout::dt, t, 1, c, dt);
      items.get(shared + Layout::dy, t, 1, c, dy);
      add_rows<Layout::kYRows>(shared + Layout::y, ht, c, y);
      add_rows<LN>(shared + Layout::dxu, ht, c, dxu);
      add_rows<LN>(shared + Layout::ddt, ht, c, ddt);
      if (A == Access::time_vectors) {
#pragma unroll
        for (int v = 0; v < V; ++v) skip[v] = shared[Layout::vectors + c];
      } else {
        load<V>(shared + Layout::vectors + c, skip);
      }
      constexpr float kUp = Layout::kTensorCore && !Constant ? kDropped : 1.f;
#pragma unroll
      for (int v = 0; v < V; ++v) {
        ddelta[v] = fmaf(dxu[v], u[v], kLn2 * ddt[v]) * slope[v];
        du[v] = fmaf(dy[v], skip[v], dxu[v] * dt[v]);
        dz[v] *= fmaf(skip[v], u[v], y[v] * kUp);
        skip_sum[i * V + v] = fmaf(dy[v], u[v], skip_sum[i * V + v]);
        bias_sum[i * V + v] += ddelta[v];
      }
      if (Packed) {  // a state that is not finite makes 0 * NaN of a padded step
#pragma unroll
        for (int v = 0; v < V; ++v)
          if (padded(first + t + (A == Access::time_vectors ? v : 0) < at.steps
                         ? first + t + (A == Access::time_vectors ? v : 0)
                         : 0) &&
              present(first, half, i))
            du[v] = ddelta[v] = dz[v] = 0.f;
      }
      if (!present(first, half, i)) continue;
      store(element(kDu, p.du, first + t, c), du);
      store(element(kDdelta, p.ddelta, first + t, c), ddelta);
      if (K == Case::usual || p.gated) store(element(kDz, p.dz, first + t, c), dz);
    }
    add_projections(first + half * kHalf);
  }
  // Sums over the block's channels. A thread adds quads of states of a (step, B or C) over its share of the groups of
  // channels; then the kShare sharers combine.
  BDAM_DEVICE void add_projections(int first) {
    constexpr int kQuads = NP / 4, kWork = kHalf * 2 * kQuads, kRatio = kThreads / kWork;
    constexpr int kShare = kRatio > 8   ? 8
                           : kRatio > 0 ? kRatio
                                        : 1,
                  kPasses = (kWork * kShare + kThreads - 1) / kThreads;
    static_assert(Layout::kGroups % kShare == 0 && kQuads * kShare <= 32 * (kShare == 1 ? 2 : 1));
#pragma unroll
    for (int pass = 0; pass < kPasses; ++pass) {
      const int id = pass * kThreads + static_cast<int>(threadIdx.x);
      const int quad = id % kQuads, sharer = id / kQuads % kShare, which = id / (kQuads * kShare);  // step * 2 + B or C
      float sum[4] = {0.f, 0.f, 0.f, 0.f};
      if (kWork * kShare % kThreads == 0 || which < kHalf * 2) {
        const float* source = shared + Layout::dbc + (which * Layout::kGroups + sharer) * NP + quad * 4;
#pragma unroll
        for (int x = 0; x < Layout::kGroups / kShare; ++x) {
          float v[4];
          load<4>(source + x * kShare * NP, v);
#pragma unroll
          for (int i = 0; i < 4; ++i) sum[i] += v[i];
        }
      }
#pragma unroll
      for (int o = kQuads; o < kQuads * kShare; o *= 2)
#pragma unroll
        for (int i = 0; i < 4; ++i) sum[i] += __shfl_xor_sync(0xffffffffu, sum[i], o);
      const int l = first + which / 2;
      float* const target = which % 2 ? p.sum_C : p.sum_B;
      if ((kWork * kShare % kThreads != 0 && which >= kHalf * 2) || sharer != 0 || l >= at.steps) continue;
      if (Constant && (which % 2 ? p.C.constant : p.B.constant)) continue;
      const int64_t block = (static_cast<int64_t>(at.batch) * p.groups + at.group) * p.blocks + at.block;
      store<4>(target + (block * p.length + at.begin + l) * NP + quad * 4, sum);
    }
  }

  BDAM_DEVICE void walk() {
    const int last = at.steps > 0 ? (at.steps - 1) / kTile * kTile : -1;
    __syncthreads();  // D, bias and the bases are there
    if (last >= 0) fetch(last);
#pragma unroll 1
    for (int first = last; first >= 0; first -= kTile) {
      cp_async_wait();
      enter(first);
      __syncthreads();
#pragma unroll
      for (int half = 1; half >= 0; --half) {
        float E[kHalf][NC][NS], H[kHalf][NC][NS];
        restore();
        if (half == 0) {
          if (first > 0) fetch(first - kTile);
        } else {
#pragma unroll
          for (int t = 0; t < kHalf; ++t) advance<false>(t, E[t], H[t]);
        }
#pragma unroll
        for (int t = 0; t < kHalf; ++t) advance<true>(half * kHalf + t, E[t], H[t]);
        if (half == 0) __syncthreads();  // the sums of the other half have been read
#pragma unroll
        for (int t = kHalf - 1; t >= 0; --t) reverse(half * kHalf + t, t, E[t], H[t]);
        __syncthreads();
        leave(first, half);
      }
    }
  }

  BDAM_DEVICE void finish() {
#pragma unroll
    for (int c = 0; c < NC; ++c) {
      const int own = g * NC + c, channel = at.first + own;
      if (own >= at.count) continue;
      const int64_t place = row(at.chunk, channel) * NP + s * NS;
      store<NS>(p.sum_A + place, dA[c]);
      if constexpr (Constant) {
        if (p.B.constant) store<NS>(p.sum_B + place, dB[c]);
        if (p.C.constant) store<NS>(p.sum_C + place, dC[c]);
      }
#pragma unroll
      for (int i = 0; i < NS; ++i)
        if (p.dfirst.data && at.chunk == 0 && s * NS + i < p.states)
          *p.dfirst.at(at.batch, s * NS + i, channel) = carry[c][i];
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      if (!item_exists()) continue;
      float x[V], y[V];
#pragma unroll
      for (int v = 0; v < V; ++v) x[v] = skip_sum[i * V + v], y[v] = bias_sum[i * V + v];
      items.put(shared, items.step_of(0, i), items.channel_of(i), x);
      items.put(shared + kHalf * kPitch, items.step_of(0, i), items.channel_of(i), y);
    }
    __syncthreads();
    for (int c = threadIdx.x; c < at.count && c < Layout::kChannels; c += kThreads) {
      float skip = 0.f, bias = 0.f;
      for (int t = 0; t < kHalf; ++t) skip += shared[t * kPitch + c], bias += shared[(kHalf + t) * kPitch + c];
      if (p.sum_skip) p.sum_skip[row(at.chunk, at.first + c)] = skip;
      if (p.sum_bias) p.sum_bias[row(at.chunk, at.first + c)] = bias;
    }
  }
};

template <class T, int NC, int NS, int LN, int V, Access A, Case K>
__global__ void __launch_bounds__(kScanThreads, 2) scan_backward(BackwardViews<T> p) {
  BDAM_SHARED(float, shared);
  Backward<T, NC, NS, LN, V, A, K> backward(p, shared);
  backward.walk();
  backward.finish();
}

}  // namespace bdam_fast::device
