// The backward of the causal depthwise convolution on a GPU, over the same two ways through memory as the forward. With
// ds_t the gradient of the sum before the activation, which is computed again:
// dx_t = sum_j w_j ds_(t + W - 1 - j),  dw_j = sum_t ds_t q_(t + j),  dbias = sum_t ds_t.
// Each block (`channels`) or group (`rows`) leaves its sums over t in a workspace; sum_partials adds them up in order.
#pragma once
#include "causal_conv1d/cuda/forward.cuh"

namespace bdam_fast::causal_conv1d {

// The gradient before the activation, whose argument is s.
BDAM_DEVICE float before_silu(bool silu, float s, float dout) {
  return silu ? dout * silu_derivative(s, sigmoid(s)) : dout;
}

// --- channels

template <class T, int V, int W>
struct ChannelBackward {
  const ConvParams& p;
  const ChannelPlace<V>& at;
  Taps<V, W> taps;
  // The window of inputs; the gradient of each that is known so far; the taps' gradients and, last, the bias's.
  float q[W][V], dq[W][V], dtaps[W + 1][V];

  BDAM_DEVICE ChannelBackward(const ConvParams& params, const ChannelPlace<V>& place)
      : p(params), at(place), taps(params.weight, params.bias, params.width, place.d, place.live) {
    clear<V, W>(q);
    clear<V, W>(dq);
    clear<V, W + 1>(dtaps);
  }

  // Takes in one step, whose input stands in q[W - 1]; Own: it counts for the taps' gradients.
  template <bool Own>
  BDAM_DEVICE void add(const Pack<T, V>& dout) {
    float ds[V];
    unpack(dout, ds);
    if (p.silu)
#pragma unroll
      for (int v = 0; v < V; ++v) {
        const float s = taps.filter(q, v);
        ds[v] *= silu_derivative(s, sigmoid(s));
      }
#pragma unroll
    for (int v = 0; v < V; ++v) {
#pragma unroll
      for (int j = 0; j < W; ++j) {
        if (W == kGeneric && j < taps.skip) continue;
        dq[j][v] = fmaf(taps.w[j][v], ds[v], dq[j][v]);
        if (Own) dtaps[j][v] = fmaf(ds[v], q[j][v], dtaps[j][v]);
      }
      if (Own) dtaps[W][v] += ds[v];
    }
  }
  BDAM_DEVICE void advance() {
    shift<V, W>(q);
    shift<V, W>(dq);
#pragma unroll
    for (int v = 0; v < V; ++v) dq[W - 1][v] = 0.f;
  }
  BDAM_DEVICE void write_step(int t, const float (&r)[V]) const { store<V>(view_of<T>(p.dx).at(at.b, t, at.d), r); }
  BDAM_DEVICE void write_initial(int entry, const float (&r)[V]) const {
    if (p.dinitial.data == nullptr) return;
#pragma unroll
    for (int v = 0; v < V; ++v) *view_of<float>(p.dinitial).at(at.b, entry, at.d + v) = r[v];
  }
  // Adds the gradient of entry `entry` of the final states.
  BDAM_DEVICE void add_final(int entry, float (&r)[V]) const {
    float more[V];
    read_state<V>(p.dfinal, at.b, entry, at.d, more);
#pragma unroll
    for (int v = 0; v < V; ++v) r[v] += more[v];
  }

  // Step t completes the gradient of the input W - 1 steps before it, which may be an initial state or belong to the
  // run before.
  BDAM_DEVICE void emit_step(int t) const {
    if (t - (W - 1) >= at.t0)
      write_step(t - (W - 1), dq[0]);
    else if (t < W - 1 && t >= taps.skip)
      write_initial(t - taps.skip, dq[0]);
  }
  // Steps t .. t + U - 1 of the run; all of them are loaded before the first is used.
  template <int U>
  BDAM_DEVICE void steps(const View<const T>& x, const View<const T>& dout, int t) {
    const T *from_x = x.at(at.b, t, at.d), *from_dout = dout.at(at.b, t, at.d);
    Pack<T, V> raw_x[U], raw_dout[U];
#pragma unroll
    for (int u = 0; u < U; ++u) {
      raw_x[u] = load_pack<V>(from_x + u * x.time);
      raw_dout[u] = load_pack<V>(from_dout + u * dout.time);
    }
#pragma unroll
    for (int u = 0; u < U; ++u) {
      unpack(raw_x[u], q[W - 1]);
      add<true>(raw_dout[u]);
      emit_step(t + u);
      advance();
    }
  }
  // After the run come the W - 1 steps that complete its inputs' gradients; beyond the last step those of the final
  // states are added instead.
  BDAM_DEVICE void run() {
    constexpr int U = 4;
    const auto x = view_of<const T>(p.x), dout = view_of<const T>(p.dout);
    const int L = static_cast<int>(p.L);
    read_window<T, V, W>(p, x, at.b, at.d, at.t0, q);
    int t = at.t0;
    for (; t + U <= at.t1; t += U) steps<U>(x, dout, t);
    for (; t < at.t1; ++t) steps<1>(x, dout, t);
#pragma unroll 1
    for (; t < at.t1 + W - 1; ++t) {
      if (t < L) {
        load<V>(x.at(at.b, t, at.d), q[W - 1]);
        add<false>(load_pack<V>(dout.at(at.b, t, at.d)));
      } else if (t - L >= taps.skip) {
        add_final(t - L - taps.skip, dq[0]);
      }
      emit_step(t);
      advance();
    }
  }

  // Packed sequences: where each entry of the window comes from is kept with it.
  BDAM_DEVICE void emit(int where, const float (&r)[V]) const {
    if (where >= at.t0 && where < at.t1) write_step(where, r);
    if (at.t0 == 0 && where < 0 && where != kNowhere) write_initial(-1 - where, r);
  }
  BDAM_DEVICE bool pending(const int (&where)[W]) const {
    bool any = false;
#pragma unroll
    for (int i = 0; i < W - 1; ++i)
      any = any || (where[i] >= at.t0 && where[i] < at.t1) || (at.t0 == 0 && where[i] < 0 && where[i] != kNowhere);
    return any;
  }
  BDAM_DEVICE void emit_all(int (&where)[W]) {
#pragma unroll
    for (int i = 0; i < W - 1; ++i) {
      emit(where[i], dq[i]);
      where[i] = kNowhere;
    }
  }
  BDAM_DEVICE void run_packed() {
    const auto x = view_of<const T>(p.x), dout = view_of<const T>(p.dout);
    const int L = static_cast<int>(p.L);
    int where[W];
    int last = read_packed_window<T, V, W>(p, x, at.b, at.d, at.t0, q, where);
    int t = at.t0;
    for (; t < L && (t < at.t1 || pending(where)); ++t) {
      const bool own = t < at.t1;
      const int index = sequence_of(p, at.b, t);
      if (index < 0) {
        const float zero[V] = {};
        if (own) write_step(t, zero);
        continue;
      }
      if (last != kNoIndex && index != last) {
        emit_all(where);
        clear<V, W>(q);
        clear<V, W>(dq);
        if (!own) break;
      }
      last = index;
      where[W - 1] = t;
      load<V>(x.at(at.b, t, at.d), q[W - 1]);
      const Pack<T, V> upstream = load_pack<V>(dout.at(at.b, t, at.d));
      if (own)
        add<true>(upstream);
      else
        add<false>(upstream);
      emit(where[0], dq[0]);
      advance();
#pragma unroll
      for (int i = 0; i < W - 1; ++i) where[i] = where[i + 1];
    }
    if (t == L)
#pragma unroll
      for (int i = 0; i < W - 1; ++i)
        if (i >= taps.skip && where[i] != kNowhere) add_final(i - taps.skip, dq[i]);
    emit_all(where);
  }
};

// The block's runs of one channel are added in order; sums[run][tap][channel].
template <int V, int W>
BDAM_DEVICE void write_partial(const ConvParams& p, const float (&dtaps)[W + 1][V], float* sums) {
  constexpr int kWide = 32 * V;
  const int tid = static_cast<int>(threadIdx.y * 32 + threadIdx.x);
#pragma unroll
  for (int j = 0; j <= W; ++j) store<V>(sums + (threadIdx.y * (W + 1) + j) * kWide + threadIdx.x * V, dtaps[j]);
  __syncthreads();
  const unsigned groups = (static_cast<unsigned>(p.D) + kWide - 1) / kWide;
  const int d0 = static_cast<int>(blockIdx.x % groups) * kWide, skip = skipped_taps<W>(p.width),
            D = static_cast<int>(p.D);
  float* partial = static_cast<float*>(p.partial) + static_cast<int64_t>(blockIdx.x / groups) * (p.width + 1) * D;
  for (int e = tid; e < (W + 1 - skip) * kWide; e += kThreads) {
    const int j = e / kWide, d = d0 + e % kWide;
    if (d >= D) continue;
    float sum = 0.f;
#pragma unroll
    for (int r = 0; r < kRunsPerBlock; ++r) sum += sums[(r * (W + 1) + skip) * kWide + e];
    partial[static_cast<int64_t>(j) * D + d] = sum;
  }
}

template <class T, int V, int W, bool Packed>
__global__ void __launch_bounds__(kThreads) backward_channels(const ConvParams p, const ConvPlan plan) {
  BDAM_SHARED(float, sums);
  const ChannelPlace<V> at(p, plan);
  ChannelBackward<T, V, W> work(p, at);
  if (at.live) {
    if constexpr (Packed)
      work.run_packed();
    else
      work.run();
  }
  write_partial<V, W>(p, work.dtaps, sums);
}

// --- rows

// ds at steps t .. t + N - 1, from the inputs at steps t - (W - 1) .. t + N - 1; zero outside the row.
template <int W, int N>
BDAM_DEVICE void gradient_before(const ConvParams& p, const Taps<1, W>& taps, const float (*q)[1], int t, int L,
                                 float (&ds)[N]) {
#pragma unroll
  for (int i = 0; i < N; ++i) ds[i] = t + i >= 0 && t + i < L ? before_silu(p.silu, taps.filter(q + i, 0), ds[i]) : 0.f;
}

// The part of a vector in which a row starts that concerns the initial states: entry i stands at step i - (W - 1). e[n]
// is ds at step t + n.
template <class T, int W, int N>
BDAM_DEVICE void write_initial_gradient(const ConvParams& p, const RowPlace<T>& at, const Taps<1, W>& taps, int t,
                                        const float (&e)[N]) {
#pragma unroll
  for (int n = 1 - W; n < N - (W - 1); ++n) {
    const int entry = t + n + W - 1;
    if (entry < 0 || entry >= W - 1) continue;
    float r = 0.f;
#pragma unroll
    for (int j = 0; j < W; ++j) {
      constexpr int kLast = W - 1;
      if (n + kLast - j >= 0) r = fmaf(taps.w[j][0], e[n + kLast - j < 0 ? 0 : n + kLast - j], r);
    }
    if (p.dfinal.data && entry >= at.L) r += *view_of<const float>(p.dfinal).at(at.b, entry - at.L, at.d);
    *view_of<float>(p.dinitial).at(at.b, entry, at.d) = r;
  }
}

template <class T, int W>
struct RowBackward {
  static constexpr int V = RowPlace<T>::V;
  const ConvParams& p;
  const RowPlace<T>& at;
  const Taps<1, W> taps;
  const T *x, *dout;
  T* dx;
  float dtaps[W + 1] = {};
  float next[W - 1];  // ds at the steps that follow the group's current vectors

  BDAM_DEVICE RowBackward(const ConvParams& params, const RowPlace<T>& place)
      : p(params), at(place), taps(params.weight, params.bias, W, place.d, place.live) {
    const int d = at.live ? at.d : 0;
    x = view_of<const T>(p.x).at(at.b, 0, d);
    dout = view_of<const T>(p.dout).at(at.b, 0, d);
    dx = view_of<T>(p.dx).at(at.b, 0, d);
    const int t = at.live ? at.step(at.end) : at.L + W - 1;  // past the end there is nothing to read
    float q[2 * (W - 1)][1];
#pragma unroll
    for (int i = 0; i < 2 * (W - 1); ++i) q[i][0] = input_at<T, W>(p, at, x, t - (W - 1) + i);
#pragma unroll
    for (int i = 0; i < W - 1; ++i) next[i] = t + i < at.L ? to_f(dout[at.offset(t + i)]) : 0.f;
    gradient_before<W>(p, taps, q, t, at.L, next);
  }

  // Vector k; every thread of the warp calls it, `live` where there is such a vector. e[n] is ds at its step n.
  BDAM_DEVICE void vector(int k, bool live, int lanes) {
    const int t = at.step(k);
    float q[V + W - 1][1], ds[V], e[V + W - 1];
#pragma unroll
    for (int i = 0; i < V; ++i) ds[i] = 0.f;
    if (live) {
      read_inputs<T, W>(p, at, x, t, q);
      read_steps(at, dout, t, ds);
      gradient_before<W>(p, taps, q, t, at.L, ds);
    }
#pragma unroll
    for (int i = 0; i < V; ++i) e[i] = ds[i];
#pragma unroll
    for (int i = 0; i < W - 1; ++i) {
      const float right = __shfl_down_sync(~0u, ds[i], 1, lanes), first = __shfl_sync(~0u, ds[i], 0, lanes);
      e[V + i] = k + 1 >= at.end || at.lane == lanes - 1 ? next[i] : right;
      next[i] = first;
    }
    if (live) finish(t, q, ds, e);
  }

  BDAM_DEVICE void finish(int t, const float (&q)[V + W - 1][1], const float (&ds)[V], const float (&e)[V + W - 1]) {
    float r[V];
#pragma unroll
    for (int i = 0; i < V; ++i) {
      r[i] = 0.f;
#pragma unroll
      for (int j = 0; j < W; ++j) {
        r[i] = fmaf(taps.w[j][0], e[i + W - 1 - j], r[i]);
        dtaps[j] = fmaf(ds[i], q[i + j][0], dtaps[j]);
      }
      dtaps[W] += ds[i];
      const int entry = t + i - (at.L - (W - 1));
      if (p.dfinal.data && entry >= 0 && entry < W - 1) r[i] += *view_of<const float>(p.dfinal).at(at.b, entry, at.d);
    }
    if (p.dinitial.data && t <= 0) write_initial_gradient<T, W>(p, at, taps, t, e);
    write_steps(at, dx, t, r);
  }

  BDAM_DEVICE void write_partial(const ConvPlan& plan) {
#pragma unroll
    for (int j = 0; j <= W; ++j)
      for (int o = plan.lanes / 2; o > 0; o /= 2) dtaps[j] += __shfl_xor_sync(~0u, dtaps[j], o);
    if (!at.live || at.lane != 0) return;
    float* partial = static_cast<float*>(p.partial) + (at.b * plan.partials + at.run) * (W + 1) * p.D + at.d;
#pragma unroll
    for (int j = 0; j <= W; ++j) partial[j * p.D] = dtaps[j];
  }
};

// From the last vectors of a run to the first: the steps that follow are known then.
template <class T, int W>
__global__ void __launch_bounds__(kThreads) backward_rows(const ConvParams p, const ConvPlan plan) {
  const RowPlace<T> at(p, plan);
  RowBackward<T, W> work(p, at);
  for (int k = at.first + plan.run - plan.lanes + at.lane; k >= at.first; k -= plan.lanes)
    work.vector(k, at.live && k < at.end, plan.lanes);
  work.write_partial(plan);
}

// --- the sum over blocks

constexpr int kSumRows = 8;

// dweight[d][j] and dbias[d]: 32 channels a block, one tap (blockIdx.y); every eighth partial a thread.
template <class = void>
__global__ void __launch_bounds__(32 * kSumRows) sum_partials(const ConvParams p, int64_t count) {
  __shared__ float sums[kSumRows][32];
  const int d = static_cast<int>(blockIdx.x * 32 + threadIdx.x), j = static_cast<int>(blockIdx.y);
  const int64_t step = static_cast<int64_t>(p.width + 1) * p.D;
  const bool live = d < p.D;
  float sum = 0.f;
  if (live) {
    const float* partial = static_cast<const float*>(p.partial) + j * p.D + d;
#pragma unroll 4
    for (int64_t i = threadIdx.y; i < count; i += kSumRows) sum += partial[i * step];
  }
  sums[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y > 0 || !live) return;
  for (int r = 1; r < kSumRows; ++r) sum += sums[r][threadIdx.x];
  const Stream& to = j < p.width ? p.dweight : p.dbias;
  if (to.data) BDAM_SWITCH_PARAMETER_DTYPE(to.dtype, T, *view_of<T>(to).at(0, j < p.width ? j : 0, d) = from_f<T>(sum));
}

}  // namespace bdam_fast::causal_conv1d
