// Causal depthwise convolution, s_t = bias + sum_j w_j x_(t-K+1+j), out = s or s sigmoid(s), K = 1..8 taps.
//
// Lanes are channels here (rows.inl has them along time). A task owns a range of channel blocks and of
// steps; it walks over tiles of a few steps and, inside a tile, over its blocks, so that rows are read nearly in memory
// order. A state, one a block, passes from tile to tile: the window of the last K - 1 inputs (forward), or the sums
// still owed to the K - 1 steps before (backward, which walks from the last tile to the first: the
// transposed form of the filter). So a padded step leaves the state alone, a new sequence zeroes it, and the gradients
// of the initial state and from the final one are its two ends.

// Steps [begin, end) of a tile that are all padding, or all of one sequence; `reset`: the state is zeroed before them.
struct Stretch {
  int begin, end;
  bool padding, reset;
};
struct TilePlan {
  Stretch stretches[kConvTile];
  int count = 0;
  // The sources of the window before the tile: a step, -1 - i for entry i of the initial state, or kNoStep.
  int64_t halo[kConvMaxWidth];
};
constexpr int64_t kNoStep = std::numeric_limits<int64_t>::min();

BDAM_INLINE int32_t sequence_at(const ConvParams& p, int64_t b, int64_t t) {
  return p.seq_idx ? p.seq_idx[b * p.seq_batch + t * p.seq_time] : 0;
}

static TilePlan plan_tile(const ConvParams& p, int64_t b, int64_t t0, int n_t) {
  TilePlan plan;
  const int window = p.width - 1;
  int64_t t = p.seq_idx && t0 > 0 ? p.last_step[b * p.tiles() + t0 / kConvTile] : t0 - 1;
  const int32_t before = t >= 0 ? sequence_at(p, b, t) : -1;  // the sequence that the window belongs to
  int unknown = window;
  for (; t >= 0 && unknown > 0; --t) {
    const int32_t index = sequence_at(p, b, t);
    if (index < 0) continue;
    if (index != before) break;
    plan.halo[--unknown] = t;
  }
  for (int j = 0; j < unknown; ++j) plan.halo[j] = t < 0 && p.initial ? -1 - (j + window - unknown) : kNoStep;
  if (!p.seq_idx) {
    plan.stretches[plan.count++] = {0, n_t, false, false};
    return plan;
  }
  int32_t current = before;
  for (int begin = 0, end; begin < n_t; begin = end) {
    const int32_t index = sequence_at(p, b, t0 + begin);
    for (end = begin + 1; end < n_t; ++end) {
      const int32_t next = sequence_at(p, b, t0 + end);
      if (index < 0 ? next >= 0 : next != index) break;
    }
    plan.stretches[plan.count++] = {begin, end, index < 0, index >= 0 && current >= 0 && index != current};
    if (index >= 0) current = index;
  }
  return plan;
}

// One row of a stream: a step of a sequence, an entry of a state, a tap.
template <class V>
static __attribute__((noinline)) V read_row(const Stream& s, int64_t b, int64_t t, int64_t d, int n) {
  elem_t<V> row[lanes<V>];
  read_tile<V>(s.at(b, t, d), 1, n, row);
  return load<V>(row);
}
template <class V>
static __attribute__((noinline)) void write_row(const Stream& s, int64_t b, int64_t t, int64_t d, int n, V v) {
  elem_t<V> row[lanes<V>];
  store<V>(row, v);
  write_tile<V>(s.at(b, t, d), 1, n, row);
}

// Registers: every loop over them must be unrolled, or GCC keeps them in memory.
template <class V, int N>
BDAM_INLINE void clear(V* r) {
  BDAM_UNROLL
  for (int j = 0; j < N; ++j) r[j] = V{};
}
template <class V, int N>
BDAM_INLINE void load_all(const elem_t<V>* from, V* r) {
  BDAM_UNROLL
  for (int j = 0; j < N; ++j) r[j] = load<V>(from + j * lanes<V>);
}
template <class V, int N>
BDAM_INLINE void store_all(elem_t<V>* to, const V* r) {
  BDAM_UNROLL
  for (int j = 0; j < N; ++j) store<V>(to + j * lanes<V>, r[j]);
}

// n channels from d0 on, of batch item b, with their taps.
template <class V, int K>
struct Block {
  int64_t b, d0, next;  // next: how far on the block lies that is worked on after it
  int n;
  V w[K], bias;
};
template <class V, int K>
BDAM_INLINE Block<V, K> block_at(const ConvParams& p, int64_t b, int64_t block) {
  Block<V, K> c;
  c.b = b;
  c.d0 = block * lanes<V>;
  c.n = static_cast<int>(std::min<int64_t>(lanes<V>, p.D - c.d0));
  c.next = c.d0 + lanes<V> < p.D ? lanes<V> : 0;
  const auto* taps = static_cast<const elem_t<V>*>(p.taps) + c.d0;
  BDAM_UNROLL
  for (int j = 0; j < K; ++j) c.w[j] = load<V>(taps + j * p.padded_D);
  c.bias = load<V>(taps + K * p.padded_D);
  return c;
}

template <class V, int K>
BDAM_INLINE void read_halo(const ConvParams& p, const Block<V, K>& c, const TilePlan& plan, elem_t<V>* window) {
  for (int j = 0; j < K - 1; ++j) {
    const int64_t at = plan.halo[j];
    V row = {};
    if (at >= 0)
      row = read_row<V>(p.x, c.b, at, c.d0, c.n);
    else if (at != kNoStep)
      row = read_row<V>(p.initial, c.b, -1 - at, c.d0, c.n);
    store<V>(window + j * lanes<V>, row);
  }
}

template <class V, int K>
BDAM_INLINE void forward_steps(const Block<V, K>& c, bool silu, const Stretch& s, Rows<V> in, Rows<V> out, Fetch next,
                               V* r) {
  for (int t = s.begin; t < s.end; ++t) {
    next.read(t);
    r[K - 1] = in[t];
    V y = c.bias;
    BDAM_UNROLL
    for (int j = 0; j < K; ++j) y += c.w[j] * r[j];
    BDAM_UNROLL
    for (int j = 0; j < K - 1; ++j) r[j] = r[j + 1];
    out.set(t, silu ? y * sigmoid<V>(y) : y);
  }
}

template <class V, int K>
static void forward_tile(const ConvParams& p, const TilePlan& plan, const Block<V, K>& c, int64_t t0, int n_t,
                         elem_t<V>* state, elem_t<V>* scratch) {
  constexpr int W = lanes<V>;
  elem_t<V>* scratch_out = scratch + kConvTile * W;
  const Stream to = p.out.at(c.b, t0, c.d0);
  const Stream from = p.x.at(c.b, t0, c.d0);
  const Fetch next(from, c.next, scratch);
  const Rows<V> in = input_rows<V>(from, n_t, c.n, scratch), out = output_rows<V>(to, c.n, scratch_out);
  V r[K];
  load_all<V, K - 1>(state, r);
  for (int i = 0; i < plan.count; ++i) {
    const Stretch& s = plan.stretches[i];
    if (s.padding) {
      for (int t = s.begin; t < s.end; ++t) out.set(t, V{});
      continue;
    }
    if (s.reset) clear<V, K - 1>(r);
    forward_steps<V, K>(c, p.silu, s, in, out, next, r);
  }
  store_all<V, K - 1>(state, r);
  finish_rows<V>(to, n_t, c.n, out, scratch_out);
}

struct TaskRange {
  int64_t b, piece, block_begin, n_blocks, t_begin, t_end;
};
template <class V>
BDAM_INLINE TaskRange task_range(const ConvParams& p, int64_t task) {
  TaskRange r;
  r.b = task / (p.groups * p.pieces);
  r.piece = task / p.groups % p.pieces;
  r.block_begin = task % p.groups * p.blocks;
  r.n_blocks = std::min(p.blocks, p.padded_D / lanes<V> - r.block_begin);
  r.t_begin = r.piece * p.piece;
  r.t_end = std::min(r.t_begin + p.piece, p.L);
  return r;
}

template <class V, int K>
static void forward_task(const ConvParams& p, int64_t task) {
  constexpr int W = lanes<V>, S = (K - 1) * W;
  const TaskRange range = task_range<V>(p, task);
  Scratch buffer((range.n_blocks * S + 2 * kConvTile * W) * sizeof(elem_t<V>));
  elem_t<V>* states = buffer.take<elem_t<V>>(range.n_blocks * S);
  elem_t<V>* scratch = buffer.take<elem_t<V>>(2 * kConvTile * W);
  const TilePlan start = plan_tile(p, range.b, range.t_begin, 0);
  for (int64_t k = 0; k < range.n_blocks; ++k)
    read_halo<V, K>(p, block_at<V, K>(p, range.b, range.block_begin + k), start, states + k * S);
  for (int64_t t = range.t_begin; t < range.t_end; t += kConvTile) {
    const int n_t = static_cast<int>(std::min<int64_t>(kConvTile, range.t_end - t));
    const TilePlan plan = plan_tile(p, range.b, t, n_t);
    for (int64_t k = 0; k < range.n_blocks; ++k)
      forward_tile<V, K>(p, plan, block_at<V, K>(p, range.b, range.block_begin + k), t, n_t, states + k * S, scratch);
  }
  for (int64_t k = 0; p.final_state && range.t_end == p.L && k < range.n_blocks; ++k) {
    const Block<V, K> c = block_at<V, K>(p, range.b, range.block_begin + k);
    for (int j = 0; j < K - 1; ++j) write_row<V>(p.final_state, c.b, j, c.d0, c.n, load<V>(states + k * S + j * W));
  }
}

// Gradients of s for a stretch, into ds, and their products with the inputs: dw[0..K), and dw[K] for the bias.
template <class V, int K>
BDAM_INLINE void gradient_steps(const Block<V, K>& c, bool silu, const Stretch& s, Rows<V> in, Rows<V> dout,
                                Fetch next_x, Fetch next_dout, elem_t<V>* ds_rows, V* r, V* dw) {
  for (int t = s.begin; t < s.end; ++t) {
    next_x.read(t);
    next_dout.read(t);
    r[K - 1] = in[t];
    V ds = dout[t];
    if (silu) {
      V y = c.bias;
      BDAM_UNROLL
      for (int j = 0; j < K; ++j) y += c.w[j] * r[j];
      ds *= silu_derivative<V>(y, sigmoid<V>(y));
    }
    BDAM_UNROLL
    for (int j = 0; j < K; ++j) dw[j] += ds * r[j];
    dw[K] += ds;
    store<V>(ds_rows + t * lanes<V>, ds);
    BDAM_UNROLL
    for (int j = 0; j < K - 1; ++j) r[j] = r[j + 1];
  }
}
// From the last step of a stretch to the first: owed[k] is the sum that later steps have added for the step k before
// the next one.
template <class V, int K>
BDAM_INLINE void input_gradient_steps(const Block<V, K>& c, const Stretch& s, const elem_t<V>* ds_rows, Rows<V> dx,
                                      V* owed) {
  for (int t = s.end - 1; t >= s.begin; --t) {
    const V ds = load<V>(ds_rows + t * lanes<V>);
    dx.set(t, owed[0] + c.w[K - 1] * ds);
    BDAM_UNROLL
    for (int k = 0; k < K - 1; ++k) owed[k] = owed[k + 1] + c.w[K - 2 - k] * ds;
  }
}

// The state holds owed[K - 1], then dw[K + 1]. Without `emit` only owed advances: the steps belong to the next piece.
template <class V, int K>
static void backward_tile(const ConvParams& p, const TilePlan& plan, const Block<V, K>& c, int64_t t0, int n_t,
                          bool emit, elem_t<V>* state, elem_t<V>* scratch) {
  constexpr int W = lanes<V>, T = kConvTile * W;
  elem_t<V>*scratch_dout = scratch + T, *scratch_dx = scratch + 2 * T, *ds = scratch + 3 * T, *window = scratch + 4 * T;
  const Stream to = p.dx.at(c.b, t0, c.d0);
  const Stream from = p.x.at(c.b, t0, c.d0), upstream = p.dout.at(c.b, t0, c.d0);
  const Fetch next_x(from, c.next, scratch), next_dout(upstream, c.next, scratch);
  const Rows<V> in = input_rows<V>(from, n_t, c.n, scratch);
  const Rows<V> dout = input_rows<V>(upstream, n_t, c.n, scratch_dout);
  const Rows<V> dx = emit ? output_rows<V>(to, c.n, scratch_dx) : Rows<V>{scratch_dx, W};
  read_halo<V, K>(p, c, plan, window);
  V r[K], dw[K + 1] = {}, owed[K] = {};
  load_all<V, K - 1>(window, r);
  for (int i = 0; i < plan.count; ++i) {
    const Stretch& s = plan.stretches[i];
    if (s.padding) continue;
    if (s.reset) clear<V, K - 1>(r);
    gradient_steps<V, K>(c, p.silu, s, in, dout, next_x, next_dout, ds, r, dw);
  }
  elem_t<V>* sums = state + (K - 1) * W;
  if (emit) {
    BDAM_UNROLL
    for (int j = 0; j < K + 1; ++j) store<V>(sums + j * W, load<V>(sums + j * W) + dw[j]);
  }
  load_all<V, K - 1>(state, owed);
  for (int i = plan.count - 1; i >= 0; --i) {
    const Stretch& s = plan.stretches[i];
    if (s.padding) {
      for (int t = s.begin; t < s.end; ++t) dx.set(t, V{});
      continue;
    }
    input_gradient_steps<V, K>(c, s, ds, dx, owed);
    if (s.reset) clear<V, K - 1>(owed);
  }
  store_all<V, K - 1>(state, owed);
  if (emit) finish_rows<V>(to, n_t, c.n, dx, scratch_dx);
}

// The states before the last tile of a task: from the gradient of the final state, and from the next piece's first
// steps.
template <class V, int K>
static void start_backward(const ConvParams& p, const TaskRange& range, elem_t<V>* states, elem_t<V>* scratch) {
  constexpr int W = lanes<V>, S = 2 * K * W;
  const int ahead = static_cast<int>(std::min<int64_t>(K - 1, p.L - range.t_end));
  for (int64_t k = 0; k < range.n_blocks; ++k) {
    const Block<V, K> c = block_at<V, K>(p, range.b, range.block_begin + k);
    elem_t<V>* state = states + k * S;
    std::fill(state, state + S, elem_t<V>(0));
    for (int j = 0; p.dfinal && range.t_end + ahead == p.L && j < K - 1; ++j)
      store<V>(state + j * W, read_row<V>(p.dfinal, c.b, K - 2 - j, c.d0, c.n));
    if (ahead > 0)
      backward_tile<V, K>(p, plan_tile(p, range.b, range.t_end, ahead), c, range.t_end, ahead, false, state, scratch);
  }
}

template <class V, int K>
static void backward_task(const ConvParams& p, int64_t task) {
  constexpr int W = lanes<V>, S = 2 * K * W;
  const TaskRange range = task_range<V>(p, task);
  Scratch buffer((range.n_blocks * S + (4 * kConvTile + K) * W) * sizeof(elem_t<V>));
  elem_t<V>* states = buffer.take<elem_t<V>>(range.n_blocks * S);
  elem_t<V>* scratch = buffer.take<elem_t<V>>((4 * kConvTile + K) * W);
  start_backward<V, K>(p, range, states, scratch);
  const int64_t n_tiles = (range.t_end - range.t_begin + kConvTile - 1) / kConvTile;
  for (int64_t i = n_tiles - 1; i >= 0; --i) {
    const int64_t t = range.t_begin + i * kConvTile;
    const int n_t = static_cast<int>(std::min<int64_t>(kConvTile, range.t_end - t));
    const TilePlan plan = plan_tile(p, range.b, t, n_t);
    for (int64_t k = 0; k < range.n_blocks; ++k)
      backward_tile<V, K>(p, plan, block_at<V, K>(p, range.b, range.block_begin + k), t, n_t, true, states + k * S,
                          scratch);
  }
  auto* partial = static_cast<elem_t<V>*>(p.partial) + (range.b * p.pieces + range.piece) * (K + 1) * p.padded_D;
  for (int64_t k = 0; k < range.n_blocks; ++k) {
    const Block<V, K> c = block_at<V, K>(p, range.b, range.block_begin + k);
    const elem_t<V>* state = states + k * S;
    for (int j = 0; j < K + 1; ++j) store<V>(partial + j * p.padded_D + c.d0, load<V>(state + (K - 1 + j) * W));
    for (int j = 0; p.dinitial && range.t_begin == 0 && j < K - 1; ++j)
      write_row<V>(p.dinitial, c.b, K - 2 - j, c.d0, c.n, load<V>(state + j * W));
  }
}

#include "causal_conv1d/cpu/rows.inl"

// The taps of one block of channels, and the sums of their partial gradients in the order of the tasks.
template <class V>
static void read_taps(const ConvParams& p, int64_t block) {
  const int64_t d0 = block * lanes<V>;
  const int n = static_cast<int>(std::min<int64_t>(lanes<V>, p.D - d0));
  auto* taps = static_cast<elem_t<V>*>(p.taps) + d0;
  for (int j = 0; j < p.width; ++j) store<V>(taps + j * p.padded_D, read_row<V>(p.weight, 0, j, d0, n));
  store<V>(taps + p.width * p.padded_D, p.bias ? read_row<V>(p.bias, 0, 0, d0, n) : V{});
}
template <class V>
static void sum_tap_gradients(const ConvParams& p, int64_t block) {
  const int64_t d0 = block * lanes<V>, n_partials = p.B * p.pieces;
  const int n = static_cast<int>(std::min<int64_t>(lanes<V>, p.D - d0));
  for (int j = 0; j < p.width + 1; ++j) {
    const auto* partial = static_cast<const elem_t<V>*>(p.partial) + j * p.padded_D + d0;
    V sum = {};
    for (int64_t i = 0; i < n_partials; ++i) sum += load<V>(partial + i * (p.width + 1) * p.padded_D);
    if (j < p.width)
      write_row<V>(p.dweight, 0, j, d0, n, sum);
    else if (p.dbias)
      write_row<V>(p.dbias, 0, 0, d0, n, sum);
  }
}
template <class V>
static void count_lanes(int& n) {
  n = lanes<V>;
}

// The number of taps is a template parameter, so that the window stands in registers. Rows are for the usual widths
// only: the others would double the time to build this file.
template <class V>
static void forward_any(const ConvParams& p, int64_t task) {
  switch (p.rows ? -p.width : p.width) {
    case -1:
      return forward_rows_task<V, 1>(p, task);
    case -2:
      return forward_rows_task<V, 2>(p, task);
    case -3:
      return forward_rows_task<V, 3>(p, task);
    case -4:
      return forward_rows_task<V, 4>(p, task);
    case 1:
      return forward_task<V, 1>(p, task);
    case 2:
      return forward_task<V, 2>(p, task);
    case 3:
      return forward_task<V, 3>(p, task);
    case 4:
      return forward_task<V, 4>(p, task);
    case 5:
      return forward_task<V, 5>(p, task);
    case 6:
      return forward_task<V, 6>(p, task);
    case 7:
      return forward_task<V, 7>(p, task);
    case 8:
      return forward_task<V, 8>(p, task);
  }
}
template <class V>
static void backward_any(const ConvParams& p, int64_t task) {
  switch (p.rows ? -p.width : p.width) {
    case -1:
      return backward_rows_task<V, 1>(p, task);
    case -2:
      return backward_rows_task<V, 2>(p, task);
    case -3:
      return backward_rows_task<V, 3>(p, task);
    case -4:
      return backward_rows_task<V, 4>(p, task);
    case 1:
      return backward_task<V, 1>(p, task);
    case 2:
      return backward_task<V, 2>(p, task);
    case 3:
      return backward_task<V, 3>(p, task);
    case 4:
      return backward_task<V, 4>(p, task);
    case 5:
      return backward_task<V, 5>(p, task);
    case 6:
      return backward_task<V, 6>(p, task);
    case 7:
      return backward_task<V, 7>(p, task);
    case 8:
      return backward_task<V, 8>(p, task);
  }
}
