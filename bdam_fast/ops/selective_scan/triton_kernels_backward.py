"""selective_scan in Triton, device code of the backward; see triton_kernels.py for the names and triton_impl.py for why."""

import triton
import triton.language as tl

from bdam_fast._triton import LN2, sigmoid
from bdam_fast.ops.selective_scan.triton_kernels import (
    _advance,
    _before,
    _decay_rate,
    _fixed,
    _kind,
    _load,
    _masks,
    _matrix_at,
    _of_step,
    _place,
    _place_of,
    _projection,
    _row,
    _saved_at,
    _state_or_zero,
    _store,
    _store_state,
    _tile_start,
    _time_steps,
    _vector,
    _with_row,
)


@triton.jit
def _recompute(rate, h, dt, x, B, B_fixed, kinds, b, group, t0, length, states, REVERSE: tl.constexpr, T: tl.constexpr):
    """The states before and after every step of a tile in processed order, T + 1 tensors."""
    N: tl.constexpr = rate.shape[1]
    states_of = (h,)
    for i in tl.static_range(T):
        kind = _kind(kinds, b, t0 + _place_of(i, REVERSE, T), length)
        B_t = _projection(B, B_fixed, b, group, t0 + _place_of(i, REVERSE, T), kind, states, N)
        h = _advance(h, rate, dt, x, B_t, kind, kinds, _place_of(i, REVERSE, T))
        states_of = states_of + (h,)
    return states_of


@triton.jit
def _over_channels(value):
    """(N,): the sum of (P, N, Q) over the program's channels, first those of a thread."""
    return tl.sum(tl.sum(value, 0), 1)


@triton.jit
def _gate(dout, z, b, channel, t0, live, T: tl.constexpr):
    """The gradient of y, and that of z per y."""
    dy = _load(dout, b, channel, t0, live, T)
    if z is None:
        return dy, dy
    else:
        gate = _load(z, b, channel, t0, live, T)
        s = sigmoid(gate)
        return dy * gate * s, dy * s * (1.0 + gate * (1.0 - s))


@triton.jit
def _store_partial(at, b, unit, units, t0, value, length, states, T: tl.constexpr, N: tl.constexpr):
    """Stores the tile (T, N) of dB or dC summed over the program's channels: workspace (B, units, L, N)."""
    t = t0 + tl.arange(0, T)[:, None]
    n = tl.arange(0, N)[None, :]
    base = at + (b * units + unit) * length * states
    tl.store(base + t.to(tl.int64) * states + n, value, mask=(t >= 0) & (t < length) & (n < states))


@triton.jit
def _store_channels(at, b, channel, channels, inside, value):
    """Stores (P, Q) of a (B, D) workspace."""
    tl.store(at + b * channels + channel, value, mask=inside)


@triton.jit
def _store_constant(at, b, channel, channels, inside, states, value):
    """Stores (P, N, Q) of a (B, D, N) workspace."""
    pointers, mask = _matrix_at(at + b * channels * states, channel, inside, states, value.shape[1])
    tl.store(pointers, value, mask=mask)


@triton.jit
def _before_tile(start, saved, b, tile, tiles, channel, inside, channels, states, N: tl.constexpr):
    """The state before a tile: the saved one, or for the first the initial one."""
    at, mask = _saved_at(saved, b, tile, tiles, channel, inside, channels, states, N)
    h = tl.load(at, mask=mask & (tile > 0), other=0.0)
    if start is None:
        return h
    else:
        return tl.where(tile > 0, h, _state_or_zero(start, b, channel, inside & (tile == 0), states, N))


@triton.jit
def _slope(raw, SOFTPLUS: tl.constexpr):
    """d dt / d delta."""
    if SOFTPLUS:
        return tl.where(raw > 20.0, 1.0, sigmoid(raw))
    else:
        return tl.full(raw.shape, 1.0, tl.float32)


# longer than 50 lines because every argument takes one
@triton.jit
def scan_backward(
    dout,
    dlast,
    u,
    delta,
    z,
    B,
    C,
    A,
    D,
    bias,
    start,
    kinds,
    saved,
    du,
    ddelta,
    dz,
    dstart,
    sum_A,
    sum_B,
    sum_C,
    sum_D,
    sum_bias,
    length,
    channels,
    states,
    group_channels,
    blocks,
    units,
    SOFTPLUS: tl.constexpr,
    REVERSE: tl.constexpr,
    B_CONSTANT: tl.constexpr,
    C_CONSTANT: tl.constexpr,
    P: tl.constexpr,
    N: tl.constexpr,
    Q: tl.constexpr,
    T: tl.constexpr,
):
    """Walks the tiles from the last processed one: its states again from the saved one, then the steps in reverse."""
    b, unit, group, channel, inside = _place(blocks, units, group_channels, P, Q)
    rate = _decay_rate(A, channel, inside, states, N)
    B_fixed = _fixed(B, channel, inside, states, B_CONSTANT, N)
    C_fixed = _fixed(C, channel, inside, states, C_CONSTANT, N)
    dh = _state_or_zero(dlast, b, channel, inside, states, N)
    dA = tl.zeros((P, N, Q), tl.float32)
    dB = tl.zeros((P, N, Q), tl.float32)
    dC = tl.zeros((P, N, Q), tl.float32)
    dD = tl.zeros((P, Q), tl.float32)
    dbias = tl.zeros((P, Q), tl.float32)
    tiles = tl.cdiv(length, T)
    for k in range(tiles):
        tile = tiles - 1 - k
        t0 = _tile_start(tile, length, REVERSE, T)
        exists, live = _masks(kinds, b, inside, t0, length, T)
        raw, dt = _time_steps(delta, bias, b, channel, inside, t0, live, SOFTPLUS, T)
        us = _load(u, b, channel, t0, live, T)
        x = dt * us
        dy, dz_y = _gate(dout, z, b, channel, t0, live, T)
        h = _before_tile(start, saved, b, tile, tiles, channel, inside, channels, states, N)
        h = _recompute(rate, h, dt, x, B, B_fixed, kinds, b, group, t0, length, states, REVERSE, T)
        y = tl.zeros((T, P, Q), tl.float32)
        dx = tl.zeros((T, P, Q), tl.float32)
        ddt = tl.zeros((T, P, Q), tl.float32)
        B_rows = tl.zeros((T, N), tl.float32)
        C_rows = tl.zeros((T, N), tl.float32)
        for j in tl.static_range(T):
            kind = _kind(kinds, b, t0 + _place_of(T - 1 - j, REVERSE, T), length)
            B_t = _projection(B, B_fixed, b, group, t0 + _place_of(T - 1 - j, REVERSE, T), kind, states, N)
            C_t = _projection(C, C_fixed, b, group, t0 + _place_of(T - 1 - j, REVERSE, T), kind, states, N)
            dt_t = _row(dt, _place_of(T - 1 - j, REVERSE, T))[:, None, :]
            x_t = _row(x, _place_of(T - 1 - j, REVERSE, T))[:, None, :]
            dy_t = _row(dy, _place_of(T - 1 - j, REVERSE, T))[:, None, :]
            if z is not None:
                y = _with_row(y, _place_of(T - 1 - j, REVERSE, T), tl.sum(C_t * h[T - j], 1))
            if C_CONSTANT:
                dC += dy_t * h[T - j]
            else:
                row = _of_step(_over_channels(dy_t * h[T - j]), kind, kinds)
                C_rows = _with_row(C_rows, _place_of(T - 1 - j, REVERSE, T), row)
            dh += dy_t * C_t
            if B_CONSTANT:
                dB += dh * x_t
            else:
                row = _of_step(_over_channels(dh * x_t), kind, kinds)
                B_rows = _with_row(B_rows, _place_of(T - 1 - j, REVERSE, T), row)
            dx = _with_row(dx, _place_of(T - 1 - j, REVERSE, T), tl.sum(dh * B_t, 1))
            dh *= tl.exp2(dt_t * rate)
            q = dh * _before(h[T - 1 - j], kind, kinds)
            ddt = _with_row(ddt, _place_of(T - 1 - j, REVERSE, T), tl.sum(q * rate, 1))
            dA += q * dt_t
            dh = _before(dh, kind, kinds)
        if not B_CONSTANT:
            _store_partial(sum_B, b, unit, units, t0, B_rows, length, states, T, N)
        if not C_CONSTANT:
            _store_partial(sum_C, b, unit, units, t0, C_rows, length, states, T, N)
        du_tile = dt * dx
        if D is not None:
            skip = _vector(D, channel, inside)[None]
            du_tile += skip * dy
            dD += tl.sum(dy * us, 0)
        _store(du, b, channel, t0, tl.where(live, du_tile, 0.0), exists, T)
        if z is not None:
            if D is not None:
                y += skip * us
            _store(dz, b, channel, t0, tl.where(live, y * dz_y, 0.0), exists, T)
        ddelta_tile = tl.where(live, (LN2 * ddt + us * dx) * _slope(raw, SOFTPLUS), 0.0)
        _store(ddelta, b, channel, t0, ddelta_tile, exists, T)
        dbias += tl.sum(ddelta_tile, 0)
    _store_constant(sum_A, b, channel, channels, inside, states, dA)
    if B_CONSTANT:
        _store_constant(sum_B, b, channel, channels, inside, states, dB)
    if C_CONSTANT:
        _store_constant(sum_C, b, channel, channels, inside, states, dC)
    if D is not None:
        _store_channels(sum_D, b, channel, channels, inside, dD)
    if bias is not None:
        _store_channels(sum_bias, b, channel, channels, inside, dbias)
    if start is not None:
        _store_state(dstart, b, channel, inside, states, dh)
