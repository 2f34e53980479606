// One step of the scan, lanes by the memory order of the state. Where states are adjacent, as in a contiguous (B, D, N)
// state, lanes are states: nothing is transposed, and the sums over states of as many channels as there are lanes fold
// into one vector. In any other order lanes are channels, through the same tiles as the scan's.

// 2^t with t NaN of any payload; 16 lanes of float need no canonical NaN.
template <class V>
BDAM_INLINE V exp2_any(V t) {
  if constexpr (is_double<V> || lanes<V> == 16)
    return exp2<V>(t);
  else
    return exp2<V>(quiet(t));
}

// Lane i of the result is the sum of v[i]'s lanes; v[0..lanes) is overwritten. The order of each sum is fixed.
template <class V, int S = lanes<V> / 2>
BDAM_INLINE V fold_rows(V* v) {
  BDAM_UNROLL
  for (int i = 0; i < S; ++i) v[i] = fold<V, S>(v[2 * i], v[2 * i + 1]);
  if constexpr (S == 1)
    return v[0];
  else
    return fold_rows<V, S / 2>(v);
}

// One row of a (B, D) stream, n channels from d on; zero where the stream is absent.
template <class V>
BDAM_INLINE V update_row(const Stream& s, int64_t b, int64_t d, int n) {
  if (!s) return V{};
  const Stream at = s.at(b, 0, d);
  if (lies_as_rows<V>(at, n)) return load<V>(reinterpret_cast<const elem_t<V>*>(at.data));
  elem_t<V> row[lanes<V>];
  read_tile<V>(at, 1, n, row);
  return load<V>(row);
}

template <class V>
struct StateUpdate {
  using E = elem_t<V>;
  static constexpr int W = lanes<V>;

  const StateUpdateParams& p;
  int64_t b, first, end;  // batch item, channels
  int N, pitch;           // states, and up to a whole vector
  E *B, *C;               // [pitch]
  E *a, *h;               // [N][W]: of one block, where lanes are channels
  E *step, *input, *sum;  // [W] each: dt log2(e), dt x, and D x + <C, h>

  StateUpdate(const StateUpdateParams& params, int64_t task) : p(params) {
    const int64_t range = task % p.ranges(), g = task / p.ranges() % p.groups;
    b = task / p.ranges() / p.groups;
    first = g * p.group_channels() + range * kUpdateTaskChannels;
    end = std::min(first + kUpdateTaskChannels, (g + 1) * p.group_channels());
    N = static_cast<int>(p.states);
    pitch = (N + W - 1) / W * W;
    Scratch scratch((2 * pitch + 2 * N * W + 3 * W) * sizeof(E));
    for (E** q : {&B, &C}) *q = scratch.template take<E>(pitch);
    for (E** q : {&a, &h}) *q = scratch.template take<E>(N * W);
    for (E** q : {&step, &input, &sum}) *q = scratch.template take<E>(W);
    read_projection(p.B, p.B_groups > 1 ? g : 0, B);
    read_projection(p.C, p.C_groups > 1 ? g : 0, C);
  }

  void run() const {
    for (int64_t d = first; d < end; d += W) {
      const int n = static_cast<int>(std::min<int64_t>(W, end - d));
      const V x = update_row<V>(p.x, b, d, n), raw = update_row<V>(p.dt, b, d, n) + update_row<V>(p.bias, 0, d, n);
      const V dt = quiet(p.softplus ? softplus(raw, exp_neg_abs(raw)) : raw);
      store<V>(step, dt * E(1.442695040888963407359924681001892137));
      store<V>(input, dt * x);
      states_of(d, n);
      V y = load<V>(sum) + update_row<V>(p.skip, 0, d, n) * x;
      if (p.z) {
        const V z = update_row<V>(p.z, b, d, n);
        y *= z * sigmoid(z);
      }
      store_row(d, n, y);
    }
  }

 private:
  void read_projection(const Stream& s, int64_t group, E* dst) const {
    for (int k = 0; k < pitch; k += W) read_tile<V>(s.at(b, group, k), 1, std::min(W, N - k), dst + k);
  }
  void store_row(int64_t d, int n, V y) const {
    const Stream to = p.out.at(b, 0, d);
    if (lies_as_rows<V>(to, n)) return store<V>(reinterpret_cast<E*>(to.data), y);
    E row[W];
    store<V>(row, y);
    write_tile<V>(to, 1, n, row);
  }

  // Whole vectors of states only, the widest that divides N: a partial vector would go through memcpy (10 ns each).
  void states_of(int64_t d, int n) const {
    const bool adjacent = p.state.time == 1 && p.A.time == 1 && p.A.dtype == (is_double<V> ? Dtype::f64 : Dtype::f32);
    if (adjacent && N % W == 0) return adjacent_states<V>(d, n);
    if constexpr (W > 8)
      if (adjacent && N % 8 == 0) return adjacent_states<vec<E, 8>>(d, n);
    if constexpr (W > 4)
      if (adjacent && N % 4 == 0) return adjacent_states<vec<E, 4>>(d, n);
    channel_lanes(d, n);
  }

  template <class L>
  void adjacent_states(int64_t d, int n) const {
    BDAM_SWITCH_DTYPE(p.state.dtype, S, (adjacent_rows<L, S>(d, n)))
  }
  template <class L, class S>
  void adjacent_rows(int64_t d, int n) const {
    constexpr int K = lanes<L>;
    const StateUpdate m = *this;  // a store through a vector may alias any member
    S* state = reinterpret_cast<S*>(m.p.state.at(m.b, 0, d).data);
    const E* A = reinterpret_cast<const E*>(m.p.A.at(0, 0, d).data);
    const int64_t state_pitch = m.p.state.channel, A_pitch = m.p.A.channel;
    for (int i0 = 0; i0 < n; i0 += K) {
      L part[K] = {};
      for (int i = i0; i < std::min(i0 + K, n); ++i) {
        L y = {};
        for (int k = 0; k < m.N; k += K) {
          S* at = state + i * state_pitch + k;
          const L e = exp2_any<L>(m.step[i] * load<L>(A + i * A_pitch + k));
          const L next = e * load<L>(at) + m.input[i] * load<L>(m.B + k);
          store<L>(at, next);
          y += next * load<L>(m.C + k);
        }
        part[i - i0] = y;
      }
      store<L>(m.sum + i0, fold_rows<L>(part));
    }
  }

  void channel_lanes(int64_t d, int n) const {
    const StateUpdate m = *this;
    const Stream state = m.p.state.at(m.b, 0, d);
    const Rows<V> old = input_rows<V>(state, m.N, n, m.h), next = output_rows<V>(state, n, m.h);
    const Rows<V> decay = input_rows<V>(m.p.A.at(0, 0, d), m.N, n, m.a);
    const V dt = load<V>(m.step), x = load<V>(m.input);
    V y = {};
    for (int k = 0, count = m.N; k < count; ++k) {
      const V v = exp2_any<V>(dt * decay[k]) * old[k] + x * m.B[k];
      next.set(k, v);
      y += v * m.C[k];
    }
    finish_rows(state, m.N, n, next, m.h);
    store<V>(m.sum, y);
  }
};

template <class V>
static void state_update_task(const StateUpdateParams& p, int64_t task) {
  StateUpdate<V>(p, task).run();
}
