// Gradients of HSIC. With S the gradient of the value by K, symmetric, S_ij = scale (L_ij - cross / 2 (l_i + l_j) +
// product s_L) for row sums l of L, zero on the diagonal if that is left out:
//   linear    dx_i = 2 sum_j S_ij x_j
//   Gaussian  dx_i = -2 / sigma^2 (w_i x_i - sum_j W_ij x_j), W = S * K, w its row sums
// and the same for y with K and L exchanged. One task has one tile of rows of one side.

// Writes rows [i0, i0 + ni) of the gradient from `rows` ([ni][row]).
template <class V>
static void write_gradient(const HsicSide& s, int64_t b, int64_t i0, int ni, const elem_t<V>* rows,
                           elem_t<V>* scratch) {
  constexpr int W = lanes<V>;
  int64_t d0 = 0;
  if (s.gradient.channel == 1) {
    d0 = s.features / W * W;
    for (int i = 0; i < ni; ++i) {
      Stream row = s.gradient.at(b, i0 + i, 0);
      row.time = W;
      write_tile<V>(row, static_cast<int>(d0 / W), W, rows + i * s.row);
    }
  }
  for (; d0 < s.features; d0 += W) {
    const int n = static_cast<int>(std::min<int64_t>(W, s.features - d0));
    for (int i = 0; i < ni; ++i) store<V>(scratch + i * W, load<V>(rows + i * s.row + d0));
    write_tile<V>(s.gradient.at(b, i0, d0), ni, n, scratch);
  }
}

struct RowTask {
  int64_t b, tile, i0;
  int ni;
};
BDAM_INLINE RowTask row_task(const HsicParams& p, int64_t task) {
  RowTask r;
  r.tile = task % p.tiles();
  r.b = task / p.tiles();
  r.i0 = r.tile * p.tile;
  r.ni = tile_count(p, r.tile);
  return r;
}
// S without its diagonal term, given the row sums of the other side's kernel matrix.
template <class V>
struct Sensitivity {
  elem_t<V> scale, half_cross, constant;
  const elem_t<V>* sums = nullptr;  // null: zeros
  int64_t stride = 1;               // of the sums
  elem_t<V> sign = -1;              // of the sums: -1 where they are minus the diagonal

  elem_t<V> sum(int64_t i) const { return sums ? sign * sums[i * stride] : elem_t<V>(0); }
};
template <class V>
static Sensitivity<V> sensitivity(const HsicParams& p, const HsicSide& other, int64_t b) {
  Sensitivity<V> s;
  s.scale = static_cast<elem_t<V>>(p.scale * static_cast<const elem_t<V>*>(p.upstream)[b]);
  s.half_cross = static_cast<elem_t<V>>(p.cross / 2);
  if (p.form == HsicForm::gaussian)
    s.sums = saved_of<V>(p, other.sums, b), s.sign = 1;
  else if (p.unbiased && p.form == HsicForm::features)
    s.sums = norms_of<V>(p, other, b);
  else if (p.unbiased)  // the squared lengths of rows that this task has not centred
    s.sums = saved_of<V>(p, other.gram, b), s.stride = p.samples + 1;
  double total = 0;
  for (int64_t i = 0; i < p.samples; ++i) total += s.sum(i);
  s.constant = static_cast<elem_t<V>>(p.product_scale * total);
  return s;
}

template <class V>
static void hsic_samples_gradient(const HsicParams& p, int which, int64_t task) {
  const RowTask t = row_task(p, task);
  const HsicSide &own = p.side[which], &other = p.side[1 - which];
  const int64_t N = p.samples;
  Scratch buffer((t.ni * (N + own.row) + t.ni * lanes<V>)*sizeof(elem_t<V>));
  elem_t<V>*weights = buffer.take<elem_t<V>>(t.ni * N), *rows = buffer.take<elem_t<V>>(t.ni * own.row);
  const Sensitivity<V> s = sensitivity<V>(p, other, t.b);
  const elem_t<V>* gram = saved_of<V>(p, other.gram, t.b);
  for (int i = 0; i < t.ni; ++i) {
    const int64_t at = t.i0 + i;
    for (int64_t j = 0; j < N; ++j)
      weights[i * N + j] = 2 * s.scale * (gram[at * N + j] - s.half_cross * (s.sum(at) + s.sum(j)) + s.constant);
    if (p.unbiased) weights[i * N + at] = 0;
  }
  std::fill(rows, rows + t.ni * own.row, elem_t<V>(0));
  weighted_sum<V>(weights, N, 1, row_of<V>(p, own, t.b, 0), own.row, t.ni, static_cast<int>(N), rows, own.row,
                  own.depth);
  write_gradient<V>(own, t.b, t.i0, t.ni, rows, buffer.take<elem_t<V>>(t.ni * lanes<V>));
}

// rows = 2 scale (other M^T or other M - cross / 2 sum_j l_j x_j - (l_ii - cross l_i + constant) x_i), the last two
// terms for a zero diagonal only, where l_i = -l_ii.
template <class V>
static void hsic_features_gradient(const HsicParams& p, int which, int64_t task) {
  const RowTask t = row_task(p, task);
  const HsicSide &own = p.side[which], &other = p.side[1 - which];
  const int64_t row = own.row, count = t.ni * row;
  Scratch buffer((count + row + t.ni * lanes<V>)*sizeof(elem_t<V>));
  elem_t<V>*rows = buffer.take<elem_t<V>>(count), *shift = buffer.take<elem_t<V>>(row);
  const elem_t<V>* M = saved_of<V>(p, p.product, t.b);
  const elem_t<V>* from = row_of<V>(p, other, t.b, t.i0);
  std::fill(rows, rows + count, elem_t<V>(0));
  if (which == 0)
    dot_tile<V>(from, M, other, t.ni, static_cast<int>(own.features), rows, row);
  else
    weighted_sum<V>(from, other.row, 1, M, row, t.ni, static_cast<int>(other.features), rows, row, own.depth);
  const Sensitivity<V> s = sensitivity<V>(p, other, t.b);
  if (p.unbiased) {
    std::fill(shift, shift + row, elem_t<V>(0));
    weighted_sum<V>(s.sums, 0, 1, row_of<V>(p, own, t.b, 0), row, 1, static_cast<int>(p.samples), shift, row,
                    own.depth);
  }
  for (int i = 0; i < t.ni; ++i) {
    const elem_t<V>* x = row_of<V>(p, own, t.b, t.i0 + i);
    const elem_t<V> diagonal = p.unbiased ? s.sums[t.i0 + i] * (1 + 2 * s.half_cross) + s.constant : elem_t<V>(0);
    for (int64_t k = 0; k < own.depth; ++k) {
      const elem_t<V> corrected =
          p.unbiased ? rows[i * row + k] + s.half_cross * shift[k] - diagonal * x[k] : rows[i * row + k];
      rows[i * row + k] = 2 * s.scale * corrected;
    }
  }
  write_gradient<V>(own, t.b, t.i0, t.ni, rows, buffer.take<elem_t<V>>(t.ni * lanes<V>));
}

// rows[r] -= sum over c of weights[r][c] (x_r - x_c): w x - W x of rows that are close loses their difference.
template <class V>
static void subtract_differences(const HsicParams& p, const HsicSide& s, int64_t b, int64_t i, int64_t j,
                                 const elem_t<V>* weights, elem_t<V>* rows) {
  GivenRows<V> given{p, s, b, i, j};
  for (int64_t k0 = 0; k0 < s.features; k0 += kHsicColumns) {
    given.read(k0);
    for (int r = 0; r < tile_count(p, i); ++r)
      for (int64_t k = 0; k < kHsicColumns && k0 + k < s.depth; k += lanes<V>) {
        const V x = load<V>(given.row(r) + k);
        V sum = {};
        for (int c = 0; c < tile_count(p, j); ++c)
          sum += set1<V>(weights[r * p.tile + c]) * (x - load<V>(given.other(c) + k));
        elem_t<V>* to = rows + r * s.row + k0 + k;
        store<V>(to, load<V>(to) - sum);
      }
  }
}

// A tile of rows against all tiles: kernels again from distances, as the N x N matrices are never kept.
template <class V>
static void hsic_gaussian_gradient(const HsicParams& p, int64_t task) {
  const int64_t b = task / p.tiles(), i = task % p.tiles(), T = p.tile, i0 = i * T;
  const int ni = tile_count(p, i);
  const int64_t size[2] = {T * p.side[0].row, T * p.side[1].row};
  Scratch buffer((3 * T * T + size[0] + size[1] + 2 * T + T * lanes<V>)*sizeof(elem_t<V>));
  elem_t<V>*tile[2], *rows[2], *totals[2], *weights = buffer.take<elem_t<V>>(T * T);
  const Gaussian<V> g[2] = {gaussian_of<V>(p, p.side[0], b), gaussian_of<V>(p, p.side[1], b)};
  const Sensitivity<V> s[2] = {sensitivity<V>(p, p.side[1], b), sensitivity<V>(p, p.side[0], b)};
  for (int k = 0; k < 2; ++k) {
    tile[k] = buffer.take<elem_t<V>>(T * T), rows[k] = buffer.take<elem_t<V>>(size[k]),
    totals[k] = buffer.take<elem_t<V>>(T);
    std::fill(rows[k], rows[k] + size[k], elem_t<V>(0));
    std::fill(totals[k], totals[k] + T, elem_t<V>(0));
  }
  for (int64_t j = 0; j < p.tiles(); ++j) {
    const int nj = tile_count(p, j);
    bool close[2];
    for (int k = 0; k < 2; ++k) close[k] = hsic_kernel_tile<V>(p, k, b, i, j, tile[k]);
    for (int k = 0; k < 2; ++k) {
      for (int r = 0; r < ni; ++r) {
        elem_t<V> total = 0;
        for (int c = 0; c < nj; ++c) {
          const elem_t<V> S =
              tile[1 - k][r * T + c] - s[k].half_cross * (s[k].sum(i0 + r) + s[k].sum(j * T + c)) + s[k].constant;
          const elem_t<V> w = i == j && r == c ? elem_t<V>(0) : S * (tile[k][r * T + c] + g[k].constant);
          weights[r * T + c] = w;
          total += w;
        }
        if (!close[k]) totals[k][r] += total;
      }
      const HsicSide& own = p.side[k];
      if (close[k])
        subtract_differences<V>(p, own, b, i, j, weights, rows[k]);
      else
        weighted_sum<V>(weights, T, 1, row_of<V>(p, own, b, j * T), own.row, ni, nj, rows[k], own.row, own.depth);
    }
  }
  elem_t<V>* scratch = buffer.take<elem_t<V>>(T * lanes<V>);
  for (int k = 0; k < 2; ++k) {
    const HsicSide& own = p.side[k];
    const elem_t<V> factor = 4 * s[k].scale * g[k].factor;
    for (int r = 0; r < ni; ++r) {
      const elem_t<V>* x = row_of<V>(p, own, b, i0 + r);
      elem_t<V>* out = rows[k] + r * own.row;
      for (int64_t d = 0; d < own.depth; ++d) out[d] = factor * (totals[k][r] * x[d] - out[d]);
    }
    write_gradient<V>(own, b, i0, ni, rows[k], scratch);
  }
}
