// Tasks of HSIC. Two kernels carry the arithmetic, both on rows as they lie, without packing: inner products of rows
// (lanes along the features, sums over lanes at the end) and sums of rows with weights (lanes along the features).

template <class V>
BDAM_INLINE elem_t<V>* row_of(const HsicParams& p, const HsicSide& s, int64_t b, int64_t i) {
  return static_cast<elem_t<V>*>(s.centred) + (b * p.samples + i) * s.row;
}
template <class V>
BDAM_INLINE elem_t<V>* saved_of(const HsicParams& p, void* part, int64_t b) {
  return static_cast<elem_t<V>*>(part) + b * p.saved_stride;
}
template <class V>
BDAM_INLINE const elem_t<V>* norms_of(const HsicParams& p, const HsicSide& s, int64_t b) {
  return static_cast<const elem_t<V>*>(s.norms) + b * p.samples;
}
BDAM_INLINE int tile_count(const HsicParams& p, int64_t tile) {
  const int64_t left = p.samples - tile * p.tile;
  return static_cast<int>(left < p.tile ? left : p.tile);
}

// W vectors become one: lane i is the sum of the lanes of v[i], by halves.
template <class V, int S = lanes<V> / 2>
BDAM_INLINE V sum_each(V* v) {
  BDAM_UNROLL
  for (int i = 0; i < S; ++i) v[i] = fold<V, S>(v[2 * i], v[2 * i + 1]);
  if constexpr (S > 1)
    return sum_each<V, S / 2>(v);
  else
    return v[0];
}

// out[i][j] = <a_i, b_j> for i < ni, j < nj, for rows that lie as the side's. Rows behind the last are computed as the
// last once more and not stored; with themselves (a == b) only one of two equal products is computed. Every product has
// the same order of additions, so that <a, a> = <a, b> exactly where rows are equal.
template <class V>
struct DotShape {
  static constexpr int W = lanes<V>, rows = 4, columns = W >= 16 ? 4 : 2;  // as many as the registers hold
};
template <class V>
BDAM_INLINE void dot_block(const elem_t<V>* const* a, const elem_t<V>* const* b, int64_t depth, elem_t<V>* sums) {
  constexpr int W = lanes<V>, R = DotShape<V>::rows, C = DotShape<V>::columns;
  V acc[R * C] = {};
  for (int64_t k = 0; k < depth; k += W) {
    V va[R];
    BDAM_UNROLL
    for (int i = 0; i < R; ++i) va[i] = load<V>(a[i] + k);
    BDAM_UNROLL
    for (int j = 0; j < C; ++j) {
      const V vb = load<V>(b[j] + k);
      BDAM_UNROLL
      for (int i = 0; i < R; ++i) acc[i * C + j] += va[i] * vb;
    }
  }
  BDAM_UNROLL
  for (int g = 0; g < R * C / W; ++g) store<V>(sums + g * W, sum_each<V>(acc + g * W));
}
template <class V>
static void dot_tile(const elem_t<V>* a, const elem_t<V>* b, const HsicSide& s, int ni, int nj, elem_t<V>* out,
                     int64_t stride) {
  constexpr int R = DotShape<V>::rows, C = DotShape<V>::columns;
  static_assert(R * C % lanes<V> == 0 && R % C == 0);
  for (int i = 0; i < ni; i += R) {
    const elem_t<V>* pa[R];
    for (int r = 0; r < R; ++r) pa[r] = a + (i + r < ni ? i + r : ni - 1) * s.row;
    for (int j = a == b ? i : 0; j < nj; j += C) {
      const elem_t<V>* pb[C];
      for (int c = 0; c < C; ++c) pb[c] = b + (j + c < nj ? j + c : nj - 1) * s.row;
      elem_t<V> sums[R * C];
      dot_block<V>(pa, pb, s.depth, sums);
      for (int r = 0; r < R && i + r < ni; ++r)
        for (int c = 0; c < C && j + c < nj; ++c) out[(i + r) * stride + j + c] = sums[r * C + c];
    }
  }
  for (int i = 0; a == b && i < ni; ++i)
    for (int j = 0; j < i; ++j) out[i * stride + j] = out[j * stride + i];
}

// out[i] += sum over j < nj of w[i * wi + j * wj] b_j, for i < ni and the first `depth` columns (a multiple of
// kHsicRow).
template <class V, int R, int C>
BDAM_INLINE void weighted_block(const elem_t<V>* w, int64_t wi, int64_t wj, const elem_t<V>* b, int64_t b_stride,
                                int nj, elem_t<V>* out, int64_t out_stride) {
  constexpr int W = lanes<V>;
  V acc[R * C];
  BDAM_UNROLL
  for (int i = 0; i < R; ++i) {
    BDAM_UNROLL
    for (int c = 0; c < C; ++c) acc[i * C + c] = load<V>(out + i * out_stride + c * W);
  }
  for (int j = 0; j < nj; ++j) {
    V vb[C];
    BDAM_UNROLL
    for (int c = 0; c < C; ++c) vb[c] = load<V>(b + j * b_stride + c * W);
    BDAM_UNROLL
    for (int i = 0; i < R; ++i) {
      const V weight = set1<V>(w[i * wi + j * wj]);
      BDAM_UNROLL
      for (int c = 0; c < C; ++c) acc[i * C + c] += weight * vb[c];
    }
  }
  BDAM_UNROLL
  for (int i = 0; i < R; ++i) {
    BDAM_UNROLL
    for (int c = 0; c < C; ++c) store<V>(out + i * out_stride + c * W, acc[i * C + c]);
  }
}
// A few columns of all rows of b after the other: they stay in the first cache while all of `out` takes its part of
// them.
template <class V, int C>
BDAM_INLINE void weighted_columns(const elem_t<V>* w, int64_t wi, int64_t wj, const elem_t<V>* b, int64_t b_stride,
                                  int ni, int nj, elem_t<V>* out, int64_t out_stride) {
  int i = 0;
  for (; i + 4 <= ni; i += 4)
    weighted_block<V, 4, C>(w + i * wi, wi, wj, b, b_stride, nj, out + i * out_stride, out_stride);
  for (; i < ni; ++i) weighted_block<V, 1, C>(w + i * wi, wi, wj, b, b_stride, nj, out + i * out_stride, out_stride);
}
template <class V>
static void weighted_sum(const elem_t<V>* w, int64_t wi, int64_t wj, const elem_t<V>* b, int64_t b_stride, int ni,
                         int nj, elem_t<V>* out, int64_t out_stride, int64_t depth) {
  constexpr int W = lanes<V>, C = W >= 16 ? 4 : 2;
  int64_t k = 0;
  for (; k + C * W <= depth; k += C * W)
    weighted_columns<V, C>(w, wi, wj, b + k, b_stride, ni, nj, out + k, out_stride);
  for (; k < depth; k += W) weighted_columns<V, 1>(w, wi, wj, b + k, b_stride, ni, nj, out + k, out_stride);
}

// e^x - 1 to 2e-7 of itself, for x up to 80.
template <class V>
BDAM_INLINE V expm1(V x) {
  if constexpr (is_double<V>) {
    return map_libm(x, std::expm1);
  } else {
    const V c = max(x, -87.f);
    const V m = c * 1.44269504088896341f + kRoundingBias, r = m - kRoundingBias;
    const V f = c - r * 0.693359375f + r * 2.12194440e-4f;
    V p = f * 1.381945913e-03f + 8.368681185e-03f;
    p = p * f + 4.166828096e-02f;
    p = p * f + 1.666652113e-01f;
    p = p * f + 4.999999404e-01f;
    p = p * f * f + f;
    const V power = (V)(((int_vec<V>)m << 23) + 0x3f800000);
    const V result = p * power + (power - 1.f);
    return x == x ? result : x;
  }
}

// --- centring
// C vectors of columns: rows minus the first (which removes an offset without rounding), then minus their mean. `from`
// may be the centred rows themselves.
template <class V, int C, class S>
BDAM_INLINE void centre_block(const S* from, int64_t from_stride, int n_rows, elem_t<V>* to, int64_t to_stride) {
  constexpr int W = lanes<V>;
  V pivot[C], mean[C] = {};
  BDAM_UNROLL
  for (int c = 0; c < C; ++c) pivot[c] = load<V>(from + c * W);
  for (int i = 0; i < n_rows; i += 32) {  // in two levels: the error grows with 32 + N / 32 additions
    V part[C] = {};
    for (int k = i; k < std::min(i + 32, n_rows); ++k) {
      BDAM_UNROLL
      for (int c = 0; c < C; ++c) part[c] += load<V>(from + k * from_stride + c * W) - pivot[c];
    }
    BDAM_UNROLL
    for (int c = 0; c < C; ++c) mean[c] += part[c];
  }
  BDAM_UNROLL
  for (int c = 0; c < C; ++c) mean[c] /= static_cast<elem_t<V>>(n_rows);
  for (int i = 0; i < n_rows; ++i) {
    BDAM_UNROLL
    for (int c = 0; c < C; ++c)
      store<V>(to + i * to_stride + c * W, load<V>(from + i * from_stride + c * W) - pivot[c] - mean[c]);
  }
}
// One vector of columns of any input; zeros behind the last feature.
template <class V>
static void centre_columns(const HsicParams& p, const HsicSide& s, int64_t b, int64_t d0) {
  const int n = static_cast<int>(std::min<int64_t>(lanes<V>, s.features - d0)), n_rows = static_cast<int>(p.samples);
  elem_t<V>* first = row_of<V>(p, s, b, 0) + d0;
  if (n <= 0) {
    for (int i = 0; i < n_rows; ++i) store<V>(first + i * s.row, V{});
    return;
  }
  read_tile<V>(s.input.at(b, 0, d0), n_rows, n, first, s.row);
  centre_block<V, 1>(first, s.row, n_rows, first, s.row);
}
// Adjacent features are read as they lie, several vectors of a row at a time: alone they would be out of the hardware
// prefetcher's sight, and on an Intel Xeon 16 problems of 64 x 768 would take twice as long.
template <class V>
static void hsic_centre(const HsicParams& p, int which, int64_t task) {
  constexpr int W = lanes<V>, C = W >= 16 ? 8 : 4;
  const HsicSide& s = p.side[which];
  const int64_t b = task / s.centre_tasks();
  int64_t d = task % s.centre_tasks() * kHsicCentre;
  const int64_t end = std::min(d + kHsicCentre, s.depth);
  BDAM_SWITCH_DTYPE(s.input.dtype, S, {
    for (; s.input.channel == 1 && d + C * W <= std::min(end, s.features); d += C * W)
      centre_block<V, C>(reinterpret_cast<const S*>(s.input.at(b, 0, d).data), s.input.time,
                         static_cast<int>(p.samples), row_of<V>(p, s, b, 0) + d, s.row);
  })
  for (; d < end; d += W) centre_columns<V>(p, s, b, d);
}
template <class V>
static void hsic_norm(const HsicParams& p, int which, int64_t task) {
  constexpr int R = DotShape<V>::rows, C = DotShape<V>::columns;
  const HsicSide& s = p.side[which];
  const elem_t<V>* row = row_of<V>(p, s, task / p.samples, task % p.samples);
  const elem_t<V>*a[R], *b[C];
  for (int i = 0; i < R; ++i) a[i] = row;
  for (int j = 0; j < C; ++j) b[j] = row;
  elem_t<V> sums[R * C];
  dot_block<V>(a, b, s.depth, sums);
  static_cast<elem_t<V>*>(s.norms)[task] = sums[0];
}

// --- linear, N x N: a pair of tiles (i <= j) of both Gram matrices
struct TilePair {
  int64_t i, j;
};
BDAM_INLINE TilePair tile_pair(int64_t tiles, int64_t index) {
  TilePair t{0, 0};
  for (; index >= tiles - t.i; ++t.i) index -= tiles - t.i;
  t.j = t.i + index;
  return t;
}
template <class V>
static void hsic_gram_tile(const HsicParams& p, int which, int64_t task) {
  const int64_t b = task / p.partials(), N = p.samples;
  const TilePair at = tile_pair(p.tiles(), task % p.partials());
  const int64_t i0 = at.i * p.tile, j0 = at.j * p.tile;
  const int ni = tile_count(p, at.i), nj = tile_count(p, at.j);
  const HsicSide& s = p.side[which];
  elem_t<V>* gram = saved_of<V>(p, s.gram, b);
  dot_tile<V>(row_of<V>(p, s, b, i0), row_of<V>(p, s, b, j0), s, ni, nj, gram + i0 * N + j0, N);
  for (int i = 0; at.i != at.j && i < ni; ++i)
    for (int j = 0; j < nj; ++j) gram[(j0 + j) * N + i0 + i] = gram[(i0 + i) * N + j0 + j];
}
template <class V>
static void hsic_gram_product(const HsicParams& p, int64_t task) {
  const int64_t b = task / p.partials(), N = p.samples;
  const TilePair at = tile_pair(p.tiles(), task % p.partials());
  const int64_t i0 = at.i * p.tile, j0 = at.j * p.tile;
  const elem_t<V>*x = saved_of<V>(p, p.side[0].gram, b), *y = saved_of<V>(p, p.side[1].gram, b);
  double sum = 0;
  for (int64_t i = i0; i < i0 + tile_count(p, at.i); ++i) {
    elem_t<V> part = 0;
    for (int64_t j = j0; j < j0 + tile_count(p, at.j); ++j)
      if (!p.unbiased || i != j) part += x[i * N + j] * y[i * N + j];
    sum += part;
  }
  p.partial[task] = at.i == at.j ? sum : 2 * sum;
}

// --- linear, D x D: 16 rows of M
template <class V>
static void hsic_features_rows(const HsicParams& p, int64_t task) {
  const HsicSide &x = p.side[0], &y = p.side[1];
  const int64_t b = task / p.partials(), i0 = task % p.partials() * 16;
  const int ni = static_cast<int>(std::min<int64_t>(16, x.features - i0));
  elem_t<V>* out = saved_of<V>(p, p.product, b) + i0 * y.row;
  std::fill(out, out + ni * y.row, elem_t<V>(0));
  for (int64_t t = 0; t < p.samples; t += kHsicColumns) {
    const int nt = static_cast<int>(std::min<int64_t>(kHsicColumns, p.samples - t));
    weighted_sum<V>(row_of<V>(p, x, b, t) + i0, 1, x.row, row_of<V>(p, y, b, t), y.row, ni, nt, out, y.row, y.depth);
  }
  double sum = 0;
  for (int i = 0; i < ni; ++i) {
    V part = {};
    for (int64_t k = 0; k < y.depth; k += lanes<V>) {
      const V m = load<V>(out + i * y.row + k);
      part += m * m;
    }
    sum += hsum<V>(part);
  }
  p.partial[task] = sum;
}

// --- Gaussian
// The rows of two tiles as they were given, kHsicColumns features at a time: differences of close rows lose nothing
// there, which centred and rounded rows have lost.
template <class V>
struct GivenRows {
  using E = elem_t<V>;
  const HsicParams& p;
  const HsicSide& s;
  int64_t b, i, j;
  alignas(64) E own[kHsicTile * kHsicColumns], others[kHsicTile * kHsicColumns];

  void read(int64_t k0) {
    read_tile_of(i, k0, own);
    if (i != j) read_tile_of(j, k0, others);
  }
  const E* row(int r) const { return own + r * kHsicColumns; }
  const E* other(int c) const { return (i == j ? own : others) + c * kHsicColumns; }

 private:
  void read_tile_of(int64_t tile, int64_t k0, E* out) const {
    for (int64_t d = 0; d < kHsicColumns; d += lanes<V>) {
      const int n = static_cast<int>(std::clamp<int64_t>(s.features - k0 - d, 0, lanes<V>));
      if (n > 0) read_tile<V>(s.input.at(b, tile * p.tile, k0 + d), tile_count(p, tile), n, out + d, kHsicColumns);
      for (int r = 0; n == 0 && r < tile_count(p, tile); ++r) store<V>(out + r * kHsicColumns + d, V{});
    }
  }
};
// Distances from differences, of the pairs (r, c) whose bit c of close[r] is set.
template <class V>
static void close_distances(const HsicParams& p, const HsicSide& s, int64_t b, int64_t i, int64_t j,
                            const uint64_t* close, elem_t<V>* out, int64_t stride) {
  GivenRows<V> rows{p, s, b, i, j};
  for (int64_t k0 = 0; k0 < s.features; k0 += kHsicColumns) {
    rows.read(k0);
    for (int r = 0; r < tile_count(p, i); ++r)
      for (int c = 0; c < tile_count(p, j); ++c) {
        if ((close[r] >> c & 1) == 0) continue;
        V part = {};
        for (int k = 0; k < kHsicColumns; k += lanes<V>) {
          const V difference = load<V>(rows.row(r) + k) - load<V>(rows.other(c) + k);
          part += difference * difference;
        }
        out[r * stride + c] = (k0 == 0 ? elem_t<V>(0) : out[r * stride + c]) + hsum<V>(part);
      }
  }
}
// Squared distances of a pair of tiles, row by row `stride` apart; zero exactly where rows are equal. True if rows are
// close: their distances come from differences.
template <class V>
static bool hsic_distances(const HsicParams& p, int which, int64_t b, int64_t i, int64_t j, elem_t<V>* out,
                           int64_t stride) {
  constexpr int W = lanes<V>;
  const HsicSide& s = p.side[which];
  const int64_t i0 = i * p.tile, j0 = j * p.tile;
  const int ni = tile_count(p, i), nj = tile_count(p, j);
  dot_tile<V>(row_of<V>(p, s, b, i0), row_of<V>(p, s, b, j0), s, ni, nj, out, stride);
  const elem_t<V>* norms = norms_of<V>(p, s, b);
  const elem_t<V> limit = kHsicClose;
  uint64_t close[kHsicTile] = {};
  bool any = false;
  for (int r = 0; r < ni; ++r) {
    const elem_t<V> own = norms[i0 + r];
    V count = {};
    for (int c = 0; c < nj; c += W) {
      const int n = std::min(W, nj - c);
      const V sum = load_n<V>(norms + j0 + c, n) + own;
      const V d = max(sum - load_n<V>(out + r * stride + c, n) * elem_t<V>(2), elem_t<V>(0));
      store_n<V>(out + r * stride + c, d, n);
      count += d < sum * limit ? set1<V>(1) : V{};
    }
    if (hsum<V>(count) <= (i == j && own > 0 ? 1 : 0)) continue;  // on the diagonal a row meets itself
    for (int c = 0; c < nj; ++c)
      if ((i != j || r != c) && out[r * stride + c] < limit * (own + norms[j0 + c])) close[r] |= uint64_t{1} << c;
    any |= close[r] != 0;
  }
  if (any) close_distances<V>(p, s, b, i, j, close, out, stride);
  return any;
}
template <class V>
static void hsic_distance_tile(const HsicParams& p, int which, int64_t b, int64_t i, int64_t j, void* out) {
  hsic_distances<V>(p, which, b, i, j, static_cast<elem_t<V>*>(out), p.tile);
}
// The Gaussian kernel as hsic.h has it: sigma, t and c of one side of one item.
template <class V>
struct Gaussian {
  elem_t<V> sigma, factor, shift, constant;
};
template <class V>
static Gaussian<V> gaussian_of(const HsicParams& p, const HsicSide& s, int64_t b) {
  const elem_t<V>* width = saved_of<V>(p, s.width, b);
  return {width[0], elem_t<V>(-0.5) / (width[0] * width[0]), width[1], elem_t<V>(std::exp(double(width[1])))};
}
// c expm1(t_ij - t) of a pair of tiles; zero in the columns behind the last, and on a diagonal that is left out. True
// if rows are close.
template <class V>
static bool hsic_kernel_tile(const HsicParams& p, int which, int64_t b, int64_t i, int64_t j, elem_t<V>* out) {
  const bool close = hsic_distances<V>(p, which, b, i, j, out, p.tile);
  const Gaussian<V> g = gaussian_of<V>(p, p.side[which], b);
  const int ni = tile_count(p, i), nj = tile_count(p, j);
  for (int r = 0; r < ni; ++r) {
    elem_t<V>* row = out + r * p.tile;
    for (int c = 0; c < nj; c += lanes<V>) {
      const V t = load_n<V>(row + c, std::min(lanes<V>, nj - c)) * g.factor;
      store<V>(row + c, expm1<V>(t - g.shift) * g.constant);
    }
    std::fill(row + nj, row + p.tile, elem_t<V>(0));
    if (i == j && p.unbiased) row[r] = 0;
  }
  return close;
}

// One of p.groups(): the tile rows i = group, group + groups, ..., each with all j >= i. Parts of <K, L> and of all row
// sums.
template <class V>
static void hsic_gaussian_group(const HsicParams& p, int64_t task) {
  constexpr int W = lanes<V>;
  const int64_t b = task / p.groups(), T = p.tile;
  Scratch buffer(2 * T * T * sizeof(elem_t<V>));
  elem_t<V>* tile[2] = {buffer.take<elem_t<V>>(T * T), buffer.take<elem_t<V>>(T * T)};
  elem_t<V>* sums[2];
  for (int k = 0; k < 2; ++k) {
    sums[k] = static_cast<elem_t<V>*>(p.side[k].partial_sums) + task * p.samples;
    std::fill(sums[k], sums[k] + p.samples, elem_t<V>(0));
  }
  double total = 0;
  for (int64_t i = task % p.groups(); i < p.tiles(); i += p.groups()) {
    for (int64_t j = i; j < p.tiles(); ++j) {
      const int ni = tile_count(p, i), nj = tile_count(p, j);
      for (int k = 0; k < 2; ++k) {
        hsic_kernel_tile<V>(p, k, b, i, j, tile[k]);
        for (int r = 0; r < ni; ++r) {
          V across = {};
          for (int c = 0; c < T; c += W) across += load<V>(tile[k] + r * T + c);
          sums[k][i * T + r] += hsum<V>(across);
        }
        for (int r = 0; i != j && r < ni; ++r)
          for (int c = 0; c < nj; ++c) sums[k][j * T + c] += tile[k][r * T + c];
      }
      // Row by row: rounding errors of equal products (labels) add up, 1e-6 of the largest in a sum over the whole
      // tile.
      double both = 0;
      for (int r = 0; r < ni; ++r) {
        V across = {};
        for (int64_t c = r * T; c < (r + 1) * T; c += W) across += load<V>(tile[0] + c) * load<V>(tile[1] + c);
        both += hsum<V>(across);
      }
      total += (i == j ? 1.0 : 2.0) * both;
    }
  }
  p.partial[task] = total;
}
template <class V>
static void hsic_add_sums(const HsicParams& p, int which, int64_t b) {
  const HsicSide& s = p.side[which];
  elem_t<V>* out = saved_of<V>(p, s.sums, b);
  for (int64_t i = 0; i < p.samples; ++i) {
    elem_t<V> sum = 0;
    for (int64_t g = 0; g < p.groups(); ++g)
      sum += static_cast<const elem_t<V>*>(s.partial_sums)[(b * p.groups() + g) * p.samples + i];
    out[i] = sum;
  }
}

#include "hsic/cpu/backward.inl"
