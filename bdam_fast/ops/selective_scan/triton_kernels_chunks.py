"""selective_scan in Triton, device code of chunks: the state, or its gradient, that enters each chunk of a long sequence.

See triton_kernels.py for the names, triton_impl.py for why.
"""

import triton
import triton.language as tl

from ..._triton import sigmoid
from .triton_kernels import (
    CHUNKS,
    RESET,
    before,
    constant,
    decay_rate,
    kinds_of,
    load_rows,
    place_of,
    program_place,
    projection,
    store_states,
    tile_start,
    tiles_of,
    time_step,
    vector,
)

# In the place of a decay, which is never negative: a sequence begins in the chunk, and nothing from outside goes through.
NOTHING_THROUGH = tl.constexpr(-1.0)


@triton.jit
def begins(kinds, kind, T: tl.constexpr):
    """The number of a tile's steps that start from a zero state."""
    found = 0
    if kinds is not None:
        for i in tl.static_range(T):
            found += (kind[i] == RESET).to(tl.int32)
    return found


@triton.jit
def store_chunk(ends, decays, row, channels, channel, inside, states, h, total, rate, begun):
    """Stores what a chunk does to a state: h of a zero state, and the decay of another, over the steps' sum `total`."""
    decay = tl.where(begun > 0, NOTHING_THROUGH, tl.exp2(total[:, None, :] * rate))
    store_states((ends, channels * states, states, 1), row, channel, inside, states, h)
    store_states((decays, channels * states, states, 1), row, channel, inside, states, decay)


STREAMS = ("u", "delta", "B")
STRIDES = ("u_b", "u_d", "u_l", "delta_b", "delta_d", "delta_l", "B_b", "B_g", "B_n", "B_l")


@triton.jit(do_not_specialize=CHUNKS[:2], do_not_specialize_on_alignment=["length", *STREAMS, *STRIDES])
def scan_chunks(
    u, delta, B, A, bias, kinds, ends, decays,
    u_b, u_d, u_l, delta_b, delta_d, delta_l, B_b, B_g, B_n, B_l,
    length, channels, states, group_channels, blocks, units, chunks, chunk_tiles,
    SOFTPLUS: tl.constexpr, REVERSE: tl.constexpr, UNIT: tl.constexpr, B_CONSTANT: tl.constexpr, FOURS: tl.constexpr,
    P: tl.constexpr, N: tl.constexpr, Q: tl.constexpr, T: tl.constexpr,
):  # fmt: skip
    """Each chunk from a zero state: the state after it, and its decay. Of the last chunk nobody needs them."""
    length *= UNIT
    u, delta, B = (u, u_b, u_d, u_l), (delta, delta_b, delta_d, delta_l), (B, B_b, B_g, B_n, B_l)
    row, b, chunk, unit, group, channel, inside = program_place(blocks, units, chunks, group_channels, P, Q)
    first, end = tiles_of(chunk, chunk_tiles, length, T)
    rate = decay_rate(A, channel, inside, states, N)
    shift = None
    fixed = None
    if bias is not None:
        shift = vector(bias, channel, inside)
    if B_CONSTANT:
        fixed = constant(B, channel, inside, states, N)
    h = tl.zeros((P, N, Q), tl.float32)
    total = tl.zeros((P, Q), tl.float32)
    begun = tl.zeros((1, 1, 1), tl.int32)
    for tile in range(first, tl.where(chunk + 1 < chunks, end, first)):
        t0 = tile_start(tile, length, REVERSE, T)
        kind = kinds_of(kinds, b, t0, length, REVERSE, T)
        us = load_rows(u, kinds, kind, b, channel, inside, t0, length, REVERSE, UNIT, T)
        raws = load_rows(delta, kinds, kind, b, channel, inside, t0, length, REVERSE, UNIT, T)
        begun += begins(kinds, kind, T)
        for i in tl.static_range(T):
            B_t = projection(B, fixed, b, group, t0 + place_of(i, REVERSE, T), kind[i], states, FOURS, N)
            dt = time_step(raws[i] if shift is None else raws[i] + shift, kind[i], SOFTPLUS)
            h = tl.exp2(dt[:, None, :] * rate) * before(h, kind[i], kinds) + (dt * us[i])[:, None, :] * B_t
            total += dt
    store_chunk(ends, decays, row, channels, channel, inside, states, h, total, rate, begun)


GRADIENT_STREAMS = ("dout", "delta", "z", "C")
GRADIENT_STRIDES = ("dout_b", "dout_d", "dout_l", "delta_b", "delta_d", "delta_l", "z_b", "z_d", "z_l")
GRADIENT_STRIDES += ("C_b", "C_g", "C_n", "C_l")


@triton.jit(
    do_not_specialize=CHUNKS[:2], do_not_specialize_on_alignment=["length", *GRADIENT_STREAMS, *GRADIENT_STRIDES]
)
def scan_gradient_chunks(
    dout, delta, z, C, A, bias, kinds, ends, decays,
    dout_b, dout_d, dout_l, delta_b, delta_d, delta_l, z_b, z_d, z_l, C_b, C_g, C_n, C_l,
    length, channels, states, group_channels, blocks, units, chunks, chunk_tiles,
    SOFTPLUS: tl.constexpr, REVERSE: tl.constexpr, UNIT: tl.constexpr, C_CONSTANT: tl.constexpr, FOURS: tl.constexpr,
    P: tl.constexpr, N: tl.constexpr, Q: tl.constexpr, T: tl.constexpr,
):  # fmt: skip
    """Each chunk from its last step, with no gradient behind it: the gradient of the state before it, and its decay.

    Of the first chunk nobody needs them.
    """
    length *= UNIT
    dout, delta, C = (dout, dout_b, dout_d, dout_l), (delta, delta_b, delta_d, delta_l), (C, C_b, C_g, C_n, C_l)
    if z is not None:
        z = (z, z_b, z_d, z_l)
    row, b, chunk, unit, group, channel, inside = program_place(blocks, units, chunks, group_channels, P, Q)
    first, end = tiles_of(chunk, chunk_tiles, length, T)
    rate = decay_rate(A, channel, inside, states, N)
    shift = None
    fixed = None
    if bias is not None:
        shift = vector(bias, channel, inside)
    if C_CONSTANT:
        fixed = constant(C, channel, inside, states, N)
    dh = tl.zeros((P, N, Q), tl.float32)
    total = tl.zeros((P, Q), tl.float32)
    begun = tl.zeros((1, 1, 1), tl.int32)
    for tile in range(tl.where(chunk > 0, end, first) - 1, first - 1, -1):
        t0 = tile_start(tile, length, REVERSE, T)
        kind = kinds_of(kinds, b, t0, length, REVERSE, T)
        douts = load_rows(dout, kinds, kind, b, channel, inside, t0, length, REVERSE, UNIT, T)
        raws = load_rows(delta, kinds, kind, b, channel, inside, t0, length, REVERSE, UNIT, T)
        if z is not None:
            gates = load_rows(z, kinds, kind, b, channel, inside, t0, length, REVERSE, UNIT, T)
        begun += begins(kinds, kind, T)
        for i in tl.static_range(T - 1, -1, -1):
            C_t = projection(C, fixed, b, group, t0 + place_of(i, REVERSE, T), kind[i], states, FOURS, N)
            dt = time_step(raws[i] if shift is None else raws[i] + shift, kind[i], SOFTPLUS)
            dy = douts[i]
            if z is not None:
                dy = dy * gates[i] * sigmoid(gates[i])
            dh = before((dh + dy[:, None, :] * C_t) * tl.exp2(dt[:, None, :] * rate), kind[i], kinds)
            total += dt
    store_chunk(ends, decays, row, channels, channel, inside, states, dh, total, rate, begun)


@triton.jit(do_not_specialize=["chunks"])
def scan_carry(ends, decays, start, size, chunks, BACKWARDS: tl.constexpr, BLOCK: tl.constexpr):
    """From what leaves each chunk, (B, chunks, size), to what enters it, in place; `start` (B, size) enters the first."""
    b = tl.program_id(1).to(tl.int64)
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = at < size
    if start is None:
        h = tl.zeros((BLOCK,), tl.float32)
    else:
        h = tl.load(start + b * size + at, mask=mask, other=0.0)
    place = (b * chunks + (chunks - 1 if BACKWARDS else 0)) * size + at
    following = -size if BACKWARDS else size
    leaves = tl.load(ends + place, mask=mask, other=0.0)
    decay = tl.load(decays + place, mask=mask, other=0.0)
    for k in range(chunks):
        # What the next chunk needs is asked for before the store, behind which its loads would wait.
        more = mask & (k + 1 < chunks)
        next_leaves = tl.load(ends + place + following, mask=more, other=0.0)
        next_decay = tl.load(decays + place + following, mask=more, other=0.0)
        tl.store(ends + place, h, mask=mask)
        # A state of zero stays so, whatever the decay over the chunk: that of a growing state may be infinite.
        h = tl.where((decay < 0.0) | (h == 0.0), leaves, decay * h + leaves)
        place += following
        leaves, decay = next_leaves, next_decay
