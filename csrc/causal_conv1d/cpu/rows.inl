// The convolution with lanes along time, for steps that are adjacent in memory: one channel of one batch item at a
// time, in tiles that stand in cache. Everything is in memory order; a reversed filter has its taps reversed and its
// window on the other side: s[m] = bias + sum_k c_k q[m + k], q starting K - 1 steps before the tile, or at it if
// reversed.

struct RowTile {
  int64_t begin;  // memory order
  int n;
};
// The steps of a channel from memory position `begin` on, as rows of W lanes.
template <class V>
BDAM_INLINE Stream line_at(const ConvParams& p, const Stream& s, int64_t b, int64_t d, int64_t begin) {
  Stream line = s.at(b, p.reverse ? p.L - 1 - begin : begin, d);
  line.time = lanes<V>;
  line.channel = 1;
  return line;
}
// Whole lines are copied where nothing is converted: the general calls below cost 200 cycles a line, its filter 300.
template <class V>
BDAM_INLINE bool is_native(const Stream& line) {
  return line.dtype == (is_double<V> ? Dtype::f64 : Dtype::f32);
}
template <class V>
BDAM_INLINE void read_line(const Stream& line, int n, elem_t<V>* to) {
  if (is_native<V>(line)) {
    std::memcpy(to, line.data, n * sizeof(elem_t<V>));
    return;
  }
  const int whole = n / lanes<V>, rest = n % lanes<V>;
  read_tile<V>(line, whole, lanes<V>, to);
  if (rest) store_n<V>(to + whole * lanes<V>, read_row<V>(line, 0, whole, 0, rest), rest);
}
template <class V>
BDAM_INLINE void write_line(const Stream& line, int n, const elem_t<V>* from) {
  if (is_native<V>(line)) {
    std::memcpy(line.data, from, n * sizeof(elem_t<V>));
    return;
  }
  const int whole = n / lanes<V>, rest = n % lanes<V>;
  write_tile<V>(line, whole, lanes<V>, from);
  if (rest) write_row<V>(line, 0, whole, 0, rest, load<V>(from + whole * lanes<V>));
}

template <class V, int K>
struct Channel {
  int64_t b, d;
  elem_t<V> c[K], bias;  // taps in memory order
};
template <class V, int K>
BDAM_INLINE Channel<V, K> channel_at(const ConvParams& p, int64_t b, int64_t d) {
  Channel<V, K> channel{b, d, {}, {}};
  const auto* taps = static_cast<const elem_t<V>*>(p.taps) + d;
  BDAM_UNROLL
  for (int k = 0; k < K; ++k) channel.c[k] = taps[(p.reverse ? K - 1 - k : k) * p.padded_D];
  channel.bias = taps[K * p.padded_D];
  return channel;
}

// A channel's start in memory, for native streams.
template <class V, int K>
BDAM_INLINE elem_t<V>* row_at(const ConvParams& p, const Stream& s, const Channel<V, K>& c) {
  return reinterpret_cast<elem_t<V>*>(line_at<V>(p, s, c.b, c.d, 0).data);
}

// q[i] = the input at memory position begin + i for i in [0, n), from x, the initial state, or zero; zeros behind.
template <class V, int K>
BDAM_INLINE void read_window(const ConvParams& p, const Channel<V, K>& c, int64_t begin, int n, elem_t<V>* q) {
  const int before = static_cast<int>(std::max<int64_t>(0, -begin));
  const int after = static_cast<int>(std::max<int64_t>(0, begin + n - p.L));
  read_line<V>(line_at<V>(p, p.x, c.b, c.d, begin + before), n - before - after, q + before);
  for (int i = 0; i < before; ++i)
    q[i] = p.initial ? read_row<V>(p.initial, c.b, begin + i + K - 1, c.d, 1)[0] : elem_t<V>(0);
  for (int i = n - after; i < n; ++i)
    q[i] = p.initial ? read_row<V>(p.initial, c.b, p.L + K - 2 - (begin + i), c.d, 1)[0] : elem_t<V>(0);
  store<V>(q + n, V{});
}

template <class V, int K>
BDAM_INLINE V filter(const Channel<V, K>& c, const elem_t<V>* q) {
  V s = set1<V>(c.bias);
  BDAM_UNROLL
  for (int k = 0; k < K; ++k) s += c.c[k] * load<V>(q + k);
  return s;
}

// One vector of outputs from the window at q.
template <class V, int K>
BDAM_INLINE void forward_vector(const Channel<V, K>& c, bool silu, const elem_t<V>* q, elem_t<V>* out) {
  const V s = filter<V, K>(c, q);
  store<V>(out, silu ? s * sigmoid<V>(s) : s);
}
// A channel of at least one whole window read and written where it lies: through a copy each load would wait for the
// stores that it straddles (0.23 to 0.19 ms for 4096 channels of 273 steps). The last whole window overlaps the one
// before it.
template <class V, int K>
static void forward_direct(const ConvParams& p, const Channel<V, K>& c, const elem_t<V>* x, elem_t<V>* out) {
  constexpr int W = lanes<V>;
  const bool silu = p.silu;
  const int64_t last = p.L - W - (p.reverse ? K - 1 : 0), shift = p.reverse ? 0 : K - 1;
  elem_t<V> edge[W + K];  // the window that reaches beyond the channel
  const int64_t at_edge = p.reverse ? p.L - W : 0;
  store<V>(edge + shift, load<V>(x + at_edge));
  for (int j = 0; j < K - 1; ++j)
    edge[p.reverse ? W + K - 2 - j : j] = p.initial ? read_row<V>(p.initial, c.b, j, c.d, 1)[0] : elem_t<V>(0);
  forward_vector<V, K>(c, silu, edge, out + at_edge);
  for (int64_t i = p.reverse ? 0 : W; i < last; i += W) forward_vector<V, K>(c, silu, x + i - shift, out + i);
  forward_vector<V, K>(c, silu, x + last - shift, out + last);
}

template <class V, int K>
static void forward_row(const ConvParams& p, int64_t b, int64_t d, elem_t<V>* q, elem_t<V>* y) {
  constexpr int W = lanes<V>;
  const Channel<V, K> c = channel_at<V, K>(p, b, d);
  const bool direct = W >= K - 1 && is_native<V>(p.x) && is_native<V>(p.out) && p.L >= W + K - 1;
  if (direct) forward_direct<V, K>(p, c, row_at<V>(p, p.x, c), row_at<V>(p, p.out, c));
  for (int64_t m = direct ? p.L : 0; m < p.L; m += kConvRowTile) {
    const int n = static_cast<int>(std::min<int64_t>(kConvRowTile, p.L - m));
    read_window<V, K>(p, c, p.reverse ? m : m - (K - 1), n + K - 1, q);
    for (int i = 0; i < n; i += W) {
      const V s = filter<V, K>(c, q + i);
      store<V>(y + i, p.silu ? s * sigmoid<V>(s) : s);
    }
    write_line<V>(line_at<V>(p, p.out, b, d, m), n, y);
  }
  for (int j = 0; p.final_state && j < K - 1; ++j)
    write_row<V>(p.final_state, b, j, d, 1, read_row<V>(p.x, b, p.L - (K - 1) + j, d, 1));
}

template <class V, int K>
static void forward_rows_task(const ConvParams& p, int64_t task) {
  const TaskRange range = task_range<V>(p, task);
  Scratch buffer(2 * (kConvRowTile + 32) * sizeof(elem_t<V>));
  elem_t<V>* q = buffer.take<elem_t<V>>(kConvRowTile + 32);
  elem_t<V>* y = buffer.take<elem_t<V>>(kConvRowTile + 32);
  const int64_t begin = range.block_begin * lanes<V>, end = std::min(p.D, begin + range.n_blocks * lanes<V>);
  for (int64_t d = begin; d < end; ++d) forward_row<V, K>(p, range.b, d, q, y);
}

template <class V>
struct RowScratch {
  elem_t<V>*q, *g, *e, *dx;  // inputs, upstream gradient, gradient of s, gradient of the inputs
};

// Gradients of s at steps [from, to) of q, into e, and their products with the inputs if dw is given.
template <class V, int K>
BDAM_INLINE void row_gradients(const ConvParams& p, const Channel<V, K>& c, const RowScratch<V>& s, int from, int to,
                               elem_t<V>* e, V* dw) {
  for (int i = from; i < to; i += lanes<V>) {
    V ds = load<V>(s.g + i);
    if (p.silu) {
      const V y = filter<V, K>(c, s.q + i);
      ds *= silu_derivative<V>(y, sigmoid<V>(y));
    }
    store<V>(e + i, ds);
    if (!dw) continue;
    BDAM_UNROLL
    for (int k = 0; k < K; ++k) dw[k] += ds * load<V>(s.q + i + k);
    dw[K] += ds;
  }
}

// The final state's part of dx, and the gradients of the initial state's entries.
template <class V, int K>
BDAM_INLINE void row_states(const ConvParams& p, const Channel<V, K>& c, RowTile tile, const RowScratch<V>& s) {
  for (int j = 0; p.dfinal && j < K - 1; ++j) {
    const int64_t t = p.L - (K - 1) + j, m = (p.reverse ? p.L - 1 - t : t) - tile.begin;
    if (m >= 0 && m < tile.n) s.dx[m] += read_row<V>(p.dfinal, c.b, j, c.d, 1)[0];
  }
  const bool at_start = p.reverse ? tile.begin + tile.n == p.L : tile.begin == 0;
  for (int j = 0; p.dinitial && at_start && j < K - 1; ++j) {
    elem_t<V> sum = 0;
    for (int k = K - 1 - j; k < K; ++k) {  // the step t = j - (K - 1) + k has the entry under its tap K - 1 - k
      const int64_t t = j - (K - 1) + k;
      const elem_t<V> ds = p.reverse ? s.e[p.L - 1 - t - tile.begin + K - 1] : s.e[t];
      sum += c.c[p.reverse ? k : K - 1 - k] * ds;
    }
    write_row<V>(p.dinitial, c.b, j, c.d, 1, set1<V>(sum));
  }
}

template <class V, int K>
static void backward_row_tile(const ConvParams& p, const Channel<V, K>& c, RowTile tile, const RowScratch<V>& s,
                              elem_t<V>* sums) {
  constexpr int W = lanes<V>;
  // Inputs of the tile also reach the K - 1 steps beside it, whose ds is computed here too but counted for dw over
  // there.
  const int64_t begin = p.reverse ? std::max<int64_t>(tile.begin - (K - 1), 0) : tile.begin;
  const int64_t end = p.reverse ? tile.begin + tile.n : std::min<int64_t>(tile.begin + tile.n + K - 1, p.L);
  const int n = static_cast<int>(end - begin), skipped = static_cast<int>(tile.begin - begin);
  read_window<V, K>(p, c, p.reverse ? begin : begin - (K - 1), n + K - 1, s.q);
  read_line<V>(line_at<V>(p, p.dout, c.b, c.d, begin), n, s.g);
  store<V>(s.g + n, V{});
  std::fill(s.e, s.e + K - 1, elem_t<V>(0));
  elem_t<V>* e = s.e + (p.reverse ? K - 1 - skipped : 0);
  V dw[K + 1] = {};
  row_gradients<V, K>(p, c, s, 0, skipped, e, nullptr);
  row_gradients<V, K>(p, c, s, skipped, skipped + tile.n, e, dw);
  row_gradients<V, K>(p, c, s, skipped + tile.n, n, e, nullptr);
  for (int i = 0; i < K - 1; i += W) store<V>(e + n + i, V{});
  for (int i = 0; i < tile.n; i += W) {
    V dx = {};
    BDAM_UNROLL
    for (int k = 0; k < K; ++k) dx += c.c[K - 1 - k] * load<V>(s.e + i + k);
    store<V>(s.dx + i, dx);
  }
  row_states<V, K>(p, c, tile, s);
  write_line<V>(line_at<V>(p, p.dx, c.b, c.d, tile.begin), tile.n, s.dx);
  BDAM_UNROLL
  for (int k = 0; k < K + 1; ++k) sums[k] += hsum<V>(dw[k]);
}

// The window of the vector at memory position m where it reaches beyond the channel: the initial state or zeros there.
template <class V, int K>
BDAM_INLINE void edge_window(const ConvParams& p, const Channel<V, K>& c, const elem_t<V>* x, int64_t m, elem_t<V>* q) {
  for (int i = 0; i < lanes<V> + K - 1; ++i) {
    const int64_t at = m + i - (p.reverse ? 0 : K - 1), entry = p.reverse ? p.L + K - 2 - at : at + K - 1;
    const bool before = p.initial && entry >= 0 && entry < K - 1;
    q[i] = at >= 0 && at < p.L ? x[at] : before ? read_row<V>(p.initial, c.b, entry, c.d, 1)[0] : elem_t<V>(0);
  }
}

// A channel that is read and written in place, in memory order.
template <class V>
struct DirectRow {
  const elem_t<V>*x, *g;
  elem_t<V>* dx;
};

// Gradients of s at n steps from m on, into e, and their products with the inputs.
template <class V, int K>
BDAM_INLINE void direct_gradients(const ConvParams& p, const Channel<V, K>& c, const DirectRow<V>& row, int64_t m,
                                  int n, elem_t<V>* e, V* dw) {
  constexpr int W = lanes<V>;
  const int64_t shift = p.reverse ? 0 : K - 1;
  const bool silu = p.silu;
  elem_t<V> edge[W + K], upstream[W];
  for (int i = 0; i < n; i += W) {
    const int64_t at = m + i;
    const elem_t<V>*q = row.x + at - shift, *g = row.g + at;
    if (at < shift || at - shift + W + K - 1 > p.L) {
      edge_window<V, K>(p, c, row.x, at, edge);
      q = edge;
    }
    if (at + W > p.L) {
      for (int j = 0; j < W; ++j) upstream[j] = at + j < p.L ? g[j] : elem_t<V>(0);
      g = upstream;
    }
    V ds = load<V>(g);
    if (silu) {
      const V y = filter<V, K>(c, q);
      ds *= silu_derivative<V>(y, sigmoid<V>(y));
    }
    store<V>(e + i, ds);
    BDAM_UNROLL
    for (int k = 0; k < K; ++k) dw[k] += ds * load<V>(q + k);
    dw[K] += ds;
  }
}

// A channel read and written where it lies: copies of it were a third of the time (B 8, D 512, L 273). Gradients of s
// go through e, a tile at a time behind the last K - 1 of the tile before; dx follows them K - 1 steps behind, if not
// reversed.
template <class V, int K>
static void backward_direct(const ConvParams& p, const Channel<V, K>& c, const DirectRow<V>& row, elem_t<V>* e,
                            elem_t<V>* sums) {
  constexpr int W = lanes<V>;
  V dw[K + 1] = {};
  std::fill(e, e + K - 1, elem_t<V>(0));
  for (int64_t m = 0; m < p.L; m += kConvRowTile) {
    const int n = static_cast<int>(std::min<int64_t>(kConvRowTile, p.L - m));
    const bool last = m + n == p.L;
    direct_gradients<V, K>(p, c, row, m, n, e + K - 1, dw);
    for (int j = 0; p.dinitial && (p.reverse ? last : m == 0) && j < K - 1; ++j) {
      elem_t<V> sum = 0;
      for (int k = K - 1 - j; k < K; ++k) {  // the step t = j - (K - 1) + k has the entry under its tap K - 1 - k
        const int64_t t = j - (K - 1) + k;
        sum += c.c[p.reverse ? k : K - 1 - k] * e[K - 1 + (p.reverse ? p.L - 1 - t - m : t)];
      }
      write_row<V>(p.dinitial, c.b, j, c.d, 1, set1<V>(sum));
    }
    for (int i = 0; i < K - 1; i += W) store<V>(e + K - 1 + n + i, V{});
    const int begin = p.reverse || m > 0 ? 0 : K - 1, end = n + (last && !p.reverse ? K - 1 : 0);
    elem_t<V>* dx = row.dx + m - (p.reverse ? 0 : K - 1);
    for (int i = begin; i < end; i += W) {
      V sum = {};
      BDAM_UNROLL
      for (int k = 0; k < K; ++k) sum += c.c[K - 1 - k] * load<V>(e + i + k);
      if (i + W <= end)
        store<V>(dx + i, sum);
      else
        store_n<V>(dx + i, sum, end - i);
    }
    std::memmove(e, e + n, (K - 1) * sizeof(elem_t<V>));
  }
  for (int j = 0; p.dfinal && j < K - 1; ++j) {
    const int64_t t = p.L - (K - 1) + j;
    row.dx[p.reverse ? p.L - 1 - t : t] += read_row<V>(p.dfinal, c.b, j, c.d, 1)[0];
  }
  BDAM_UNROLL
  for (int k = 0; k < K + 1; ++k) sums[k] = hsum<V>(dw[k]);
}

template <class V, int K>
static void backward_rows_task(const ConvParams& p, int64_t task) {
  constexpr int kSize = kConvRowTile + 64;
  const TaskRange range = task_range<V>(p, task);
  Scratch buffer(4 * kSize * sizeof(elem_t<V>));
  RowScratch<V> s;
  for (elem_t<V>** part : {&s.q, &s.g, &s.e, &s.dx}) *part = buffer.take<elem_t<V>>(kSize);
  const int64_t begin = range.block_begin * lanes<V>, end = std::min(p.D, begin + range.n_blocks * lanes<V>);
  const bool direct = is_native<V>(p.x) && is_native<V>(p.dout) && is_native<V>(p.dx);
  for (int64_t d = begin; d < end; ++d) {
    const Channel<V, K> c = channel_at<V, K>(p, range.b, d);
    elem_t<V> sums[K + 1] = {};
    if (direct) {
      const DirectRow<V> row{row_at<V>(p, p.x, c), row_at<V>(p, p.dout, c), row_at<V>(p, p.dx, c)};
      backward_direct<V, K>(p, c, row, s.e, sums);
    }
    for (int64_t m = direct ? p.L : 0; m < p.L; m += kConvRowTile)
      backward_row_tile<V, K>(p, c, {m, static_cast<int>(std::min<int64_t>(kConvRowTile, p.L - m))}, s, sums);
    auto* partial = static_cast<elem_t<V>*>(p.partial) + range.b * (K + 1) * p.padded_D + d;
    for (int k = 0; k < K; ++k) partial[(p.reverse ? K - 1 - k : k) * p.padded_D] = sums[k];
    partial[K * p.padded_D] = sums[K];
  }
}
