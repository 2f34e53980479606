// Lanes are channels, so softplus, gate and recurrence never sum across lanes; only dB and dC do. Work goes in tiles of
// 32 steps: a prelude brings dt and x = dt u into L1, the states follow four at a time in registers (so N is no
// template parameter), an epilogue gates and stores. PerLane: B or C is constant (D, N), so both are held as one vector
// per state.

template <class V>
constexpr elem_t<V> log2e = elem_t<V>(1.442695040888963407359924681001892137);
template <class V>
constexpr elem_t<V> ln2 = elem_t<V>(0.693147180559945309417232121458176568);

// B or C at step t, state k: a scalar for all lanes, or a vector (`stride` 0 where it does not depend on t).
template <class V, bool PerLane>
BDAM_INLINE auto projection(const elem_t<V>* p, int64_t stride, int t, int k) {
  if constexpr (PerLane)
    return load<V>(p + t * stride + k * lanes<V>);
  else
    return p[t * stride + k];
}

// --- sweeps over the steps [begin, end) of a tile for one chunk of states ---

// Each sweep copies the struct first: a store through a vector may alias any member, which would be read again at every
// step.
template <class V, bool PerLane>
struct Sweep {
  using E = elem_t<V>;
  static constexpr int W = lanes<V>, K = kScanChunk;
  // Lanes left of each state in the sums over channels: four states fold into one vector (13.3 to 11.9 ms at 16 lanes).
  static constexpr bool kFolded = !PerLane && W >= 4;

  const E *a, *dt, *x, *dy;    // a [K][W] = A log2(e); the others [T][W]
  const E *B, *C;              // see projection()
  int64_t B_stride, C_stride;  // equal unless PerLane
  E *y, *ddt, *dx;             // [T][W], added to
  E* eh;                       // [T][2][K][W]: exp(dt A) and h before the step
  E *sum_B, *sum_C;            // per step [W] where folded, else [K][W] (stride 0 where constant)
  int64_t sum_B_stride, sum_C_stride;
  Fetch fetch[2];  // rows to fetch, one of each at every step of a forward sweep

  BDAM_INLINE void load_chunk(V* r, const E* p) {
    BDAM_UNROLL
    for (int k = 0; k < K; ++k) r[k] = load<V>(p + k * W);
  }
  BDAM_INLINE void store_chunk(E* p, const V* r) {
    BDAM_UNROLL
    for (int k = 0; k < K; ++k) store<V>(p + k * W, r[k]);
  }

  // Upper: dt A may be positive, so exp needs its upper bound. 16 lanes have it for nothing.
  static constexpr bool kAlwaysUpper = W == 16 || is_double<V>;
  void forward(int begin, int end, E* state, bool upper) const {
    upper || kAlwaysUpper ? forward_sweep<true>(begin, end, state) : forward_sweep<kAlwaysUpper>(begin, end, state);
  }
  void record(int begin, int end, E* state, bool upper) const {
    upper || kAlwaysUpper ? record_sweep<true>(begin, end, state) : record_sweep<kAlwaysUpper>(begin, end, state);
  }

  template <bool Upper>
  void forward_sweep(int begin, int end, E* state) const {
    const Sweep m = *this;
    const int64_t C_step = PerLane ? m.C_stride : m.B_stride;
    V av[K], h[K];
    load_chunk(av, m.a);
    load_chunk(h, state);
    for (int t = begin; t < end; ++t) {
      m.fetch[0].read(t), m.fetch[1].read(t);
      V d = load<V>(m.dt + t * W), xt = load<V>(m.x + t * W), s = load<V>(m.y + t * W);
      BDAM_UNROLL
      for (int k = 0; k < K; ++k) {
        h[k] = exp2<V, Upper>(d * av[k]) * h[k] + xt * projection<V, PerLane>(m.B, m.B_stride, t, k);
        s += h[k] * projection<V, PerLane>(m.C, C_step, t, k);
      }
      store<V>(m.y + t * W, s);
    }
    store_chunk(state, h);
  }

  // The same, keeping the exponentials for the reverse sweep: computing exp again there instead costs 14.2 against 12.0
  // ms.
  template <bool Upper>
  void record_sweep(int begin, int end, E* state) const {
    const Sweep m = *this;
    const int64_t C_step = PerLane ? m.C_stride : m.B_stride;
    V av[K], h[K];
    load_chunk(av, m.a);
    load_chunk(h, state);
    for (int t = begin; t < end; ++t) {
      m.fetch[0].read(t), m.fetch[1].read(t);
      V d = load<V>(m.dt + t * W), xt = load<V>(m.x + t * W), s = load<V>(m.y + t * W);
      E* q = m.eh + t * 2 * K * W;
      BDAM_UNROLL
      for (int k = 0; k < K; ++k) {
        V e = exp2<V, Upper>(d * av[k]);
        store<V>(q + k * W, e);
        store<V>(q + (K + k) * W, h[k]);
        h[k] = e * h[k] + xt * projection<V, PerLane>(m.B, m.B_stride, t, k);
        s += h[k] * projection<V, PerLane>(m.C, C_step, t, k);
      }
      store<V>(m.y + t * W, s);
    }
    store_chunk(state, h);
  }

  // dh_t = C_t dy_t + g, where g = exp(dt A)_{t+1} dh_{t+1} comes in and leaves in `carry`; `state` is h after the last
  // step.
  void reverse(int begin, int end, const E* state, E* carry, E* dA) const {
    const Sweep m = *this;
    const int64_t C_step = PerLane ? m.C_stride : m.B_stride;
    V av[K], h[K], g[K], da[K];
    load_chunk(av, m.a);
    load_chunk(h, state);
    load_chunk(g, carry);
    load_chunk(da, dA);
    for (int t = end - 1; t >= begin; --t) {
      V d = load<V>(m.dt + t * W), xt = load<V>(m.x + t * W), dyt = load<V>(m.dy + t * W);
      V s = load<V>(m.ddt + t * W), r = load<V>(m.dx + t * W), vb[K], vc[K];
      const E* q = m.eh + t * 2 * K * W;
      BDAM_UNROLL
      for (int k = 0; k < K; ++k) {
        V before = load<V>(q + (K + k) * W), dh = g[k] + dyt * projection<V, PerLane>(m.C, C_step, t, k);
        vc[k] = dyt * h[k];
        vb[k] = dh * xt;
        r += dh * projection<V, PerLane>(m.B, m.B_stride, t, k);
        g[k] = dh * load<V>(q + k * W);
        V w = g[k] * before;
        da[k] += w * d;
        s += w * av[k];
        h[k] = before;
      }
      add_sums(m.sum_B + t * (kFolded ? W : m.sum_B_stride), vb);
      add_sums(m.sum_C + t * (kFolded ? W : m.sum_C_stride), vc);
      store<V>(m.ddt + t * W, s);
      store<V>(m.dx + t * W, r);
    }
    store_chunk(carry, g);
    store_chunk(dA, da);
  }

  // One step from a zero state: h = x B.
  void single_forward(E* state) const {
    V xt = load<V>(x), s = load<V>(y);
    BDAM_UNROLL
    for (int k = 0; k < K; ++k) {
      V h = xt * projection<V, PerLane>(B, B_stride, 0, k);
      s += h * projection<V, PerLane>(C, C_stride, 0, k);
      store<V>(state + k * W, h);
    }
    store<V>(y, s);
  }
  void single_reverse(const E* state, E* carry) const {
    V xt = load<V>(x), dyt = load<V>(dy), r = load<V>(dx), vb[K], vc[K];
    BDAM_UNROLL
    for (int k = 0; k < K; ++k) {
      V dh = load<V>(carry + k * W) + dyt * projection<V, PerLane>(C, C_stride, 0, k);
      vc[k] = dyt * load<V>(state + k * W);
      vb[k] = dh * xt;
      r += dh * projection<V, PerLane>(B, B_stride, 0, k);
    }
    add_sums(sum_B, vb);
    add_sums(sum_C, vc);
    store<V>(dx, r);
  }

  BDAM_INLINE void add_to(E* p, V v) { store<V>(p, load<V>(p) + v); }
  BDAM_INLINE void add_sums(E* p, const V* v) {
    if constexpr (!kFolded) {
      BDAM_UNROLL
      for (int k = 0; k < K; ++k) add_to(p + k * W, v[k]);
    } else {
      add_to(p, fold<V, W / 4>(fold<V, W / 2>(v[0], v[1]), fold<V, W / 2>(v[2], v[3])));
    }
  }
};

// out[0..W) = the sums over lanes of W states, from the folded vectors of W / 4 chunks that lie `chunk` elements apart.
template <class V>
BDAM_INLINE V finish_fold(const elem_t<V>* p, int64_t chunk) {
  if constexpr (lanes<V> == 16)
    return fold<V, 1>(fold<V, 2>(load<V>(p), load<V>(p + chunk)),
                      fold<V, 2>(load<V>(p + 2 * chunk), load<V>(p + 3 * chunk)));
  else if constexpr (lanes<V> == 8)
    return fold<V, 1>(load<V>(p), load<V>(p + chunk));
  else
    return load<V>(p);
}

// Shared by the forward and the backward task: their channels, the tile's B and C, its segments.

template <class V, bool PerLane>
struct ScanTask {
  using E = elem_t<V>;
  static constexpr int W = lanes<V>, T = kScanTile, K = kScanChunk;

  const ScanParams& p;
  int64_t b, g, range;           // batch, group, range of units in the group
  int64_t first, end, unit;      // channels, and the unit that the first channel opens
  int blocks, N, chunks, pitch;  // vectors of channels; states, chunks of states, row length of a tile of B or C
  int64_t t0 = 0;                // the current tile
  int n_t = 0, segments = 0, starts[T + 1];
  bool resets[T];                 // true if a segment starts from a zero state
  bool upper = true;              // true if dt A may be positive: without softplus, or with a positive A
  const int8_t* steps = nullptr;  // the tile's steps
  E *B_tile, *C_tile, *row_tile;
  static constexpr int kFetches = 9;  // the last one fetches nothing
  Fetch fetches[kFetches];

  ScanTask(const ScanParams& params, int64_t task) : p(params) {
    range = task % p.ranges();
    g = task / p.ranges() % p.groups;
    b = task / p.ranges() / p.groups;
    const int64_t offset = range * p.units_per_task * kScanUnit;
    first = g * p.group_channels() + offset;
    end = std::min(first + p.units_per_task * kScanUnit, (g + 1) * p.group_channels());
    unit = g * p.group_units() + range * p.units_per_task;
    blocks = (end - first + W - 1) / W;
    N = p.states;
    chunks = (N + K - 1) / K;
    constexpr int row = W > K ? W : K;
    pitch = (N + row - 1) / row * row;
  }
  int64_t state_size() const { return static_cast<int64_t>(chunks) * K * W; }  // of one block, [states][W]
  int64_t projection_size(bool constant) const {
    return PerLane ? (constant ? blocks * state_size() : T * state_size()) : static_cast<int64_t>(T) * pitch;
  }
  size_t shared_elements() const {
    return projection_size(p.B_constant) + projection_size(p.C_constant) + (PerLane ? T * pitch : 0);
  }
  void take_shared(Scratch& scratch) {
    B_tile = scratch.take<E>(projection_size(p.B_constant));
    C_tile = scratch.take<E>(projection_size(p.C_constant));
    row_tile = PerLane ? scratch.take<E>(T * pitch) : nullptr;
    if (p.B_constant) load_states(p.B, 0, B_tile);
    if (p.C_constant) load_states(p.C, 0, C_tile);
  }
  int64_t channel(int block) const { return first + static_cast<int64_t>(block) * W; }
  int width(int block) const { return std::min<int64_t>(W, end - channel(block)); }
  bool padding(int t) const { return steps != nullptr && steps[t] == kPadding; }

  // [blocks][states][W] from a (., N, D) view; states up to the chunk's end are zero and stay so (A = 0, B = C = 0).
  void load_states(const Stream& s, int64_t batch, E* dst) const {
    for (int i = 0; i < blocks; ++i) {
      E* block = dst + i * state_size();
      std::memset(block, 0, state_size() * sizeof(E));
      if (s) read_tile<V>(s.at(batch, 0, channel(i)), N, width(i), block);
    }
  }
  void load_A(E* a) {
    load_states(p.A, 0, a);
    upper = !p.softplus;
    for (int64_t i = 0; i < blocks * state_size(); ++i) upper |= a[i] > 0;
    constexpr E largest = std::numeric_limits<E>::max();  // beyond it lies infinity, and NaN in a step of dt = 0
    for (int64_t i = 0; i < blocks * state_size(); i += W)
      store<V>(a + i, quiet(min<V>(max<V>(load<V>(a + i) * log2e<V>, -largest), largest)));
  }
  void store_states(const Stream& s, const E* src) const {
    for (int i = 0; i < blocks; ++i) write_tile<V>(s.at(b, 0, channel(i)), N, width(i), src + i * state_size());
  }
  V channel_vector(const Stream& s, int block) const {  // D or delta_bias; zero where absent
    E row[W] = {};
    if (s) read_tile<V>(s.at(0, 0, channel(block)), 1, width(block), row);
    return load<V>(row);
  }
  // One block's row of 16 lanes per state in the memory of saved states and partial sums: [unit][rows][16].
  E* unit_rows(void* base, int64_t leading, int64_t rows, int block) const {
    const int64_t lane = static_cast<int64_t>(block) * W;
    return static_cast<E*>(base) + ((leading * p.units() + unit + lane / kScanUnit) * rows) * kScanUnit +
           lane % kScanUnit;
  }

  void begin_tile(int64_t tile) {
    t0 = tile * T;
    n_t = std::min<int64_t>(T, p.length - t0);
    steps = p.steps == nullptr ? nullptr : p.steps + b * p.length + t0;
    segments = 0;
    starts[0] = 0;
    resets[0] = steps != nullptr && steps[0] == kReset;
    for (int t = 1; steps != nullptr && t < n_t; ++t)
      if (steps[t] == kReset) starts[++segments] = t, resets[segments] = true;
    starts[++segments] = n_t;
    if (!p.B_constant) load_projection(p.B.at(b, t0, 0), g * p.B_groups / p.groups * p.B_group, B_tile);
    if (!p.C_constant) load_projection(p.C.at(b, t0, 0), g * p.C_groups / p.groups * p.C_group, C_tile);
  }
  void load_projection(Stream s, int64_t group_offset, E* dst) const {
    s.data += group_offset * s.element_size();
    E* rows = PerLane ? row_tile : dst;
    for (int n0 = 0; n0 < pitch; n0 += W)
      read_tile<V>(s.at(0, 0, n0), n_t, std::max(0, std::min(W, N - n0)), rows + n0, pitch);
    for (int t = 0; t < n_t; ++t)
      if (padding(t)) std::memset(rows + t * pitch, 0, pitch * sizeof(E));
    if constexpr (PerLane)
      for (int t = 0; t < n_t; ++t)
        for (int k = 0; k < chunks * K; ++k) store<V>(dst + (t * chunks * K + k) * W, set1<V>(rows[t * pitch + k]));
  }
  // B and C of one block and chunk
  void point(Sweep<V, PerLane>& s, int block, int chunk) const {
    if constexpr (PerLane) {
      s.B = B_tile + (p.B_constant ? block * state_size() : 0) + chunk * K * W;
      s.C = C_tile + (p.C_constant ? block * state_size() : 0) + chunk * K * W;
      s.B_stride = p.B_constant ? 0 : state_size();
      s.C_stride = p.C_constant ? 0 : state_size();
    } else {
      s.B = B_tile + chunk * K;
      s.C = C_tile + chunk * K;
      s.B_stride = s.C_stride = pitch;
    }
  }
  // Rows that the sweeps of a block fetch while they compute, two a step, so that the memory is busy all the time:
  // fetched in the loop before the sweeps, the same rows cost 10 % of the backward.
  void plan_fetches(std::initializer_list<Fetch> wanted, const E* elsewhere) {
    std::fill(fetches, fetches + kFetches, Fetch(Stream{}, 0, elsewhere));
    int slot = 0;
    for (const Fetch& f : wanted) {
      if (slot < 2 * chunks)
        fetches[slot++] = f;
      else
        for (int t = 0; t < n_t; ++t) f.read(t);
    }
  }
  void point_fetches(Sweep<V, PerLane>& s, int chunk) const {
    for (int i = 0; i < 2; ++i) s.fetch[i] = fetches[std::min(2 * chunk + i, kFetches - 1)];
  }
  // Offset from a block to the next one to be read; `step` = 1 walks the tiles forwards, -1 backwards.
  int64_t next_block(const Stream& s, int block, int step) const {
    const int64_t on = s.channel * W;
    return block + 1 < blocks ? on : step * T * s.time - (blocks - 1) * on;
  }
};

// --- forward ---

template <class V, bool PerLane>
struct ScanForward : ScanTask<V, PerLane> {
  using Base = ScanTask<V, PerLane>;
  using E = elem_t<V>;
  using Base::b, Base::blocks, Base::chunks, Base::K, Base::N, Base::n_t, Base::p, Base::t0, Base::T, Base::W;
  E *dt, *x, *y, *u_rows, *delta_rows, *z_rows, *out_rows, *a, *h;

  ScanForward(const ScanParams& params, int64_t task) : Base(params, task) {}

  void run() {
    const int64_t states = blocks * this->state_size();
    Scratch scratch((7 * T * W + 2 * states + this->shared_elements()) * sizeof(E));
    for (E** q : {&dt, &x, &y, &u_rows, &delta_rows, &z_rows, &out_rows}) *q = scratch.template take<E>(T * W);
    a = scratch.template take<E>(states);
    h = scratch.template take<E>(states);
    this->take_shared(scratch);
    if (!p.single()) this->load_A(a);
    this->load_states(p.h0, b, h);
    for (int64_t tile = 0; tile < p.tiles(); ++tile) {
      this->begin_tile(tile);
      for (int i = 0; i < blocks; ++i) {
        if (p.checkpoint != nullptr && tile > 0) save(tile, i);
        prelude(i);
        states_of(i);
        epilogue(i);
      }
    }
    if (p.last) this->store_states(p.last, h);
  }
  void save(int64_t tile, int block) const {
    E* dst = this->unit_rows(static_cast<E*>(p.checkpoint) + b * p.saved_size(), tile - 1, N, block);
    for (int k = 0; k < N; ++k) store<V>(dst + k * kScanUnit, load<V>(h + block * this->state_size() + k * W));
    if (block + 1 < blocks) return;
    // A unit that the channels do not fill: the saved states are a result, of which no lane is left as memory was.
    for (int64_t lane = (block + 1) * W; lane % kScanUnit != 0; lane += W)
      for (int k = 0; k < N; ++k) store<V>(dst + lane - block * W + k * kScanUnit, V{});
  }
  void prelude(int block) {
    const int64_t d0 = this->channel(block);
    const int n = this->width(block);
    const Stream su = p.u.at(b, t0, d0), sd = p.delta.at(b, t0, d0);
    const int64_t after_u = this->next_block(su, block, 1), after_delta = this->next_block(sd, block, 1);
    this->plan_fetches({Fetch(p.z ? p.z.at(b, t0, d0) : p.z, 0, dt), Fetch(p.out.at(b, t0, d0), 0, dt),
                        Fetch(su, after_u, dt), Fetch(sd, after_delta, dt)},
                       dt);
    const Rows<V> u = input_rows<V>(su, n_t, n, u_rows, after_u);
    const Rows<V> delta = input_rows<V>(sd, n_t, n, delta_rows, after_delta), dts{dt, W}, xs{x, W}, ys{y, W};
    const V bias = this->channel_vector(p.bias, block), skip = this->channel_vector(p.skip, block);
    const bool with_softplus = p.softplus;
    const int8_t* kinds = this->steps;
    for (int t = 0, end = n_t; t < end; ++t) {
      V ut = u[t], v = delta[t] + bias;
      V d = quiet(with_softplus ? softplus(v, exp_neg_abs(v)) : v);
      if (kinds != nullptr && kinds[t] == kPadding) d = ut = V{};
      dts.set(t, d);
      xs.set(t, d * ut);
      ys.set(t, skip * ut);
    }
  }
  void states_of(int block) const {
    Sweep<V, PerLane> s{};
    s.dt = dt, s.x = x, s.y = y;
    for (int c = 0; c < chunks; ++c) {
      const int64_t at = block * this->state_size() + c * K * W;
      s.a = a + at;
      this->point(s, block, c);
      this->point_fetches(s, c);
      if (p.single()) {
        s.single_forward(h + at);
        continue;
      }
      for (int i = 0; i < this->segments; ++i) {
        if (this->resets[i]) std::memset(h + at, 0, K * W * sizeof(E));
        s.forward(this->starts[i], this->starts[i + 1], h + at, this->upper);
      }
    }
  }
  void epilogue(int block) const {
    const int64_t d0 = this->channel(block);
    const int n = this->width(block);
    const Stream so = p.out.at(b, t0, d0);
    const bool gated = static_cast<bool>(p.z);
    const Rows<V> out = output_rows<V>(so, n, out_rows), ys{y, W};
    const Rows<V> z = gated ? input_rows<V>(p.z.at(b, t0, d0), n_t, n, z_rows, this->next_block(p.z, block, 1)) : ys;
    const int8_t* kinds = this->steps;
    for (int t = 0, end = n_t; t < end; ++t) {
      V v = ys[t], zt = z[t];
      if (gated) v *= zt * sigmoid(zt);
      out.set(t, kinds != nullptr && kinds[t] == kPadding ? V{} : v);
    }
    finish_rows(so, n_t, n, out, out_rows, this->next_block(so, block, 1));
  }
};

template <class V>
static void scan_forward_task(const ScanParams& p, int64_t task) {
  if (p.B_constant || p.C_constant)
    ScanForward<V, true>(p, task).run();
  else
    ScanForward<V, false>(p, task).run();
}

#include "selective_scan/cpu/backward.inl"
