"""selective_scan in Triton, device code of the backward; see triton_kernels.py for the names, triton_impl.py for why."""

import triton
import triton.language as tl

from ..._triton import LN2, sigmoid
from .triton_kernels import (
    PADDING,
    before,
    constant,
    decay_rate,
    exists,
    kinds_of,
    load_rows,
    load_states,
    place_of,
    program_place,
    projection,
    saved_states,
    store_rows,
    store_states,
    tile_start,
    time_step,
    vector,
)


@triton.jit
def unknown_zero(A, channel, inside, length):
    """A row of zeros that the compiler does not know.

    Added to dt and dt u it keeps the compiler from holding the first pass's exponentials for the second (it would
    spill them); added to a sum over the states it makes the compiler go on with one
    value a lane and not with every channel in four lanes. On sm_90: 1300 instead of 2420 bytes spilled a thread.
    """
    return tl.load(A + channel, mask=inside & (length < 0), other=0.0)


@triton.jit
def before_tile(start, saved, b, tile, tiles, channel, inside, channels, states, N: tl.constexpr):
    """The state before a tile: the saved one, or for the first the initial one."""
    state = saved_states(saved, b, tile, tiles, channels, states)
    h = load_states(state, 0, channel, inside & (tile > 0), states, N)
    if start is None:
        return h
    else:
        return tl.where(tile > 0, h, load_states(start, b, channel, inside & (tile == 0), states, N))


@triton.jit
def time_steps(raws, shift, us, kind, SOFTPLUS: tl.constexpr, T: tl.constexpr):
    """delta + bias, dt and dt u of a tile."""
    sums = ()
    dts = ()
    xs = ()
    for i in tl.static_range(T):
        raw = raws[i] if shift is None else raws[i] + shift
        dt = time_step(raw, kind[i], SOFTPLUS)
        sums = sums + (raw,)
        dts = dts + (dt,)
        xs = xs + (dt * us[i],)
    return sums, dts, xs


@triton.jit
def recompute(h, rate, dts, xs, B, B_fixed, kinds, kind, b, group, t0, states, REVERSE: tl.constexpr, T: tl.constexpr):
    """The states before and after every step of a tile, T + 1 of them."""
    N: tl.constexpr = rate.shape[1]
    result = (h,)
    for i in tl.static_range(T):
        B_t = projection(B, B_fixed, b, group, t0 + place_of(i, REVERSE, T), kind[i], states, N)
        h = tl.exp2(dts[i][:, None, :] * rate) * before(h, kind[i], kinds) + xs[i][:, None, :] * B_t
        result = result + (h,)
    return result


@triton.jit
def over_channels(value, kind, kinds):
    """(N,): the sum of (P, N, Q) over the program's channels, those of a thread first.

    Zero for a padded step, even where a channel is not finite.
    """
    total = tl.sum(tl.sum(value, 0), 1)
    if kinds is not None:
        return tl.where(kind == PADDING, 0.0, total)
    else:
        return total


@triton.jit
def store_part(at, rows, b, unit, units, t0, length, states, REVERSE: tl.constexpr, T: tl.constexpr, N: tl.constexpr):
    """Stores the rows (N,) of dB or dC summed over the program's channels: workspace (B, units, L, N).

    `rows` holds the last processed step first.
    """
    n = tl.arange(0, N)
    base = at + (b * units + unit) * length * states
    for j in tl.static_range(T):
        t = t0 + place_of(T - 1 - j, REVERSE, T)
        tl.store(base + t.to(tl.int64) * states + n, rows[j], mask=exists(t, length) & (n < states))


@triton.jit
def slope(raw, SOFTPLUS: tl.constexpr):
    """d dt / d delta."""
    if SOFTPLUS:
        return tl.where(raw > 20.0, 1.0, sigmoid(raw))
    else:
        return tl.full(raw.shape, 1.0, tl.float32)


@triton.jit
def reversed_rows(rows, T: tl.constexpr):
    """The rows in the opposite order."""
    result = ()
    for i in tl.static_range(T):
        result = result + (rows[T - 1 - i],)
    return result


STREAMS = ("dout", "u", "delta", "z", "du", "ddelta", "dz", "B", "C")
STRIDES = ("dout_b", "dout_d", "dout_l", "u_b", "u_d", "u_l", "delta_b", "delta_d", "delta_l", "z_b", "z_d", "z_l")
STRIDES += ("du_b", "du_d", "du_l", "ddelta_b", "ddelta_d", "ddelta_l", "dz_b", "dz_d", "dz_l")
STRIDES += ("B_b", "B_g", "B_n", "B_l", "C_b", "C_g", "C_n", "C_l")


# longer than 50 lines because of its arguments, and because the sums of a step stand in one loop
@triton.jit(do_not_specialize_on_alignment=["length", *STREAMS, *STRIDES])
def scan_backward(
    dout, u, delta, z, du, ddelta, dz, B, C, A, D, bias, dlast, start, kinds, saved, dstart,
    sum_A, sum_B, sum_C, sum_D, sum_bias,
    dout_b, dout_d, dout_l, u_b, u_d, u_l, delta_b, delta_d, delta_l, z_b, z_d, z_l,
    du_b, du_d, du_l, ddelta_b, ddelta_d, ddelta_l, dz_b, dz_d, dz_l,
    B_b, B_g, B_n, B_l, C_b, C_g, C_n, C_l,
    length, channels, states, group_channels, blocks, units,
    SOFTPLUS: tl.constexpr, REVERSE: tl.constexpr, UNIT: tl.constexpr, STORE_TILED: tl.constexpr,
    B_CONSTANT: tl.constexpr, C_CONSTANT: tl.constexpr,
    P: tl.constexpr, N: tl.constexpr, Q: tl.constexpr, T: tl.constexpr,
):  # fmt: skip
    """Walks the tiles from the last processed one: its states again from the saved one, then the steps in reverse."""
    length *= UNIT
    dout, u, delta = (dout, dout_b, dout_d, dout_l), (u, u_b, u_d, u_l), (delta, delta_b, delta_d, delta_l)
    du, ddelta = (du, du_b, du_d, du_l), (ddelta, ddelta_b, ddelta_d, ddelta_l)
    B, C = (B, B_b, B_g, B_n, B_l), (C, C_b, C_g, C_n, C_l)
    if z is not None:
        z, dz = (z, z_b, z_d, z_l), (dz, dz_b, dz_d, dz_l)
    b, unit, group, channel, inside = program_place(blocks, units, group_channels, P, Q)
    rate = decay_rate(A, channel, inside, states, N)
    skip = None
    shift = None
    B_fixed = None
    C_fixed = None
    if D is not None:
        skip = vector(D, channel, inside)
    if bias is not None:
        shift = vector(bias, channel, inside)
    if B_CONSTANT:
        B_fixed = constant(B, channel, inside, states, N)
    if C_CONSTANT:
        C_fixed = constant(C, channel, inside, states, N)
    dh = load_states(dlast, b, channel, inside, states, N)
    dA = tl.zeros((P, N, Q), tl.float32)
    dB = tl.zeros((P, N, Q), tl.float32)
    dC = tl.zeros((P, N, Q), tl.float32)
    dD = tl.zeros((P, Q), tl.float32)
    dbias = tl.zeros((P, Q), tl.float32)
    zero = unknown_zero(A, channel, inside, length)
    tiles = tl.cdiv(length, T)
    for k in range(tiles):
        tile = tiles - 1 - k
        t0 = tile_start(tile, length, REVERSE, T)
        kind = kinds_of(kinds, b, t0, length, REVERSE, T)
        us = load_rows(u, kinds, kind, b, channel, inside, t0, length, REVERSE, UNIT, T)
        raws = load_rows(delta, kinds, kind, b, channel, inside, t0, length, REVERSE, UNIT, T)
        douts = load_rows(dout, kinds, kind, b, channel, inside, t0, length, REVERSE, UNIT, T)
        if z is not None:
            gates = load_rows(z, kinds, kind, b, channel, inside, t0, length, REVERSE, UNIT, T)
        sums, dts, xs = time_steps(raws, shift, us, kind, SOFTPLUS, T)
        h = before_tile(start, saved, b, tile, tiles, channel, inside, channels, states, N)
        h = recompute(h, rate, dts, xs, B, B_fixed, kinds, kind, b, group, t0, states, REVERSE, T)
        dus = ()
        ddeltas = ()
        dzs = ()
        dBs = ()
        dCs = ()
        for j in tl.static_range(T):
            B_t = projection(B, B_fixed, b, group, t0 + place_of(T - 1 - j, REVERSE, T), kind[T - 1 - j], states, N)
            C_t = projection(C, C_fixed, b, group, t0 + place_of(T - 1 - j, REVERSE, T), kind[T - 1 - j], states, N)
            dt = dts[T - 1 - j] + zero
            x = xs[T - 1 - j] + zero
            dy = douts[T - 1 - j]
            if z is not None:
                gate = gates[T - 1 - j]
                s = sigmoid(gate)
                y = tl.sum(C_t * h[T - j], 1) + zero
                if skip is not None:
                    y += skip * us[T - 1 - j]
                dzs = dzs + (y * dy * s * (1.0 + gate * (1.0 - s)),)
                dy = dy * gate * s
            if C_CONSTANT:
                dC += dy[:, None, :] * h[T - j]
            else:
                dCs = dCs + (over_channels(dy[:, None, :] * h[T - j], kind[T - 1 - j], kinds),)
            dh += dy[:, None, :] * C_t
            if B_CONSTANT:
                dB += dh * x[:, None, :]
            else:
                dBs = dBs + (over_channels(dh * x[:, None, :], kind[T - 1 - j], kinds),)
            dx = tl.sum(dh * B_t, 1) + zero
            dh *= tl.exp2(dt[:, None, :] * rate)
            q = dh * before(h[T - 1 - j], kind[T - 1 - j], kinds)
            ddt = LN2 * (tl.sum(q * rate, 1) + zero) + us[T - 1 - j] * dx
            dA += q * dt[:, None, :]
            dh = before(dh, kind[T - 1 - j], kinds)
            ddelta_t = tl.where(kind[T - 1 - j] != PADDING, ddt * slope(sums[T - 1 - j], SOFTPLUS), 0.0)
            dbias += ddelta_t
            du_t = dt * dx
            if skip is not None:
                du_t += skip * dy
                dD += dy * us[T - 1 - j]
            dus = dus + (du_t,)
            ddeltas = ddeltas + (ddelta_t,)
        if not B_CONSTANT:
            store_part(sum_B, dBs, b, unit, units, t0, length, states, REVERSE, T, N)
        if not C_CONSTANT:
            store_part(sum_C, dCs, b, unit, units, t0, length, states, REVERSE, T, N)
        rows = reversed_rows(dus, T)
        store_rows(du, rows, kind, b, channel, inside, t0, length, REVERSE, UNIT, STORE_TILED, T)
        rows = reversed_rows(ddeltas, T)
        store_rows(ddelta, rows, kind, b, channel, inside, t0, length, REVERSE, UNIT, STORE_TILED, T)
        if z is not None:
            rows = reversed_rows(dzs, T)
            store_rows(dz, rows, kind, b, channel, inside, t0, length, REVERSE, UNIT, STORE_TILED, T)
    part = channels * states
    store_states((sum_A, part, states, 1), b, channel, inside, states, dA)
    if B_CONSTANT:
        store_states((sum_B, part, states, 1), b, channel, inside, states, dB)
    if C_CONSTANT:
        store_states((sum_C, part, states, 1), b, channel, inside, states, dC)
    if skip is not None:
        tl.store(sum_D + b * channels + channel, dD, mask=inside)
    if shift is not None:
        tl.store(sum_bias + b * channels + channel, dbias, mask=inside)
    if dstart is not None:
        store_states(dstart, b, channel, inside, states, dh)
