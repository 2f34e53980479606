"""selective_scan in Triton, device code of both passes: how it is cut into programs and why is told in triton_impl.py.

B batch, L length, D channels, N states, G groups. A program's state is a register tensor (P, N, Q) of P * Q channels. A
tile is a tuple of T rows (P, Q), one for each step, in processed order. A stream is a tuple (pointer, batch stride,
channel stride, time stride).

A kernel is compiled once for all lengths and batches: Triton specialises the length, and the strides of what has steps,
only where they are 1. (The strides are arguments of their own, since in a tuple it would specialise their alignment too.)
What the alignment would tell the compiler it knows from UNIT: with UNIT > 1 lengths are multiples of it and every channel
begins at a multiple of 16 bytes.
"""

import triton
import triton.language as tl

from ..._triton import LOG2E, rounded, softplus

# Kinds of steps: one that continues the state (0), one that starts from zero, one that is skipped (padding, or none).
RESET = tl.constexpr(1)
PADDING = tl.constexpr(2)
LOWEST = tl.constexpr(-3.4e38)
CHUNKS = ("chunks", "chunk_tiles", "entered")  # compiled once for all their values


@triton.constexpr_function
def place_of(i, reverse, T):
    """Position in memory of the i-th processed step of a tile."""
    return T - 1 - i if reverse else i


@triton.constexpr_function
def steps_at_once(dtype, T):
    """Steps of a tile of T that are one access of 16 bytes, where steps are adjacent."""
    return min(T, 128 // dtype.primitive_bitwidth)


@triton.jit
def program_place(blocks, units, chunks, group_channels, P: tl.constexpr, Q: tl.constexpr):
    """Row of all batch items' chunks, batch item, chunk, unit and group of this program, its channels (P, Q).

    And which of the channels exist.
    """
    program = tl.program_id(0)
    row = program // units
    unit = program % units
    group = unit // blocks
    offset = tl.arange(0, P)[:, None] * Q + tl.arange(0, Q)[None, :]
    local = (unit % blocks) * (P * Q) + offset
    return (
        row.to(tl.int64),
        (row // chunks).to(tl.int64),
        row % chunks,
        unit,
        group,
        (group * group_channels + local).to(tl.int64),
        local < group_channels,
    )


@triton.jit
def tiles_of(chunk, chunk_tiles, length, T: tl.constexpr):
    """The first tile of a chunk, and the one after its last."""
    first = chunk * chunk_tiles
    return first, tl.minimum(first + chunk_tiles, tl.cdiv(length, T))


@triton.jit
def vector(base, channel, inside):
    """(P, Q) of a vector over the channels."""
    return tl.load(base + channel, mask=inside, other=0.0)


@triton.jit
def states_at(stream, b, channel, inside, states, N: tl.constexpr):
    """Pointers to (P, N, Q) of a (B, D, N) tensor given as (pointer, three strides), and which of them exist.

    By them the compiler chooses how the state lies in the threads. With 16 states that is as the sums want it, Q and a part
    of N over the lanes, the rest in a thread; with others it is when they are declared not to lie together.
    """
    n = tl.arange(0, N)[None, :, None]
    at = stream[0] + b * stream[1] + channel[:, None, :] * stream[2] + n * stream[3]
    mask = inside[:, None, :] & (n < states)
    if N == 16:
        return at, mask
    else:
        return tl.max_contiguous(at, [1, 1, 1]), mask


@triton.jit
def load_states(stream, b, channel, inside, states, N: tl.constexpr):
    """(P, N, Q) of a (B, D, N) tensor as float32, zero outside or if there is none."""
    if stream is None:
        return tl.zeros((channel.shape[0], N, channel.shape[1]), tl.float32)
    else:
        at, mask = states_at(stream, b, channel, inside, states, N)
        return tl.load(at, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def store_states(stream, b, channel, inside, states, value):
    """Rounds (P, N, Q) to the dtype of a (B, D, N) tensor and stores it."""
    at, mask = states_at(stream, b, channel, inside, states, value.shape[1])
    tl.store(at, rounded(value, stream[0].dtype.element_ty), mask=mask)


@triton.jit
def decay_rate(A, channel, inside, states, N: tl.constexpr):
    """A log2(e). Infinity becomes finite, so that a step that is none, dt = 0, leaves the state alone."""
    rate = load_states((A, 0, states, 1), 0, channel, inside, states, N) * LOG2E
    rate = tl.where(rate < LOWEST, LOWEST, rate)
    return tl.where(rate > -LOWEST, -LOWEST, rate)


@triton.jit
def constant(stream, channel, inside, states, N: tl.constexpr):
    """The constant B or C as (P, N, Q)."""
    return load_states((stream[0], 0, states, 1), 0, channel, inside, states, N)


@triton.jit
def saved_states(saved, b, tile, tiles, channels, states):
    """The states before a tile but the first, out of (B, tiles - 1, D, N), as a stream for `states_at`."""
    return (saved + (b * (tiles - 1) + tile - 1) * states * channels, 0, states, 1)


@triton.jit
def tile_start(tile, length, REVERSE: tl.constexpr, T: tl.constexpr):
    """First step in memory of the tile; negative where the last tile of a reversed scan sticks out."""
    if REVERSE:
        return length - (tile + 1) * T
    else:
        return tile * T


@triton.jit
def exists(t, length):
    """True where step t exists."""
    return (t >= 0) & (t < length)


@triton.jit
def kind_of(kinds, b, t, length):
    """Kind of step t, a scalar or a vector like t."""
    if kinds is not None:
        return tl.load(kinds + b * length + t, mask=exists(t, length), other=PADDING).to(tl.int32)
    else:
        return tl.where(exists(t, length), 0, PADDING)


@triton.jit
def kinds_of(kinds, b, t0, length, REVERSE: tl.constexpr, T: tl.constexpr):
    """The kinds of a tile's steps."""
    result = ()
    for i in tl.static_range(T):
        result = result + (kind_of(kinds, b, t0 + place_of(i, REVERSE, T), length),)
    return result


@triton.jit
def _row_of(tile, r: tl.constexpr):
    """Row r of a register tensor (T, P, Q). Where a thread holds all of T the maximum with zeros folds to a register."""
    steps = tl.arange(0, tile.shape[0])[:, None, None]
    bits = tl.where(steps == r, tile.to(tl.uint32, bitcast=True), 0)
    return tl.max(bits, 0).to(tl.float32, bitcast=True)


@triton.jit
def _tile_at(stream, b, channel, t0, UNIT: tl.constexpr, T: tl.constexpr):
    """Pointers to T rows at once, (T, P, Q) in memory order."""
    steps = tl.arange(0, T)[:, None, None].to(tl.int64)
    at = stream[0] + b * stream[1] + t0.to(tl.int64) * stream[3] + channel[None] * stream[2] + steps * stream[3]
    return tl.multiple_of(at, [16, 1, 1]) if UNIT > 1 else at


@triton.jit
def _row_at(stream, b, channel, t0, place: tl.constexpr):
    """Pointers to a row of a tile; the row's distance from the tile's first, the same in all tiles, comes last."""
    return stream[0] + b * stream[1] + channel * stream[2] + t0.to(tl.int64) * stream[3] + place * stream[3]


@triton.jit
def load_rows(
    stream, kinds, kind, b, channel, inside, t0, length, REVERSE: tl.constexpr, UNIT: tl.constexpr, T: tl.constexpr
):
    """A tile of a (B, D, L) tensor as float32, zero in padding. UNIT > 1: at once, for tensors whose steps are adjacent."""
    rows = ()
    if UNIT > 1:
        S: tl.constexpr = steps_at_once(stream[0].dtype.element_ty, T)
        tiles = ()
        for k in tl.static_range(T // S):
            live = kind_of(kinds, b, t0 + k * S + tl.arange(0, S), length) != PADDING
            at = _tile_at(stream, b, channel, t0 + k * S, UNIT, S)
            tiles = tiles + (tl.load(at, mask=live[:, None, None] & inside[None], other=0.0).to(tl.float32),)
        for i in tl.static_range(T):
            rows = rows + (_row_of(tiles[place_of(i, REVERSE, T) // S], place_of(i, REVERSE, T) % S),)
    else:
        for i in tl.static_range(T):
            at = _row_at(stream, b, channel, t0, place_of(i, REVERSE, T))
            rows = rows + (tl.load(at, mask=inside & (kind[i] != PADDING), other=0.0).to(tl.float32),)
    return rows


@triton.jit
def store_rows(
    stream, rows, kind, b, channel, inside, t0, length,
    REVERSE: tl.constexpr, UNIT: tl.constexpr, TILED: tl.constexpr, T: tl.constexpr,
):  # fmt: skip
    """Rounds a tile to the stream's dtype and stores it, zero in padding."""
    dtype: tl.constexpr = stream[0].dtype.element_ty
    if TILED:
        S: tl.constexpr = steps_at_once(dtype, T)
        steps = tl.arange(0, S)[:, None, None]
        for k in tl.static_range(T // S):
            tile = tl.zeros((S, channel.shape[0], channel.shape[1]), tl.float32)
            for j in tl.static_range(S):
                row = tl.where(
                    kind[place_of(k * S + j, REVERSE, T)] != PADDING, rows[place_of(k * S + j, REVERSE, T)], 0.0
                )
                tile = tl.where(steps == j, row[None], tile)
            mask = exists(t0 + k * S + steps, length) & inside[None]
            tl.store(_tile_at(stream, b, channel, t0 + k * S, UNIT, S), rounded(tile, dtype), mask=mask)
    else:
        for i in tl.static_range(T):
            t = t0 + place_of(i, REVERSE, T)
            row = tl.where(kind[i] != PADDING, rows[i], 0.0)
            tl.store(
                _row_at(stream, b, channel, t0, place_of(i, REVERSE, T)),
                rounded(row, dtype),
                mask=inside & exists(t, length),
            )


@triton.jit
def projection(stream, fixed, b, group, t, kind, states, FOURS: tl.constexpr, N: tl.constexpr):
    """B or C of step t, (1, N, 1), zero where there is no step; or the constant (P, N, Q). FOURS: four states an access."""
    if fixed is not None:
        return fixed
    else:
        n = tl.arange(0, N)
        at = stream[0] + b * stream[1] + group * stream[2] + n * stream[3] + t.to(tl.int64) * stream[4]
        if FOURS:
            at = tl.multiple_of(at, stream[0].dtype.element_ty.primitive_bitwidth // 2)
            return tl.load(at, mask=kind != PADDING, other=0.0).to(tl.float32)[None, :, None]
        else:
            return tl.load(at, mask=(n < states) & (kind != PADDING), other=0.0).to(tl.float32)[None, :, None]


@triton.jit
def time_step(raw, kind, SOFTPLUS: tl.constexpr):
    """dt of delta + bias, zero where there is no step."""
    if SOFTPLUS:
        return tl.where(kind != PADDING, softplus(raw), 0.0)
    else:
        return tl.where(kind != PADDING, raw, 0.0)


@triton.jit
def before(h, kind, kinds):
    """The state that a step of this kind starts from; also what is left of a gradient when the step starts from zero."""
    if kinds is not None:
        return tl.where(kind == RESET, 0.0, h)
    else:
        return h
