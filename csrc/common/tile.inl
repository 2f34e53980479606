// Tiles of a Stream: n_t steps of n <= W channels as rows of W lanes of float (or double). Included after simd.inl.
// Three memory orders: channels adjacent (rows are read as they lie), steps adjacent (W x W blocks are transposed in
// registers), anything else (element by element). Dead lanes read as zero and are never written.

template <class V, class S>
BDAM_INLINE void read_rows(const Stream& s, int n_t, int n, elem_t<V>* dst, int64_t stride) {
  const S* p = reinterpret_cast<const S*>(s.data);
  for (int t = 0; t < n_t; ++t) store<V>(dst + t * stride, load_n<V>(p + t * s.time, n));
}
template <class V, class S>
BDAM_INLINE void write_rows(const Stream& s, int n_t, int n, const elem_t<V>* src) {
  S* p = reinterpret_cast<S*>(s.data);
  for (int t = 0; t < n_t; ++t) store_n<V>(p + t * s.time, load<V>(src + t * lanes<V>), n);
}
// Each channel's piece of a tile lies in other cache lines than its neighbour's, out of the hardware prefetcher's
// sight. Fetching the pieces that come next, `next` elements on, while these are transposed: scan forward 1.46 to 1.39
// ms, at 8 kB between channels 5.8 to 4.3.
template <bool Write, class V, class S>
BDAM_INLINE void fetch_columns(const S* piece, int64_t channel, int n, int64_t next, bool last) {
  if (next == 0) return;
  for (int i = 0; i < n; ++i) {
    __builtin_prefetch(piece + i * channel + next, Write, 2);
    if (last)
      __builtin_prefetch(piece + i * channel + next + lanes<V>, Write, 2);  // a piece may start anywhere in a line
  }
}
// Steps adjacent, forwards (time = 1) or backwards (-1): step t of the tile stands in row t, or n_t - 1 - t, of the
// block.
template <class V, class S>
BDAM_INLINE void read_columns(const Stream& s, int n_t, int n, elem_t<V>* dst, int64_t stride, int64_t next) {
  constexpr int W = lanes<V>;
  const S* p = reinterpret_cast<const S*>(s.data) + (s.time < 0 ? 1 - n_t : 0);
  for (int t0 = 0; t0 < n_t; t0 += W) {
    const int m = std::min(W, n_t - t0);
    V rows[W];
    for (int i = 0; i < W; ++i) rows[i] = i < n ? load_n<V>(p + i * s.channel + t0, m) : V{};
    fetch_columns<false, V>(p + t0, s.channel, n, next, t0 + W >= n_t);
    transpose<V>(rows);
    for (int i = 0; i < m; ++i) store<V>(dst + (s.time < 0 ? n_t - 1 - t0 - i : t0 + i) * stride, rows[i]);
  }
}
template <class V, class S>
BDAM_INLINE void write_columns(const Stream& s, int n_t, int n, const elem_t<V>* src, int64_t next) {
  constexpr int W = lanes<V>;
  S* p = reinterpret_cast<S*>(s.data) + (s.time < 0 ? 1 - n_t : 0);
  for (int t0 = 0; t0 < n_t; t0 += W) {
    const int m = std::min(W, n_t - t0);
    V rows[W];
    for (int i = 0; i < W; ++i) rows[i] = i < m ? load<V>(src + (s.time < 0 ? n_t - 1 - t0 - i : t0 + i) * W) : V{};
    transpose<V>(rows);
    for (int i = 0; i < n; ++i) store_n<V>(p + i * s.channel + t0, rows[i], m);
    fetch_columns<true, V>(p + t0, s.channel, n, next, t0 + W >= n_t);
  }
}
template <class V, class S>
BDAM_INLINE void read_elements(const Stream& s, int n_t, int n, elem_t<V>* dst, int64_t stride) {
  const S* p = reinterpret_cast<const S*>(s.data);
  S row[lanes<V>] = {};
  for (int t = 0; t < n_t; ++t) {
    for (int i = 0; i < n; ++i) row[i] = p[t * s.time + i * s.channel];
    store<V>(dst + t * stride, load<V>(row));
  }
}
template <class V, class S>
BDAM_INLINE void write_elements(const Stream& s, int n_t, int n, const elem_t<V>* src) {
  S* p = reinterpret_cast<S*>(s.data);
  S row[lanes<V>];
  for (int t = 0; t < n_t; ++t) {
    store<V>(row, load<V>(src + t * lanes<V>));
    for (int i = 0; i < n; ++i) p[t * s.time + i * s.channel] = row[i];
  }
}

// Copies the tile that starts where `s` points to (Stream::at) into rows of W lanes, `stride` elements apart. `next`:
// how far on in memory the tile lies that is copied after it, 0 where that is not known.
template <class V>
static void read_tile(const Stream& s, int n_t, int n, elem_t<V>* dst, int64_t stride = lanes<V>, int64_t next = 0) {
  BDAM_SWITCH_DTYPE(s.dtype, S, {
    if (s.channel == 1 || n == 1)
      read_rows<V, S>(s, n_t, n, dst, stride);
    else if (s.time == 1 || s.time == -1)
      read_columns<V, S>(s, n_t, n, dst, stride, next);
    else
      read_elements<V, S>(s, n_t, n, dst, stride);
  })
}
template <class V>
static void write_tile(const Stream& s, int n_t, int n, const elem_t<V>* src, int64_t next = 0) {
  BDAM_SWITCH_DTYPE(s.dtype, S, {
    if (s.channel == 1 || n == 1)
      write_rows<V, S>(s, n_t, n, src);
    else if (s.time == 1 || s.time == -1)
      write_columns<V, S>(s, n_t, n, src, next);
    else
      write_elements<V, S>(s, n_t, n, src);
  })
}

// Rows of W lanes, `stride` elements apart: in the tensor itself where no conversion is needed, else in scratch memory.
template <class V>
struct Rows {
  elem_t<V>* data;
  int64_t stride;
  V operator[](int t) const { return load<V>(data + t * stride); }
  void set(int t, V v) const { store<V>(data + t * stride, v); }
};
template <class V>
BDAM_INLINE bool lies_as_rows(const Stream& s, int n) {
  return s.dtype == (is_double<V> ? Dtype::f64 : Dtype::f32) && s.channel == 1 && n == lanes<V>;
}
template <class V>
BDAM_INLINE Rows<V> input_rows(const Stream& s, int n_t, int n, elem_t<V>* scratch, int64_t next = 0) {
  if (lies_as_rows<V>(s, n)) return {reinterpret_cast<elem_t<V>*>(s.data), s.time};
  read_tile<V>(s, n_t, n, scratch, lanes<V>, next);
  return {scratch, lanes<V>};
}
// Rows to write; finish_rows stores them where they belong if they stand in scratch memory.
template <class V>
BDAM_INLINE Rows<V> output_rows(const Stream& s, int n, elem_t<V>* scratch) {
  if (lies_as_rows<V>(s, n)) return {reinterpret_cast<elem_t<V>*>(s.data), s.time};
  return {scratch, lanes<V>};
}
template <class V>
BDAM_INLINE void finish_rows(const Stream& s, int n_t, int n, const Rows<V>& rows, const elem_t<V>* scratch,
                             int64_t next = 0) {
  if (rows.data == scratch) write_tile<V>(s, n_t, n, scratch, next);
}
// Rows of a channel-last tensor lie out of the hardware prefetcher's sight (a row apart), so the rows that are needed
// next are fetched while others are worked on. Other memory orders (see fetch_columns) and absent streams fetch one
// line over and over, which costs nothing and needs no branch.
struct Fetch {
  const char* data = nullptr;
  int64_t step = 0;
  Fetch() = default;
  // The rows `offset` elements from where the stream points to: the line in which a vector ends, as the one in which it
  // starts is where its left neighbour ended. Fetching the latter, 500 channels (which lie across lines) take
  // 1.29 ms forward and 3.3 backward instead of 1.17 and 2.8.
  Fetch(const Stream& s, int64_t offset, const void* elsewhere) {
    const bool rows = s && s.channel == 1;
    data = rows ? s.data + (offset + kWidth) * s.element_size() - 1 : static_cast<const char*>(elsewhere);
    step = rows ? s.time * s.element_size() : 0;
  }
  void read(int t) const { __builtin_prefetch(data + t * step, 0); }
};
