// The backward task: tiles from the last to the first; within a tile, for each block of channels and chunk of states,
// the forward sweep again from the saved state, then the reverse sweep.

template <class V, bool PerLane>
struct ScanBackward : ScanTask<V, PerLane> {
  using Base = ScanTask<V, PerLane>;
  using E = elem_t<V>;
  using Base::b, Base::blocks, Base::chunks, Base::K, Base::N, Base::n_t, Base::p, Base::pitch, Base::t0, Base::T,
      Base::W;
  static constexpr bool kFolded = Sweep<V, PerLane>::kFolded;
  E *dt, *x, *y, *dy, *dt_slope, *z_slope, *ddt, *dx;                             // [T][W]
  E *u_rows, *delta_rows, *z_rows, *dout_rows, *du_rows, *ddelta_rows, *dz_rows;  // [T][W], where not in place
  Rows<V> u{};                                                                    // of the current tile and block
  E *eh, *after, *start, *a, *carry, *dA, *dskip, *dbias, *sum_B, *sum_C;

  ScanBackward(const ScanParams& params, int64_t task) : Base(params, task) {}

  int64_t sum_size(bool constant) const {
    if (PerLane && constant) return blocks * this->state_size();
    return kFolded ? static_cast<int64_t>(pitch / K) * T * W : T * this->state_size();
  }
  void take(Scratch& scratch) {
    const int64_t states = blocks * this->state_size();
    for (E** q : {&dt, &x, &y, &dy, &dt_slope, &z_slope, &ddt, &dx, &u_rows, &delta_rows, &z_rows, &dout_rows, &du_rows,
                  &ddelta_rows, &dz_rows})
      *q = scratch.template take<E>(T * W);
    eh = scratch.template take<E>(2 * T * K * W);
    after = scratch.template take<E>(T * K * W);
    start = scratch.template take<E>(this->state_size());
    a = scratch.template take<E>(states);
    carry = scratch.template take<E>(states);
    dA = scratch.template take<E>(states);
    dskip = scratch.template take<E>(blocks * W);
    dbias = scratch.template take<E>(blocks * W);
    sum_B = scratch.template take<E>(sum_size(p.B_constant));
    sum_C = scratch.template take<E>(sum_size(p.C_constant));
    this->take_shared(scratch);
  }
  void run() {
    const int64_t states = blocks * this->state_size();
    Scratch scratch((15 * T * W + 3 * T * K * W + this->state_size() + 3 * states + 2 * blocks * W +
                     sum_size(p.B_constant) + sum_size(p.C_constant) + this->shared_elements()) *
                    sizeof(E));
    take(scratch);
    if (!p.single()) this->load_A(a);
    this->load_states(p.dlast, b, carry);
    std::memset(dA, 0, states * sizeof(E));
    std::memset(dskip, 0, blocks * W * sizeof(E));
    std::memset(dbias, 0, blocks * W * sizeof(E));
    if (p.B_constant) std::memset(sum_B, 0, sum_size(true) * sizeof(E));
    if (p.C_constant) std::memset(sum_C, 0, sum_size(true) * sizeof(E));
    for (int64_t tile = p.tiles() - 1; tile >= 0; --tile) {
      this->begin_tile(tile);
      if (!p.B_constant) std::memset(sum_B, 0, sum_size(false) * sizeof(E));
      if (!p.C_constant) std::memset(sum_C, 0, sum_size(false) * sizeof(E));
      for (int i = 0; i < blocks; ++i) {
        load_start(tile, i);
        prelude(i);
        states_of(i);
        epilogue(i);
      }
      if (!p.B_constant) store_projection(p.sum_B, sum_B);
      if (!p.C_constant) store_projection(p.sum_C, sum_C);
    }
    if (p.dh0) this->store_states(p.dh0, carry);
    store_channels();
  }
  // The state before the tile
  void load_start(int64_t tile, int block) const {
    std::memset(start, 0, this->state_size() * sizeof(E));
    if (tile == 0) {
      if (p.h0) read_tile<V>(p.h0.at(b, 0, this->channel(block)), N, this->width(block), start);
      return;
    }
    const E* saved = this->unit_rows(static_cast<E*>(p.checkpoint) + b * p.saved_size(), tile - 1, N, block);
    for (int k = 0; k < N; ++k) {
      __builtin_prefetch(saved + (N + k) * kScanUnit);  // the next unit's
      store<V>(start + k * W, load<V>(saved + k * kScanUnit));
    }
  }
  void prelude(int block) {
    const int64_t d0 = this->channel(block);
    const int n = this->width(block);
    const Stream su = p.u.at(b, t0, d0), sd = p.delta.at(b, t0, d0), sg = p.dout.at(b, t0, d0);
    const int64_t after_u = this->next_block(su, block, -1), after_delta = this->next_block(sd, block, -1);
    const int64_t after_dout = this->next_block(sg, block, -1), after_z = this->next_block(p.z, block, -1);
    this->plan_fetches({Fetch(su, after_u, dt), Fetch(sd, after_delta, dt), Fetch(sg, after_dout, dt),
                        Fetch(p.z ? p.z.at(b, t0, d0) : p.z, after_z, dt), Fetch(p.du.at(b, t0, d0), 0, dt),
                        Fetch(p.ddelta.at(b, t0, d0), 0, dt), Fetch(p.dz ? p.dz.at(b, t0, d0) : p.dz, 0, dt)},
                       dt);
    u = input_rows<V>(su, n_t, n, u_rows, after_u);
    const Rows<V> delta = input_rows<V>(sd, n_t, n, delta_rows, after_delta);
    const Rows<V> dout = input_rows<V>(sg, n_t, n, dout_rows, after_dout);
    const Rows<V> dts{dt, W}, slopes{dt_slope, W}, xs{x, W}, ys{y, W}, dys{dy, W}, ddts{ddt, W}, dxs{dx, W};
    const V bias = this->channel_vector(p.bias, block), skip = this->channel_vector(p.skip, block), one = set1<V>(1);
    const bool with_softplus = p.softplus, gated = static_cast<bool>(p.z);
    const int8_t* kinds = this->steps;
    V sum = load<V>(dskip + block * W);
    for (int t = 0, end = n_t; t < end; ++t) {
      V ut = u[t], v = delta[t] + bias, d = v, slope = one, dyt = dout[t];
      if (with_softplus) {
        const V s = exp_neg_abs(v);
        d = softplus(v, s);
        slope = v > E(20) ? one : sigmoid(v, s);
      }
      if (kinds != nullptr && kinds[t] == kPadding) d = ut = dyt = V{};
      dts.set(t, quiet(d));
      slopes.set(t, slope);
      xs.set(t, d * ut);
      ys.set(t, skip * ut);
      dys.set(t, dyt);
      ddts.set(t, V{});
      dxs.set(t, V{});
      if (!gated) sum += dyt * ut;
    }
    if (gated) sum = gate(block, sum);
    store<V>(dskip + block * W, sum);
  }
  // out = y silu(z): dy = dout silu(z), and dz = y * z_slope once y is known
  V gate(int block, V sum) const {
    const Stream sz = p.z.at(b, t0, this->channel(block));
    const int64_t after = this->next_block(sz, block, -1);
    const Rows<V> z = input_rows<V>(sz, n_t, this->width(block), z_rows, after), slopes{z_slope, W}, dys{dy, W};
    const int8_t* kinds = this->steps;
    for (int t = 0, end = n_t; t < end; ++t) {
      if (kinds != nullptr && kinds[t] == kPadding) continue;
      const V zt = z[t], q = sigmoid(zt), g = dys[t], dyt = g * zt * q;
      dys.set(t, dyt);
      slopes.set(t, g * silu_derivative(zt, q));
      sum += dyt * u[t];
    }
    return sum;
  }
  void states_of(int block) const {
    Sweep<V, PerLane> s{};
    s.dt = dt, s.x = x, s.y = y, s.dy = dy, s.ddt = ddt, s.dx = dx, s.eh = eh;
    s.sum_B_stride = p.B_constant ? 0 : kFolded ? W : this->state_size();
    s.sum_C_stride = p.C_constant ? 0 : kFolded ? W : this->state_size();
    for (int c = 0; c < chunks; ++c) {
      const int64_t at = block * this->state_size() + c * K * W, row = kFolded ? c * T * W : c * K * W;
      s.a = a + at;
      s.sum_B = sum_B + (p.B_constant ? at : row);
      s.sum_C = sum_C + (p.C_constant ? at : row);
      this->point(s, block, c);
      this->point_fetches(s, c);
      if (p.single()) {
        s.single_forward(after);
        s.single_reverse(after, carry + at);
        continue;
      }
      for (int i = 0; i < this->segments; ++i) {
        E* state = after + i * K * W;
        if (i > 0 || this->resets[0])
          std::memset(state, 0, K * W * sizeof(E));
        else
          std::memcpy(state, start + c * K * W, K * W * sizeof(E));
        s.record(this->starts[i], this->starts[i + 1], state, this->upper);
      }
      for (int i = this->segments - 1; i >= 0; --i) {
        s.reverse(this->starts[i], this->starts[i + 1], after + i * K * W, carry + at, dA + at);
        if (this->resets[i]) std::memset(carry + at, 0, K * W * sizeof(E));
      }
    }
  }
  void epilogue(int block) const {
    const int64_t d0 = this->channel(block);
    const int n = this->width(block);
    const Stream su = p.du.at(b, t0, d0), sd = p.ddelta.at(b, t0, d0);
    const Rows<V> du = output_rows<V>(su, n, du_rows), ddelta = output_rows<V>(sd, n, ddelta_rows);
    const Rows<V> dts{dt, W}, slopes{dt_slope, W}, dys{dy, W}, ddts{ddt, W}, dxs{dx, W};
    const V skip = this->channel_vector(p.skip, block);
    const int8_t* kinds = this->steps;
    V sum = load<V>(dbias + block * W);
    for (int t = 0, end = n_t; t < end; ++t) {
      const V r = dxs[t];
      V v = (ddts[t] * ln2<V> + u[t] * r) * slopes[t];
      V w = dts[t] * r + dys[t] * skip;
      if (kinds != nullptr && kinds[t] == kPadding) v = w = V{};
      du.set(t, w);
      ddelta.set(t, v);
      sum += v;
    }
    store<V>(dbias + block * W, sum);
    finish_rows(su, n_t, n, du, du_rows, this->next_block(su, block, -1));
    finish_rows(sd, n_t, n, ddelta, ddelta_rows, this->next_block(sd, block, -1));
    if (p.z) finish_gate(block);
  }
  void finish_gate(int block) const {
    const Stream sz = p.dz.at(b, t0, this->channel(block));
    const int n = this->width(block);
    const Rows<V> dz = output_rows<V>(sz, n, dz_rows), ys{y, W}, slopes{z_slope, W};
    for (int t = 0, end = n_t; t < end; ++t) dz.set(t, this->padding(t) ? V{} : ys[t] * slopes[t]);
    finish_rows(sz, n_t, n, dz, dz_rows, this->next_block(sz, block, -1));
  }
  // dB or dC of the tile, summed over this task's channels
  void store_projection(void* base, const E* sum) const {
    E* out = static_cast<E*>(base) + (((b * p.groups + this->g) * p.ranges() + this->range) * p.length + t0) * N;
    for (int t = 0; t < n_t; ++t, out += N) {
      if (this->padding(t)) {
        std::memset(out, 0, N * sizeof(E));
      } else if constexpr (kFolded) {
        for (int k = 0; k < N; k += W)
          store_n<V>(out + k, finish_fold<V>(sum + k / K * T * W + t * W, T * W), std::min(W, N - k));
      } else {
        for (int k = 0; k < N; ++k) out[k] = sum_by_halves<W>(sum + t * this->state_size() + k * W);
      }
    }
  }
  // The sums over the batch: dA, dD, dbias and the gradients of constant B and C
  void store_channels() const {
    for (int i = 0; i < blocks; ++i) {
      const int64_t at = i * this->state_size();
      if (p.sum_A != nullptr) store_rows(p.sum_A, N, i, dA + at);
      if (p.sum_skip != nullptr) store_rows(p.sum_skip, 1, i, dskip + i * W);
      if (p.sum_bias != nullptr) store_rows(p.sum_bias, 1, i, dbias + i * W);
      if (p.B_constant) store_rows(p.sum_B, N, i, sum_B + at);
      if (p.C_constant) store_rows(p.sum_C, N, i, sum_C + at);
    }
  }
  void store_rows(void* base, int rows, int block, const E* src) const {
    E* dst = this->unit_rows(base, b, rows, block);
    for (int k = 0; k < rows; ++k) store<V>(dst + k * kScanUnit, load<V>(src + k * W));
  }
};

template <class V>
static void scan_backward_task(const ScanParams& p, int64_t task) {
  if (p.B_constant || p.C_constant)
    ScanBackward<V, true>(p, task).run();
  else
    ScanBackward<V, false>(p, task).run();
}

// --- second pass: partial sums in index order ---

// One tile of one batch item and group of dB or dC: over the channels' ranges, and over the task groups that share it.
template <class V>
static void scan_reduce_projection(const ScanParams& p, const void* sums, Stream dst, int64_t groups,
                                   int64_t group_stride, int64_t task) {
  using E = elem_t<V>;
  constexpr int W = lanes<V>;
  const int64_t tile = task % p.tiles(), g = task / p.tiles() % groups, b = task / p.tiles() / groups;
  const int64_t t0 = tile * kScanTile, N = p.states, parts = p.groups / groups * p.ranges();
  const int n_t = std::min<int64_t>(kScanTile, p.length - t0);
  const E* base = static_cast<const E*>(sums) + ((b * p.groups * p.ranges() + g * parts) * p.length + t0) * N;
  E rows[kScanTile * W];
  dst.data += g * group_stride * dst.element_size();
  for (int64_t k = 0; k < N; k += W) {
    const int n = std::min<int64_t>(W, N - k);
    for (int t = 0; t < n_t; ++t) {
      V sum{};
      for (int64_t i = 0; i < parts; ++i) sum += load_n<V>(base + (i * p.length + t) * N + k, n);
      store<V>(rows + t * W, sum);
    }
    write_tile<V>(dst.at(b, t0, k), n_t, n, rows);
  }
}
// One unit of channels of a parameter's gradient, over the batch.
template <class V>
static void scan_reduce_batch(const ScanParams& p, const void* sums, Stream dst, int64_t rows, int64_t unit) {
  using E = elem_t<V>;
  constexpr int W = lanes<V>;
  const int64_t g = unit / p.group_units(), offset = unit % p.group_units() * kScanUnit;
  Scratch scratch(rows * W * sizeof(E));
  E* total = scratch.take<E>(rows * W);
  for (int64_t lane = 0; lane < kScanUnit && offset + lane < p.group_channels(); lane += W) {
    for (int64_t k = 0; k < rows; ++k) {
      V sum{};
      for (int64_t b = 0; b < p.batch; ++b)
        sum += load<V>(static_cast<const E*>(sums) + ((b * p.units() + unit) * rows + k) * kScanUnit + lane);
      store<V>(total + k * W, sum);
    }
    const int n = std::min<int64_t>(W, p.group_channels() - offset - lane);
    write_tile<V>(dst.at(0, 0, g * p.group_channels() + offset + lane), rows, n, total);
  }
}
