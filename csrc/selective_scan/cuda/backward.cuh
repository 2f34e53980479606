// Selective scan, backward. A block owns kChannels channels and walks tiles of 8 steps from the last to the first:
//
//   1 elementwise, (8 steps) x (channels): dt, dt u and d y into shared memory
//   2 states, for the two halves of the tile, the later first: from the saved state forward, keeping exp(dt A) and h
//     of 4 steps in registers, then the reverse recurrence over them
//   3 elementwise, after each half: du, ddelta, dz, and the sums over the block's channels for dB and dC
//
// In 2 a thread has NC channels x NS states, LN threads share its channels: with 4 x 4 the sums over channels for dB
// and dC are formed in the thread down to a quarter, and B, C, dt, dt u are read once for 16 states. Counted on sm_90,
// 16 states: 1 x 16 takes 22.8 instructions per state, 2 x 8 21.4, 4 x 4 19.6 (with tiles of 4 steps, that save twice
// as much). Sums over states for d(dt u) and d(dt) meet in shared memory. So does y, needed for dz, but for bf16, where
// it is a tensor core product, whose inputs are cut to 10 bits: the error (4e-4 of y) stays below dz's own rounding. It
// would not in float16, nor would d(dt u) bear it in any type, for the sum ddelta_bias is float32.
//
// Where the states before every second tile only were saved (Every = 2), the tile before is walked once more for the
// state that was not (backward_saved.cuh).
//
// No atomics: partial sums go to a workspace, sum_partials adds them in a fixed order.
#pragma once
#include <type_traits>

#include "selective_scan/cuda/backward_saved.cuh"

namespace bdam_fast::device {

template <class T, int NC, int NS, int LN, int V, Access A, Case K, int Every>
struct Backward {
  using Layout = BackwardLayout<T, NC, NS, LN, V, A, K>;
  using Row = BackwardRows<T, Layout>;
  using Offset = std::conditional_t<A == Access::scalar, int64_t, int>;  // within a chunk; the launcher sees to it
  static constexpr int NP = NS * LN, kPitch = Layout::kPitch, kEach = Layout::kEach, kThreads = kScanThreads;
  static constexpr int kTile = kCudaTile;
  static constexpr bool Packed = K != Case::usual, Constant = K == Case::constant;

  const BackwardViews<T>& p;
  float* const shared;
  const Place at;
  const Items<Layout, V, A> items;
  Projections<T, NP, Offset> projections;
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
    for (int c = 0; c < NC; ++c) {
      const float* rates = p.A.at(0, s * NS, at.first + g * NC + c);
#pragma unroll
      for (int i = 0; i < NS; ++i) {
        const int n = s * NS + i, own = g * NC + c;
        const bool present = own < at.count && n < p.states;
        a[c][i] = next_rate(p, rates, present);
        dA[c][i] = h[c][i] = carry[c][i] = 0.f;
        if (Constant) {
          const int channel = at.first + own;
          fixed_B[c][i] = present && p.B.constant ? *p.B.channel.at(0, n, channel) : 0.f;
          fixed_C[c][i] = present && p.C.constant ? *p.C.channel.at(0, n, channel) : 0.f;
          dB[c][i] = dC[c][i] = 0.f;
        }
      }
    }
    enter_from_behind<NC, NS, NP>(p, at, g, s, carry);
#pragma unroll
    for (int i = 0; i < kEach * V; ++i) skip_sum[i] = bias_sum[i] = 0.f;
    note_places();
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
  // Addresses of this block's first step and channel, noted: to form such an address takes ten instructions, and
  // there are no registers to keep it.
  enum Tensor { kU, kDelta, kZ, kDout, kDu, kDdelta, kDz, kSaved, kSumB, kSumC };
  BDAM_DEVICE const void*& base(int which) const {
    return reinterpret_cast<const void**>(shared + Layout::bases)[which];
  }
  template <class U>
  BDAM_DEVICE void note(Tensor which, const View<U>& v) {
    base(which) = v.at(at.batch, at.begin, at.first);
  }
  template <class U>
  BDAM_DEVICE U* element(Tensor which, const View<U>& v, int l, int c) const {
    return static_cast<U*>(const_cast<void*>(base(which))) + (l * v.time + c * v.channel);
  }
  // Notes all of them; unit_channel is the place of fetch_vectors.
  BDAM_DEVICE void note_places() {
    if (threadIdx.x == 0) {
      if (A == Access::scalar) {
        note(kU, p.u), note(kDelta, p.delta), note(kZ, p.z), note(kDout, p.dout);
        note(kDu, p.du), note(kDdelta, p.ddelta), note(kDz, p.dz);
      }
      const int64_t tile = at.batch * ((p.length + Every * kTile - 1) / (Every * kTile)) + at.begin / (Every * kTile);
      base(kSaved) = p.checkpoint + (tile * (NP / 4) * p.channels + at.first) * 4;
      const int64_t block = (static_cast<int64_t>(at.batch) * p.groups + at.group) * p.blocks + at.block;
      base(kSumB) = Constant && p.B.constant ? nullptr : p.sum_B + (block * p.length + at.begin) * NP;
      base(kSumC) = Constant && p.C.constant ? nullptr : p.sum_C + (block * p.length + at.begin) * NP;
    }
    if constexpr (A != Access::scalar) {
      const int c = min(unit_channel(), at.count - (A == Access::channel_vectors ? kWide : 1));
      own_pointers<Layout>(shared, 0) = {near(at, p.u, 0, c), near(at, p.delta, 0, c)};
      own_pointers<Layout>(shared, 1) = {near(at, p.z, 0, c), near(at, p.dout, 0, c)};
      const int l = A == Access::rows ? Row::result_step() : items.step;
      const int d = A == Access::rows ? Row::result_channel() : items.channel;
      own_pointers<Layout>(shared, 2) = {near(at, p.du, l, d), near(at, p.ddelta, l, d)};
      last_pointer<Layout>(shared) = near(at, p.dz, l, d);
    }
  }
  BDAM_DEVICE bool item_exists() const {
    return Layout::kItems >= kThreads || static_cast<int>(threadIdx.x) < Layout::kItems;
  }
  BDAM_DEVICE bool present(int first, int half, int i) const {
    return item_exists() && items.channel_of(i) < at.count && first + items.step_of(half, i) < at.steps;
  }
  BDAM_DEVICE bool padded(int l) const {
    return Packed && p.steps && l < at.steps && p.steps[at.batch * p.length + at.begin + l] == kPadding;
  }
  // Step of element v of a vector, and its D or bias
  BDAM_DEVICE static int step_in(int v) { return Layout::kAlongSteps ? v : 0; }
  BDAM_DEVICE void of_channels(int which, int c, float (&x)[V]) const {
    const float* const source = shared + Layout::vectors + which * Layout::kChannels + c;
    if constexpr (Layout::kAlongSteps)
      for (float& value : x) value = *source;
    else
      load<V>(source, x);
  }
  // Item i of a half, as it came from memory
  BDAM_DEVICE T* raw(int half, int i, int input) const {
    T* const plane = reinterpret_cast<T*>(shared + Layout::raw) + input * Layout::kRaw;
    if (A == Access::scalar) return plane + (half * kEach + i) * kThreads + threadIdx.x;
    const int t = items.step_of(half, i), c = items.channel_of(i);
    return plane + (A == Access::channel_vectors ? t * Layout::kChannels + c : c * kTile + t);
  }
  BDAM_DEVICE float* kept(int half, int i, int which) const {
    return shared + Layout::kept +
           (((half * kEach + i) * Layout::kKept + which) * kThreads + static_cast<int>(threadIdx.x)) * V;
  }
  BDAM_DEVICE float* saved(int c) const {
    return shared + Layout::saved + (c * kThreads + static_cast<int>(threadIdx.x)) * NS;
  }

  // Begins to bring the tile from step `first` on. Past the end of steps or channels the last ones are read again,
  // which takes less than a branch.
  BDAM_DEVICE void fetch(int first) {
    if constexpr (A == Access::scalar)
      fetch_elements(first);
    else if constexpr (A == Access::rows)
      Row(p, shared, at).fetch(first);
    else
      fetch_vectors(first);
    if (Every == 1 || first / kTile % Every == 0) fetch_saved<Every>(*this, first);
    projections.template fetch<K>(p, at, at.begin, 1, first, first);
  }
  // Vectors of 16 bytes, whoever will use them: the elementwise vectors are half as long, and the copy of 8 bytes takes
  // three further instructions on sm_90. A thread keeps to one place among the channels.
  static constexpr int kWide = 16 / sizeof(T), kUnits = kTile * Layout::kChannels / kWide;
  static constexpr int kUnitRow = A == Access::channel_vectors ? Layout::kChannels / kWide : Layout::kChannels;
  static constexpr int kUnitSteps = A == Access::channel_vectors ? 1 : kWide;
  BDAM_DEVICE static int unit_channel() {
    return static_cast<int>(threadIdx.x) % kUnitRow * (A == Access::channel_vectors ? kWide : 1);
  }
  BDAM_DEVICE void fetch_vectors(int first) {
    const TwoPointers x = own_pointers<Layout>(shared, 0), y = own_pointers<Layout>(shared, 1);
#pragma unroll
    for (int i = 0; i * kThreads < kUnits; ++i) {
      if (kUnits % kThreads != 0 && i * kThreads + static_cast<int>(threadIdx.x) >= kUnits) break;
      const int t = (static_cast<int>(threadIdx.x) / kUnitRow + i * (kThreads / kUnitRow)) * kUnitSteps;
      const int l = min(first + t, at.steps - kUnitSteps), c = unit_channel();
      T* const target = reinterpret_cast<T*>(shared + Layout::raw) +
                        (A == Access::channel_vectors ? t * Layout::kChannels + c : c * kTile + t);
      cp_async<16>(target, later(x.first, p.u, l));
      cp_async<16>(target + Layout::kRaw, later(x.second, p.delta, l));
      cp_async<16>(target + 2 * Layout::kRaw, later(y.first, p.z, l));
      cp_async<16>(target + 3 * Layout::kRaw, later(y.second, p.dout, l));
    }
  }
  BDAM_DEVICE void fetch_elements(int first) {
#pragma unroll
    for (int half = 0; half < 2; ++half)
#pragma unroll
      for (int i = 0; i < kEach; ++i) {
        const int l = min(first + items.step_of(half, i), at.steps - 1), c = min(items.channel_of(i), at.count - 1);
        cp_async<sizeof(T)>(raw(half, i, 0), element(kU, p.u, l, c));
        cp_async<sizeof(T)>(raw(half, i, 1), element(kDelta, p.delta, l, c));
        cp_async<sizeof(T)>(raw(half, i, 2), element(kZ, p.z, l, c));
        cp_async<sizeof(T)>(raw(half, i, 3), element(kDout, p.dout, l, c));
      }
  }

  // 1: dt, dt u, d y of the whole tile to shared memory
  BDAM_DEVICE void enter(int first) {
    const bool whole = first + kTile <= at.steps && at.count >= Layout::kChannels;
#pragma unroll
    for (int half = 0; half < 2; ++half)
#pragma unroll
      for (int i = 0; i < kEach; ++i) {
        if (!item_exists()) continue;
        const int t = items.step_of(half, i), c = items.channel_of(i);
        const bool there = present(first, half, i);
        float u[V], x[V], z[V], go[V], bias[V], dt[V], slope[V], dy[V], dz[V], xu[V];
        if constexpr (A == Access::rows) {
          Row(p, shared, at).read(half, u, x, z, go);
        } else {
          load<V>(raw(half, i, 0), u);
          load<V>(raw(half, i, 1), x);
          load<V>(raw(half, i, 2), z);
          load<V>(raw(half, i, 3), go);
        }
        of_channels(1, c, bias);
#pragma unroll
        for (int v = 0; v < V; ++v) {
          const float si = sigmoid(z[v]), gs = go[v] * si;
          softplus(x[v] + bias[v], dt[v], slope[v]);
          if (K != Case::usual && !p.softplus) dt[v] = x[v] + bias[v], slope[v] = 1.f;
          dy[v] = K == Case::usual || p.gated ? gs * z[v] : go[v];
          dz[v] = fmaf(gs * z[v], 1.f - si, gs);  // d out silu'(z)
          xu[v] = dt[v] * u[v];
        }
        if (Packed || !whole) {  // dt = 0 keeps the state, and no gradient enters
          prefer_branch();
#pragma unroll
          for (int v = 0; v < V; ++v)
            if (!there || first + t + step_in(v) >= at.steps || padded(first + t + step_in(v)))
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
    if constexpr (Layout::kTensorCore) {
#pragma unroll
      for (int i = 0; i < projections.kEach; ++i) {
        const int n = projections.column(i) - NP;
        if (n >= 0)
          shared[Layout::c_pairs + projections.step(i) * NP + n / 4 * 4 + n % 2 * 2 + n % 4 / 2] =
              to_f(projections.value[i]);
      }
    }
    if (Packed && static_cast<int>(threadIdx.x) < kTile) {
      const int l = first + static_cast<int>(threadIdx.x);
      const bool known = p.steps && l < at.steps;
      shared[Layout::kinds + threadIdx.x] = known ? p.steps[at.batch * p.length + at.begin + l] : int8_t{kStep};
    }
  }

  BDAM_DEVICE bool reset(int t) const { return Packed && shared[Layout::kinds + t] == kReset; }
  BDAM_DEVICE void restore() {
#pragma unroll
    for (int c = 0; c < NC; ++c) load<NS>(saved(c), h[c]);
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
    load<NC>(shared + Layout::dt + t * Layout::kStepPitch + g * NC, dt);
    load<NC>(shared + Layout::xu + t * Layout::kStepPitch + g * NC, xu);
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
    float dxu[NC], ddt[NC];
    load<NC>(shared + Layout::dt + t * Layout::kStepPitch + g * NC, dt);
    load<NC>(shared + Layout::xu + t * Layout::kStepPitch + g * NC, xu);
    load<NC>(shared + Layout::dy + t * Layout::kStepPitch + g * NC, dy);
    projection(t, 0, vb);
    projection(t, 1, vc);
    const bool fresh = reset(t);
    read_out(t, half_t, vc);
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
        if (fresh) carry[c][i] = q = 0.f;  // and no product with the values before the reset
        ddt[c] = fmaf(q, a[c][i], ddt[c]);
        dA[c][i] = fmaf(q, dt[c], dA[c][i]);
        h[c][i] = before;
      }
    }
    store<NC>(shared + Layout::dxu + (half_t * LN + s) * kPitch + g * NC, dxu);
    store<NC>(shared + Layout::ddt + (half_t * LN + s) * kPitch + g * NC, ddt);
    store<NS>(shared + Layout::dbc + ((half_t * 2 + 0) * Layout::kGroups + g) * NP + s * NS, sum_B);
    store<NS>(shared + Layout::dbc + ((half_t * 2 + 1) * Layout::kGroups + g) * NP + s * NS, sum_C);
  }
  // <C, h>, to shared memory: a sum of this thread's states or, by tensor cores, of the channel's 16. Row l / 4 of the
  // first factor has the states 0 and 2 of four threads, row l / 4 + 8 the states 1 and 3; so has C in even and odd
  // columns, which come from even and odd l / 4. That way h takes the registers in the order in which it is loaded,
  // else moves eat up the tensor core's gain.
  BDAM_DEVICE void read_out(int t, int half_t, const float (&vc)[NS]) const {
    float y[NC];
    if constexpr (Layout::kTensorCore) {
      float pair[2];
      load<2>(shared + Layout::c_pairs + t * NP + s * 4 + g % 2 * 2, pair);
#pragma unroll
      for (int c = 0; c < NC; ++c) {
        float sum[4];
        mma_tf32_first(sum, h[c][0], h[c][1], h[c][2], h[c][3], pair[0], pair[1]);
        y[c] = sum[0] + sum[3];
      }
    } else {
#pragma unroll
      for (int c = 0; c < NC; ++c) {
        y[c] = 0.f;
#pragma unroll
        for (int i = 0; i < NS; ++i) y[c] = fmaf(c_of(vc, c, i), h[c][i], y[c]);
      }
    }
    constexpr int kRows = Layout::kYRows;
    if (s < kRows) store<NC>(shared + Layout::y + (half_t * kRows + s) * kPitch + g * NC, y);
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
      items.get(shared + Layout::dt, t, Layout::kStepPitch, c, dt);
      items.get(shared + Layout::dy, t, Layout::kStepPitch, c, dy);
      items.template add<Layout::kYRows>(shared + Layout::y, ht, c, y);
      items.template add<LN>(shared + Layout::dxu, ht, c, dxu);
      items.template add<LN>(shared + Layout::ddt, ht, c, ddt);
      of_channels(0, c, skip);
#pragma unroll
      for (int v = 0; v < V; ++v) {
        ddelta[v] = fmaf(dxu[v], u[v], kLn2 * ddt[v]) * slope[v];
        du[v] = fmaf(dy[v], skip[v], dxu[v] * dt[v]);
        dz[v] *= fmaf(skip[v], u[v], y[v]);
        skip_sum[i * V + v] = fmaf(dy[v], u[v], skip_sum[i * V + v]);
        bias_sum[i * V + v] += ddelta[v];
      }
      if (Packed) {  // a state that is not finite makes 0 * NaN of a padded step
#pragma unroll
        for (int v = 0; v < V; ++v)
          if (padded(first + t + step_in(v))) du[v] = ddelta[v] = dz[v] = 0.f;
      }
      if constexpr (A == Access::rows) {
        const Row rows(p, shared, at);
        __syncwarp();  // what was kept has been read
        rows.put(half, 0, du), rows.put(half, 1, ddelta), rows.put(half, 2, dz);
        if (half == 0) rows.leave(first, K == Case::usual || p.gated);
        continue;
      }
      if (!present(first, half, i)) continue;
      if constexpr (A == Access::scalar) {
        store(element(kDu, p.du, first + t, c), du);
        store(element(kDdelta, p.ddelta, first + t, c), ddelta);
        if (K == Case::usual || p.gated) store(element(kDz, p.dz, first + t, c), dz);
      } else {
        static_assert(kEach == 1);
        const TwoPointers x = own_pointers<Layout>(shared, 2);
        store(later(x.first, p.du, first + half * kHalf), du);
        store(later(x.second, p.ddelta, first + half * kHalf), ddelta);
        if (K == Case::usual || p.gated) store(later(last_pointer<Layout>(shared), p.dz, first + half * kHalf), dz);
      }
    }
    add_groups<Layout, Constant, Offset>(shared + Layout::dbc, &base(kSumB), first + half * kHalf, at.steps);
  }

  // The first step that is read for the tile from step `first` on.
  BDAM_DEVICE static int begins(int first) { return Every == 2 && first / kTile % 2 == 1 ? first - kTile : first; }
  BDAM_DEVICE void walk() {
    const int last = at.steps > 0 ? (at.steps - 1) / kTile * kTile : -1;
    __syncthreads();  // D, bias and the bases are there
    if (last >= 0) fetch(begins(last));
    cp_async_wait();
    __syncthreads();
#pragma unroll 1
    for (int first = last; first >= 0; first -= kTile) {
      if (begins(first) < first) replay(*this, first);
      enter(first);
      __syncthreads();
#pragma unroll
      for (int half = 1; half >= 0; --half) {
        float E[kHalf][NC][NS], H[kHalf][NC][NS];
        restore();
        if (half == 0) {
          if (first > 0) fetch(begins(first - kTile));
        } else {
#pragma unroll
          for (int t = 0; t < kHalf; ++t) advance<false>(t, E[t], H[t]);
        }
#pragma unroll
        for (int t = 0; t < kHalf; ++t) advance<true>(half * kHalf + t, E[t], H[t]);
        if (half == 0) __syncthreads();  // the sums of the other half have been read
#pragma unroll
        for (int t = kHalf - 1; t >= 0; --t) reverse(half * kHalf + t, t, E[t], H[t]);
        if (half == 0) cp_async_wait();
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
      if (!p.dfirst.data || at.chunk > 0) continue;
      float* to = p.dfirst.at(at.batch, s * NS, channel);
#pragma unroll
      for (int i = 0; i < NS; ++i, to += p.dfirst.time)
        if (s * NS + i < p.states) *to = carry[c][i];
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      if (!item_exists()) continue;
      float x[V], y[V];
#pragma unroll
      for (int v = 0; v < V; ++v) x[v] = skip_sum[i * V + v], y[v] = bias_sum[i * V + v];
      items.put(shared, items.step_of(0, i), items.channel_of(i), x);
      items.put(shared + kHalf * Layout::kStepPitch, items.step_of(0, i), items.channel_of(i), y);
    }
    __syncthreads();
    for (int c = threadIdx.x; c < at.count && c < Layout::kChannels; c += kThreads) {
      const float* const sums = shared + c;
      float skip = 0.f, bias = 0.f;
      for (int t = 0; t < kHalf; ++t)
        skip += sums[t * Layout::kStepPitch], bias += sums[(kHalf + t) * Layout::kStepPitch];
      if (p.sum_skip) p.sum_skip[row(at.chunk, at.first + c)] = skip;
      if (p.sum_bias) p.sum_bias[row(at.chunk, at.first + c)] = bias;
    }
  }
};

// Two channels a thread take 168 registers in the usual case, so that 12 warps fit a multiprocessor instead of 8.
template <class T, int NC, int NS, int LN, int V, Access A, Case K, int Every>
__global__ void __launch_bounds__(kScanThreads, NC == 2 && K == Case::usual ? 3 : 2) scan_backward(BackwardViews<T> p) {
  BDAM_SHARED(float, shared);
  Backward<T, NC, NS, LN, V, A, K, Every> backward(p, shared);
  backward.walk();
  backward.finish();
}

}  // namespace bdam_fast::device
