"""selective_scan in Triton, device code of the forward; see triton_kernels.py for the names, triton_impl.py for why."""

import triton
import triton.language as tl

from ..._triton import sigmoid
from .triton_kernels import (
    CHUNKS,
    before,
    constant,
    decay_rate,
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

STREAMS = ("u", "delta", "z", "out", "B", "C")
STRIDES = ("u_b", "u_d", "u_l", "delta_b", "delta_d", "delta_l", "z_b", "z_d", "z_l", "out_b", "out_d", "out_l")
STRIDES += ("B_b", "B_g", "B_n", "B_l", "C_b", "C_g", "C_n", "C_l")


# longer than 50 lines because of its arguments
@triton.jit(do_not_specialize=CHUNKS, do_not_specialize_on_alignment=["length", *STREAMS, *STRIDES])
def scan_forward(
    u, delta, z, out, B, C, A, D, bias, start, kinds, last, saved,
    u_b, u_d, u_l, delta_b, delta_d, delta_l, z_b, z_d, z_l, out_b, out_d, out_l,
    B_b, B_g, B_n, B_l, C_b, C_g, C_n, C_l,
    length, channels, states, group_channels, blocks, units, chunks, chunk_tiles, entered,
    SOFTPLUS: tl.constexpr, REVERSE: tl.constexpr, UNIT: tl.constexpr, STORE_TILED: tl.constexpr,
    B_CONSTANT: tl.constexpr, C_CONSTANT: tl.constexpr, FOURS: tl.constexpr,
    P: tl.constexpr, N: tl.constexpr, Q: tl.constexpr, T: tl.constexpr,
):  # fmt: skip
    """Walks a chunk's tiles in processed order; stores the output, the state before each tile but the first, the last one.

    start: the state that enters each chunk; entered: 0 where all of them are zero, and `start` is not read.
    """
    length *= UNIT
    u, delta, out = (u, u_b, u_d, u_l), (delta, delta_b, delta_d, delta_l), (out, out_b, out_d, out_l)
    B, C = (B, B_b, B_g, B_n, B_l), (C, C_b, C_g, C_n, C_l)
    if z is not None:
        z = (z, z_b, z_d, z_l)
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
    tiles = tl.cdiv(length, T)
    h = load_states(start, row, channel, inside & (entered > 0), states, N)
    for tile in range(first, end):
        if saved is not None:
            state = saved_states(saved, b, tile, tiles, channels, states)
            store_states(state, 0, channel, inside & (tile > 0), states, h)
        t0 = tile_start(tile, length, REVERSE, T)
        kind = kinds_of(kinds, b, t0, length, REVERSE, T)
        us = load_rows(u, kinds, kind, b, channel, inside, t0, length, REVERSE, UNIT, T)
        raws = load_rows(delta, kinds, kind, b, channel, inside, t0, length, REVERSE, UNIT, T)
        if z is not None:
            gates = load_rows(z, kinds, kind, b, channel, inside, t0, length, REVERSE, UNIT, T)
        ys = ()
        for i in tl.static_range(T):
            B_t = projection(B, B_fixed, b, group, t0 + place_of(i, REVERSE, T), kind[i], states, FOURS, N)
            C_t = projection(C, C_fixed, b, group, t0 + place_of(i, REVERSE, T), kind[i], states, FOURS, N)
            dt = time_step(raws[i] if shift is None else raws[i] + shift, kind[i], SOFTPLUS)
            decay = tl.exp2(dt[:, None, :] * rate)
            h = decay * before(h, kind[i], kinds) + (dt * us[i])[:, None, :] * B_t
            y = tl.sum(h * C_t, 1)
            if skip is not None:
                y += skip * us[i]
            if z is not None:
                y *= gates[i] * sigmoid(gates[i])
            ys = ys + (y,)
        store_rows(out, ys, kind, b, channel, inside, t0, length, REVERSE, UNIT, STORE_TILED, T)
    if last is not None:
        store_states(last, b, channel, inside & (end == tiles), states, h)
