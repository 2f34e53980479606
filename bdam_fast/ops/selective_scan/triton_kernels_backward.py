"""selective_scan in Triton, device code of the backward; see triton_kernels.py for the names, triton_impl.py for why."""

import triton
import triton.language as tl

from ..._triton import LN2, sigmoid
from .triton_kernels import (
    CHUNKS,
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
    tiles_of,
    time_step,
    vector,
)


@triton.jit
def unknown_zero(A, channel, inside, length):
    """A row of zeros that the compiler does not know.

    Added to dt and dt u it keeps the compiler from holding the first pass's exponentials for the second: it would spill
    them (sm_90: 3.3 instructions a state and step more).
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
def recompute(
    h, rate, dts, xs, B, B_fixed, kinds, kind, b, group, t0, states,
    REVERSE: tl.constexpr, FOURS: tl.constexpr, T: tl.constexpr,
):  # fmt: skip
    """The states before and after every step of a tile, T + 1 of them."""
    N: tl.constexpr = rate.shape[1]
    result = (h,)
    for i in tl.static_range(T):
        B_t = projection(B, B_fixed, b, group, t0 + place_of(i, REVERSE, T), kind[i], states, FOURS, N)
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
def store_part(at, row, b, unit, units, t, length, states, N: tl.constexpr):
    """Stores dB or dC (N,) of step t, summed over the program's channels: workspace (B, units, L, N)."""
    n = tl.arange(0, N)
    base = at + (b * units + unit) * length * states
    tl.store(base + t.to(tl.int64) * states + n, row, mask=exists(t, length) & (n < states))


@triton.jit
def slope(raw, SOFTPLUS: tl.constexpr):
    """d dt / d delta."""
    if SOFTPLUS:
        return tl.where(raw > 20.0, 1.0, sigmoid(raw))
    else:
        return tl.full(raw.shape, 1.0, tl.float32)


STREAMS = ("dout", "u", "delta", "z", "du", "ddelta", "dz", "B", "C")
STRIDES = ("dout_b", "dout_d", "dout_l", "u_b", "u_d", "u_l", "delta_b", "delta_d", "delta_l", "z_b", "z_d", "z_l")
STRIDES += ("du_b", "du_d", "du_l", "ddelta_b", "ddelta_d", "ddelta_l", "dz_b", "dz_d", "dz_l")
STRIDES += ("B_b", "B_g", "B_n", "B_l", "C_b", "C_g", "C_n", "C_l")


# longer than 50 lines because of its arguments, and because the sums of a step stand in one loop
@triton.jit(do_not_specialize=CHUNKS, do_not_specialize_on_alignment=["length", *STREAMS, *STRIDES])
def scan_backward(
    dout, u, delta, z, du, ddelta, dz, B, C, A, D, bias, behind, start, kinds, saved, dstart,
    sum_A, sum_B, sum_C, sum_D, sum_bias,
    dout_b, dout_d, dout_l, u_b, u_d, u_l, delta_b, delta_d, delta_l, z_b, z_d, z_l,
    du_b, du_d, du_l, ddelta_b, ddelta_d, ddelta_l, dz_b, dz_d, dz_l,
    B_b, B_g, B_n, B_l, C_b, C_g, C_n, C_l,
    length, channels, states, group_channels, blocks, units, chunks, chunk_tiles, entered,
    SOFTPLUS: tl.constexpr, REVERSE: tl.constexpr, UNIT: tl.constexpr, STORE_TILED: tl.constexpr,
    B_CONSTANT: tl.constexpr, C_CONSTANT: tl.constexpr, FOURS: tl.constexpr,
    P: tl.constexpr, N: tl.constexpr, Q: tl.constexpr, T: tl.constexpr,
):  # fmt: skip
    """Walks a chunk's tiles from the last processed one: its states again from the saved one, then the steps in reverse.

    What only the second needs is loaded after the first, and a step's part of dB and dC is stored at once: held for longer it
    would be spilled (sm_90: 2.8 and 0.6 instructions a state and step more).

    behind: the gradient of the state after each chunk; entered: 0 where all of them are zero, and `behind` is not read.
    """
    length *= UNIT
    dout, u, delta = (dout, dout_b, dout_d, dout_l), (u, u_b, u_d, u_l), (delta, delta_b, delta_d, delta_l)
    du, ddelta = (du, du_b, du_d, du_l), (ddelta, ddelta_b, ddelta_d, ddelta_l)
    B, C = (B, B_b, B_g, B_n, B_l), (C, C_b, C_g, C_n, C_l)
    if z is not None:
        z, dz = (z, z_b, z_d, z_l), (dz, dz_b, dz_d, dz_l)
    row, b, chunk, unit, group, channel, inside = program_place(blocks, units, chunks, group_channels, P, Q)
    first, end = tiles_of(chunk, chunk_tiles, length, T)
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
    dh = load_states(behind, row, channel, inside & (entered > 0), states, N)
    dA = tl.zeros((P, N, Q), tl.float32)
    dB = tl.zeros((P, N, Q), tl.float32)
    dC = tl.zeros((P, N, Q), tl.float32)
    dD = tl.zeros((P, Q), tl.float32)
    dbias = tl.zeros((P, Q), tl.float32)
    zero = unknown_zero(A, channel, inside, length)
    tiles = tl.cdiv(length, T)
    for tile in range(end - 1, first - 1, -1):
        t0 = tile_start(tile, length, REVERSE, T)
        kind = kinds_of(kinds, b, t0, length, REVERSE, T)
        us = load_rows(u, kinds, kind, b, channel, inside, t0, length, REVERSE, UNIT, T)
        raws = load_rows(delta, kinds, kind, b, channel, inside, t0, length, REVERSE, UNIT, T)
        sums, dts, xs = time_steps(raws, shift, us, kind, SOFTPLUS, T)
        h = before_tile(start, saved, b, tile, tiles, channel, inside, channels, states, N)
        h = recompute(h, rate, dts, xs, B, B_fixed, kinds, kind, b, group, t0, states, REVERSE, FOURS, T)
        douts = load_rows(dout, kinds, kind, b, channel, inside, t0, length, REVERSE, UNIT, T)
        if z is not None:
            gates = load_rows(z, kinds, kind, b, channel, inside, t0, length, REVERSE, UNIT, T)
        dus = ()
        ddeltas = ()
        dzs = ()
        for i in tl.static_range(T - 1, -1, -1):
            t = t0 + place_of(i, REVERSE, T)
            B_t = projection(B, B_fixed, b, group, t, kind[i], states, FOURS, N)
            C_t = projection(C, C_fixed, b, group, t, kind[i], states, FOURS, N)
            dt = dts[i] + zero
            x = xs[i] + zero
            dy = douts[i]
            if z is not None:
                gate = gates[i]
                s = sigmoid(gate)
                y = tl.sum(C_t * h[i + 1], 1)
                if skip is not None:
                    y += skip * us[i]
                dzs = (y * dy * s * (1.0 + gate * (1.0 - s)),) + dzs
                dy = dy * gate * s
            if C_CONSTANT:
                dC += dy[:, None, :] * h[i + 1]
            else:
                total = over_channels(dy[:, None, :] * h[i + 1], kind[i], kinds)
                store_part(sum_C, total, b, unit, units, t, length, states, N)
            dh += dy[:, None, :] * C_t
            if B_CONSTANT:
                dB += dh * x[:, None, :]
            else:
                total = over_channels(dh * x[:, None, :], kind[i], kinds)
                store_part(sum_B, total, b, unit, units, t, length, states, N)
            dx = tl.sum(dh * B_t, 1)
            dh *= tl.exp2(dt[:, None, :] * rate)
            q = dh * before(h[i], kind[i], kinds)
            ddt = LN2 * tl.sum(q * rate, 1) + us[i] * dx
            dA += q * dt[:, None, :]
            dh = before(dh, kind[i], kinds)
            ddelta_t = tl.where(kind[i] != PADDING, ddt * slope(sums[i], SOFTPLUS), 0.0)
            dbias += ddelta_t
            du_t = dt * dx
            if skip is not None:
                du_t += skip * dy
                dD += dy * us[i]
            dus = (du_t,) + dus
            ddeltas = (ddelta_t,) + ddeltas
        store_rows(du, dus, kind, b, channel, inside, t0, length, REVERSE, UNIT, STORE_TILED, T)
        store_rows(ddelta, ddeltas, kind, b, channel, inside, t0, length, REVERSE, UNIT, STORE_TILED, T)
        if z is not None:
            store_rows(dz, dzs, kind, b, channel, inside, t0, length, REVERSE, UNIT, STORE_TILED, T)
    part = channels * states
    store_states((sum_A, part, states, 1), row, channel, inside, states, dA)
    if B_CONSTANT:
        store_states((sum_B, part, states, 1), row, channel, inside, states, dB)
    if C_CONSTANT:
        store_states((sum_C, part, states, 1), row, channel, inside, states, dC)
    if skip is not None:
        tl.store(sum_D + row * channels + channel, dD, mask=inside)
    if shift is not None:
        tl.store(sum_bias + row * channels + channel, dbias, mask=inside)
    if dstart is not None:
        store_states(dstart, b, channel, inside & (chunk == 0), states, dh)
