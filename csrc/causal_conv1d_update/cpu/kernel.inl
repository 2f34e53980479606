// The convolution's step. Lanes are channels, but for the one case that decoding lives on: one step, four taps and four
// entries in contiguous (., 4) memory, whose lanes are entries. There the state moves by one lane, the newest entry
// comes from x, and the weights lie in memory like the state: nothing is transposed.

// Lane i of a vector of quads, state in the first operand and x in the second: the next entry, or x of the quad's
// channel.
template <int W, int Part>
struct ShiftInPattern {
  static constexpr int at(int i) { return i % 4 < 3 ? i + 1 : W + Part * (W / 4) + i / 4; }
};

template <class V>
struct ConvUpdate {
  using E = elem_t<V>;
  static constexpr int W = lanes<V>, T = kConvUpdateTile;

  const ConvUpdateParams& p;
  int64_t b, first, end;  // batch item, channels
  int S, K;               // entries, taps
  E *q, *y, *old, *taps;  // [K - 1 + T][W], [T][W], [S][W], [K][W]

  ConvUpdate(const ConvUpdateParams& params, int64_t task) : p(params) {
    b = task / p.ranges();
    first = task % p.ranges() * kConvUpdateTaskChannels;
    end = std::min(first + kConvUpdateTaskChannels, p.channels);
    S = static_cast<int>(p.entries), K = p.width;
    Scratch scratch((2 * T + S + 2 * K) * W * sizeof(E));
    q = scratch.template take<E>((K - 1 + T) * W);
    y = scratch.template take<E>(T * W);
    old = scratch.template take<E>(S * W);
    taps = scratch.template take<E>(K * W);
  }

  void run() const {
    const bool quads = p.length == 1 && K == 4 && S == 4 && p.state.time == 1 && p.state.channel == 4 &&
                       p.weight.time == 1 && p.weight.channel == 4;
    int64_t d = first;
    if constexpr (W >= 4)
      for (; quads && d + W <= end; d += W) {
        BDAM_SWITCH_DTYPE(p.state.dtype, X, BDAM_SWITCH_DTYPE(p.weight.dtype, Y, (quad_block<X, Y>(d))))
      }
    for (; d < end; d += W) block(d, static_cast<int>(std::min<int64_t>(W, end - d)));
  }

 private:
  V row(const Stream& s, int64_t batch, int64_t t, int64_t d, int n) const {
    if (!s) return V{};
    const Stream at = s.at(batch, t, d);
    if (lies_as_rows<V>(at, n)) return load<V>(reinterpret_cast<const E*>(at.data));
    E values[W];
    read_tile<V>(at, 1, n, values);
    return load<V>(values);
  }
  void set_row(const Stream& s, int64_t t, int64_t d, int n, V v) const {
    const Stream at = s.at(b, t, d);
    if (lies_as_rows<V>(at, n)) return store<V>(reinterpret_cast<E*>(at.data), v);
    E values[W];
    store<V>(values, v);
    write_tile<V>(at, 1, n, values);
  }
  // Few rows: element by element, where read_tile would transpose whole W x W blocks.
  void read_few(const Stream& s, int rows, int n, E* dst) const {
    BDAM_SWITCH_DTYPE(s.dtype, X, {
      if (s.channel == 1)
        read_rows<V, X>(s, rows, n, dst, W);
      else
        read_elements<V, X>(s, rows, n, dst, W);
    })
  }
  void write_few(const Stream& s, int rows, int n, const E* src) const {
    BDAM_SWITCH_DTYPE(s.dtype, X, {
      if (s.channel == 1)
        write_rows<V, X>(s, rows, n, src);
      else
        write_elements<V, X>(s, rows, n, src);
    })
  }

  template <class X, class Y, int Part>
  BDAM_INLINE V quad_part(X* state, const Y* weight, V x) {
    const V next = shuffle<V, ShiftInPattern<W, Part>>(load<V>(state + Part * W), x);
    store<V>(state + Part * W, next);
    return next * load<V>(weight + Part * W);
  }
  template <class X, class Y>
  void quad_block(int64_t d) const {
    X* state = reinterpret_cast<X*>(p.state.at(b, 0, d).data);
    const Y* weight = reinterpret_cast<const Y*>(p.weight.at(0, 0, d).data);
    const V x = row(p.x, b, 0, d, W);
    const V low = fold<V, 1>(quad_part<X, Y, 0>(state, weight, x), quad_part<X, Y, 1>(state, weight, x));
    const V high = fold<V, 1>(quad_part<X, Y, 2>(state, weight, x), quad_part<X, Y, 3>(state, weight, x));
    finish(0, d, W, fold<V, 1>(low, high) + row(p.bias, 0, 0, d, W));
  }
  void finish(int64_t t, int64_t d, int n, V s) const { set_row(p.out, t, d, n, p.silu ? s * sigmoid(s) : s); }

  void block(int64_t d, int n) const {
    const Stream state = p.state.at(b, 0, d);
    if (S > 0) read_few(state, S, n, old);
    read_few(p.weight.at(0, 0, d), K, n, taps);
    const V bias = row(p.bias, 0, 0, d, n);
    for (int j = 0; j < K - 1; ++j) store<V>(q + j * W, load<V>(old + (S - K + 1 + j) * W));
    for (int64_t t0 = 0; t0 < p.length; t0 += T) {
      const int n_t = static_cast<int>(std::min<int64_t>(T, p.length - t0));
      read_tile<V>(p.x.at(b, t0, d), n_t, n, q + (K - 1) * W);
      for (int t = 0; t < n_t; ++t) {
        V s = bias;
        for (int j = 0; j < K; ++j) s += load<V>(taps + j * W) * load<V>(q + (t + j) * W);
        store<V>(y + t * W, p.silu ? s * sigmoid(s) : s);
      }
      write_tile<V>(p.out.at(b, t0, d), n_t, n, y);
      std::memmove(q, q + n_t * W, (K - 1) * W * sizeof(E));
    }
    shift_state(state, d, n);
  }
  // Entry j is the one that stood `length` entries later, in the state or in x.
  void shift_state(const Stream& state, int64_t d, int n) const {
    const int kept = static_cast<int>(std::max<int64_t>(S - p.length, 0));
    if (kept > 0) write_few(state, kept, n, old + (S - kept) * W);
    for (int j = kept; j < S; ++j) set_row(p.state, j, d, n, row(p.x, b, p.length - S + j, d, n));
  }
};

template <class V>
static void conv_update_task(const ConvUpdateParams& p, int64_t task) {
  ConvUpdate<V>(p, task).run();
}
