// The causal depthwise convolution forward on a GPU, with the parts that the backward shares. Two kernels:
// `channels`: a thread owns V adjacent channels (or one, with any strides) and walks along a run of steps, the last
// W - 1 inputs in registers. For the (B, L, D) memory order, packed sequences, and everything unusual.
// `rows`: a group of threads owns one channel and walks along a run of its steps, a 16-byte vector a thread. For the
// (B, D, L) memory order.
// W is 2, 3, 4, or 8 for any width up to 8: then the first `skip` taps do not exist.
#pragma once
#include "causal_conv1d/cuda/launch.h"
#include "common/device.cuh"

namespace bdam_fast::causal_conv1d {

using namespace device;

constexpr int kNoIndex = -1;  // no step has been processed yet
constexpr int kGeneric = 8;

template <int W>
BDAM_DEVICE int skipped_taps(int width) {
  return W == kGeneric ? kGeneric - width : 0;
}

// --- taps

template <int V, int W>
struct Taps {
  float w[W][V], bias[V];
  int skip;

  // Taps and bias of channels d .. d + V - 1; zero where they are not live.
  BDAM_DEVICE Taps(const Stream& weight, const Stream& offset, int width, int d, bool live)
      : skip(skipped_taps<W>(width)) {
#pragma unroll
    for (int v = 0; v < V; ++v) {
      bias[v] = 0.f;
#pragma unroll
      for (int j = 0; j < W; ++j) w[j][v] = 0.f;
    }
    if (!live) return;
    BDAM_SWITCH_PARAMETER_DTYPE(weight.dtype, T, read_weight(view_of<const T>(weight), d));
    if (offset.data) BDAM_SWITCH_PARAMETER_DTYPE(offset.dtype, T, read_bias(view_of<const T>(offset), d));
  }
  // s_i = bias + sum_j w_j q_(i+j) for the window that starts at q
  BDAM_DEVICE float filter(const float (*q)[V], int v) const {
    float s = bias[v];
#pragma unroll
    for (int j = 0; j < W; ++j)
      if (W < kGeneric || j >= skip) s = fmaf(w[j][v], q[j][v], s);
    return s;
  }

 private:
  template <class T>
  BDAM_DEVICE void read_weight(const View<const T>& weight, int d) {
#pragma unroll
    for (int j = 0; j < W; ++j)
#pragma unroll
      for (int v = 0; v < V; ++v)
        if (W < kGeneric || j >= skip) w[j][v] = to_f(*weight.at(0, j - skip, d + v));
  }
  template <class T>
  BDAM_DEVICE void read_bias(const View<const T>& source, int d) {
#pragma unroll
    for (int v = 0; v < V; ++v) bias[v] = to_f(*source.at(0, 0, d + v));
  }
};

// --- channels: where a thread works, and its window

template <int V>
struct ChannelPlace {
  int b, d, t0, t1;
  bool live;

  // Blocks: runs of one batch item outermost, then groups of 32 V channels.
  BDAM_DEVICE ChannelPlace(const ConvParams& p, const ConvPlan& plan) {
    const unsigned D = static_cast<unsigned>(p.D), groups = (D + 32 * V - 1) / (32 * V);
    const unsigned rest = blockIdx.x / groups, partials = static_cast<unsigned>(plan.partials);
    const int L = static_cast<int>(p.L);
    d = static_cast<int>(blockIdx.x % groups * 32 + threadIdx.x) * V;
    b = static_cast<int>(rest / partials);
    const int run = static_cast<int>(rest % partials * kRunsPerBlock + threadIdx.y);
    t0 = run * plan.run;
    t1 = t0 + plan.run < L ? t0 + plan.run : L;
    live = d < static_cast<int>(D) && run < static_cast<int>(plan.runs);
  }
};

BDAM_DEVICE int sequence_of(const ConvParams& p, int b, int t) { return p.seq_idx[b * p.seq_batch + t * p.seq_time]; }

template <int V>
BDAM_DEVICE void read_state(const Stream& s, int b, int entry, int d, float (&r)[V]) {
#pragma unroll
  for (int v = 0; v < V; ++v) r[v] = s.data ? *view_of<const float>(s).at(b, entry, d + v) : 0.f;
}

// The last W - 1 inputs before step t0, the oldest first. Before step 0 lie the initial states.
template <class T, int V, int W>
BDAM_DEVICE void read_window(const ConvParams& p, const View<const T>& x, int b, int d, int t0, float (*q)[V]) {
  const int skip = skipped_taps<W>(p.width);
#pragma unroll
  for (int i = 0; i < W - 1; ++i) {
    const int t = t0 - (W - 1) + i;
#pragma unroll
    for (int v = 0; v < V; ++v) q[i][v] = 0.f;
    if (W == kGeneric && i < skip) continue;
    if (t >= 0)
      load<V>(x.at(b, t, d), q[i]);
    else
      read_state<V>(p.initial, b, t0 + i - skip, d, q[i]);
  }
}

// The place of an entry of a window: a step, or one of these.
constexpr int kNowhere = -1000;
BDAM_DEVICE int initial_entry(int entry) { return -1 - entry; }

// The same for packed sequences: padding is passed over, and the window ends where the index changes. Returns the index
// of the last processed step, or kNoIndex.
template <class T, int V, int W>
BDAM_DEVICE int read_packed_window(const ConvParams& p, const View<const T>& x, int b, int d, int t0, float (*q)[V],
                                   int (&where)[W]) {
  int last = kNoIndex, t = t0 - 1, entry = p.width - 2;
  bool complete = false;
#pragma unroll
  for (int i = W - 2; i >= 0; --i) {
    where[i] = kNowhere;
#pragma unroll
    for (int v = 0; v < V; ++v) q[i][v] = 0.f;
    complete = complete || (W == kGeneric && i < skipped_taps<W>(p.width));
    if (complete) continue;
    int index = kNoIndex;
    while (t >= 0 && (index = sequence_of(p, b, t)) < 0) --t;
    if (t < 0) {
      read_state<V>(p.initial, b, entry, d, q[i]);
      where[i] = initial_entry(entry--);
    } else if (last != kNoIndex && index != last) {
      complete = true;
    } else {
      load<V>(x.at(b, t, d), q[i]);
      last = index, where[i] = t--;
    }
  }
  return last;
}

template <int V, int W>
BDAM_DEVICE void shift(float (*q)[V]) {
#pragma unroll
  for (int i = 0; i < W - 1; ++i)
#pragma unroll
    for (int v = 0; v < V; ++v) q[i][v] = q[i + 1][v];
}
template <int V, int W>
BDAM_DEVICE void clear(float (*q)[V]) {
#pragma unroll
  for (int i = 0; i < W; ++i)
#pragma unroll
    for (int v = 0; v < V; ++v) q[i][v] = 0.f;
}

// --- channels, forward

template <class T, int V, int W, bool Packed>
struct ChannelForward {
  const ConvParams& p;
  const ChannelPlace<V>& at;
  const View<const T> x;
  const View<T> out;
  const Taps<V, W> taps;
  float q[W][V];
  int last = kNoIndex;

  BDAM_DEVICE ChannelForward(const ConvParams& params, const ChannelPlace<V>& place)
      : p(params),
        at(place),
        x(view_of<const T>(params.x)),
        out(view_of<T>(params.out)),
        taps(params.weight, params.bias, params.width, place.d, true) {
    if constexpr (Packed) {
      int where[W];
      last = read_packed_window<T, V, W>(p, x, at.b, at.d, at.t0, q, where);
    } else {
      read_window<T, V, W>(p, x, at.b, at.d, at.t0, q);
    }
  }

  // Steps t .. t + U - 1: all of them are loaded before the first is used, so that U loads are under way.
  template <int U>
  BDAM_DEVICE void steps(int t) {
    const T* from = x.at(at.b, t, at.d);
    T* to = out.at(at.b, t, at.d);
    Pack<T, V> raw[U];
    int index[U] = {};
#pragma unroll
    for (int u = 0; u < U; ++u) {
      if constexpr (Packed) index[u] = sequence_of(p, at.b, t + u);
      raw[u] = load_pack<V>(from + u * x.time);
    }
#pragma unroll
    for (int u = 0; u < U; ++u) {
      float s[V] = {};
      if (!Packed || index[u] >= 0) {
        if (Packed && last != kNoIndex && index[u] != last) clear<V, W>(q);
        last = index[u];
        unpack(raw[u], q[W - 1]);
#pragma unroll
        for (int v = 0; v < V; ++v) s[v] = taps.filter(q, v);
        if (p.silu)
#pragma unroll
          for (int v = 0; v < V; ++v) s[v] *= sigmoid(s[v]);
        shift<V, W>(q);
      }
      store<V>(to + u * out.time, s);
    }
  }

  BDAM_DEVICE void write_final() const {
    const auto state = view_of<float>(p.final_state);
#pragma unroll
    for (int i = 0; i < W - 1; ++i)
#pragma unroll
      for (int v = 0; v < V; ++v)
        if (W < kGeneric || i >= taps.skip) *state.at(at.b, i - taps.skip, at.d + v) = q[i][v];
  }
};

template <class T, int V, int W, bool Packed>
__global__ void __launch_bounds__(kThreads) forward_channels(const ConvParams p, const ConvPlan plan) {
  constexpr int U = V == 1 || sizeof(T) == 2 ? 8 : 4;
  const ChannelPlace<V> at(p, plan);
  if (!at.live) return;
  ChannelForward<T, V, W, Packed> work(p, at);
  int t = at.t0;
  for (; t + U <= at.t1; t += U) work.template steps<U>(t);
  for (; t < at.t1; ++t) work.template steps<1>(t);
  if (p.final_state.data && at.t1 == static_cast<int>(p.L)) work.write_final();
}

// --- rows

// A group's channel and its run of vectors. Slot i of vector k is step k V - empty + i: vectors lie at multiples of 16
// bytes wherever a row starts, so that only its two ends are read element by element.
template <class T>
struct RowPlace {
  static constexpr int V = 16 / sizeof(T);
  int b, d, lane, run, vectors, first, end, empty, L;
  bool live, reverse;

  BDAM_DEVICE RowPlace(const ConvParams& p, const ConvPlan& plan) {
    const unsigned D = static_cast<unsigned>(p.D), rows = kThreads / plan.lanes, groups = (D + rows - 1) / rows;
    const unsigned rest = blockIdx.x / groups, runs = static_cast<unsigned>(plan.runs);
    d = static_cast<int>(blockIdx.x % groups * rows + threadIdx.x / plan.lanes);
    lane = static_cast<int>(threadIdx.x) % plan.lanes;
    b = static_cast<int>(rest / runs), run = static_cast<int>(rest % runs);
    live = d < static_cast<int>(D);
    L = static_cast<int>(p.L), reverse = p.reverse;
    const T* row = view_of<const T>(p.x).at(b, 0, live ? d : 0);
    const int slot = static_cast<int>(reinterpret_cast<uintptr_t>(row) / sizeof(T) % V);
    empty = reverse ? V - 1 - slot : slot;
    vectors = (L + empty + V - 1) / V;
    first = run * plan.run;
    end = first + plan.run < vectors ? first + plan.run : vectors;
  }
  BDAM_DEVICE int step(int k) const { return k * V - empty; }
  // True if the vector at step t of `row` is complete and aligned there; `low` is its lowest address.
  BDAM_DEVICE bool whole(const T* row, int t, const T*& low) const {
    low = reverse ? row - (t + V - 1) : row + t;
    return t >= 0 && t + V <= L && reinterpret_cast<uintptr_t>(low) % 16 == 0;
  }
  BDAM_DEVICE int offset(int t) const { return reverse ? -t : t; }
};

template <int N>
BDAM_DEVICE void flip(float (&r)[N], bool wanted) {
  if (!wanted) return;
#pragma unroll
  for (int i = 0; i < N / 2; ++i) {
    const float v = r[i];
    r[i] = r[N - 1 - i], r[N - 1 - i] = v;
  }
}

// The input at step t, an initial state where t is negative, zero where there is none.
template <class T, int W>
BDAM_DEVICE float input_at(const ConvParams& p, const RowPlace<T>& at, const T* row, int t) {
  if (t >= at.L || t < 1 - W) return 0.f;
  if (t >= 0) return to_f(row[at.offset(t)]);
  return p.initial.data ? *view_of<const float>(p.initial).at(at.b, W - 1 + t, at.d) : 0.f;
}

// r[i] is the value at step t + i, zero outside the row.
template <class T, int V>
BDAM_DEVICE void read_steps(const RowPlace<T>& at, const T* row, int t, float (&r)[V]) {
  const T* low;
  if (at.whole(row, t, low)) {
    load<V>(low, r);
    flip(r, at.reverse);
  } else {
#pragma unroll
    for (int i = 0; i < V; ++i) r[i] = t + i >= 0 && t + i < at.L ? to_f(row[at.offset(t + i)]) : 0.f;
  }
}
// q[i] is the input at step t - (W - 1) + i.
template <class T, int W, int N>
BDAM_DEVICE void read_inputs(const ConvParams& p, const RowPlace<T>& at, const T* row, int t, float (&q)[N][1]) {
  constexpr int V = RowPlace<T>::V;
  static_assert(N == V + W - 1);
  float r[V];
  read_steps(at, row, t, r);
#pragma unroll
  for (int i = 0; i < V; ++i) q[W - 1 + i][0] = r[i];
  if (t >= W - 1 && t < at.L) {
#pragma unroll
    for (int i = 0; i < W - 1; ++i) q[i][0] = to_f(row[at.offset(t - (W - 1) + i)]);
  } else {
#pragma unroll
    for (int i = 0; i < W - 1; ++i) q[i][0] = input_at<T, W>(p, at, row, t - (W - 1) + i);
    // A row that starts within the vector has initial states there too.
    if (t < 0)
#pragma unroll
      for (int i = 0; i < V - 1; ++i)
        if (t + i < 0) q[W - 1 + i][0] = input_at<T, W>(p, at, row, t + i);
  }
}
template <class T, int V>
BDAM_DEVICE void write_steps(const RowPlace<T>& at, T* row, int t, float (&r)[V]) {
  const T* low;
  if (at.whole(row, t, low)) {
    flip(r, at.reverse);
    store<V>(const_cast<T*>(low), r);
  } else {
#pragma unroll
    for (int i = 0; i < V; ++i)
      if (t + i >= 0 && t + i < at.L) row[at.offset(t + i)] = from_f<T>(r[i]);
  }
}

template <class T, int W>
__global__ void __launch_bounds__(kThreads) forward_rows(const ConvParams p, const ConvPlan plan) {
  constexpr int V = RowPlace<T>::V, U = 2;  // vectors in flight
  const RowPlace<T> at(p, plan);
  if (!at.live) return;
  const Taps<1, W> taps(p.weight, p.bias, p.width, at.d, true);
  const T* x = view_of<const T>(p.x).at(at.b, 0, at.d);
  T* out = view_of<T>(p.out).at(at.b, 0, at.d);
  for (int k = at.first + at.lane; k < at.end; k += U * plan.lanes) {
    float q[U][V + W - 1][1];
#pragma unroll
    for (int u = 0; u < U; ++u)
      if (k + u * plan.lanes < at.end) read_inputs<T, W>(p, at, x, at.step(k + u * plan.lanes), q[u]);
#pragma unroll
    for (int u = 0; u < U; ++u) {
      if (k + u * plan.lanes >= at.end) break;
      float s[V];
#pragma unroll
      for (int i = 0; i < V; ++i) {
        s[i] = taps.filter(q[u] + i, 0);
        if (p.silu) s[i] *= sigmoid(s[i]);
      }
      write_steps(at, out, at.step(k + u * plan.lanes), s);
    }
  }
  if (p.final_state.data && at.run == static_cast<int>(plan.runs) - 1)
    for (int i = at.lane; i < W - 1; i += plan.lanes)
      *view_of<float>(p.final_state).at(at.b, i, at.d) = input_at<T, W>(p, at, x, at.L - (W - 1) + i);
}

}  // namespace bdam_fast::causal_conv1d
