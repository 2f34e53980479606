"""selective_scan in Triton, device code: how it is cut into programs and why is told in triton_impl.py.

B batch, L length, D channels, N states, G groups. A program's state is a register tensor (P, N, Q) of P * Q channels; a
tile is (T, P, Q), T steps in memory order. A stream is a tuple (pointer, batch stride, channel stride, time stride).
"""

import triton
import triton.language as tl

from bdam_fast._triton import LN2, LOG2E, rounded, sigmoid, softplus

# Kinds of steps: one that continues the state, one that starts from zero, one that is skipped (padding, or no step).
RESET = tl.constexpr(1)
PADDING = tl.constexpr(2)
LOWEST = tl.constexpr(-3.4e38)


@triton.constexpr_function
def _place_of(i, reverse, T):
    """Where in memory the i-th processed step of a tile lies."""
    return T - 1 - i if reverse else i


@triton.jit
def _row(tile, i: tl.constexpr):
    """Step i of a tile, (P, Q). A thread holds whole columns of time, so the maximum with zeros folds to a register."""
    steps = tl.arange(0, tile.shape[0])[:, None, None]
    bits = tl.where(steps == i, tile.to(tl.uint32, bitcast=True), 0)
    return tl.max(bits, 0).to(tl.float32, bitcast=True)


@triton.jit
def _with_row(tile, i: tl.constexpr, row):
    """The tile with step i replaced; for (T, P, Q) and (T, N)."""
    steps = tl.arange(0, tile.shape[0])
    for _ in tl.static_range(len(tile.shape) - 1):
        steps = tl.expand_dims(steps, -1)
    return tl.where(steps == i, tl.expand_dims(row, 0), tile)


@triton.jit
def _place(blocks, units, group_channels, P: tl.constexpr, Q: tl.constexpr):
    """Batch item, unit and group of this program, its channels (P, Q) and which of them exist."""
    program = tl.program_id(0)
    b = (program // units).to(tl.int64)
    unit = program % units
    group = unit // blocks
    offset = tl.arange(0, P)[:, None] * Q + tl.arange(0, Q)[None, :]
    local = (unit % blocks) * (P * Q) + offset
    return b, unit, group, (group * group_channels + local).to(tl.int64), local < group_channels


@triton.jit
def _vector(base, channel, inside):
    """(P, Q) of a vector over the channels."""
    return tl.load(base + channel, mask=inside, other=0.0)


@triton.jit
def _matrix_at(base, channel, inside, states, N: tl.constexpr):
    """Pointers into a contiguous (D, N) matrix as (P, N, Q), and which of them exist."""
    n = tl.arange(0, N)[None, :, None]
    return base + channel[:, None, :] * states + n, inside[:, None, :] & (n < states)


@triton.jit
def _matrix(base, channel, inside, states, N: tl.constexpr):
    """(P, N, Q) of a contiguous (D, N) matrix, zero outside."""
    at, mask = _matrix_at(base, channel, inside, states, N)
    return tl.load(at, mask=mask, other=0.0)


@triton.jit
def _decay_rate(A, channel, inside, states, N: tl.constexpr):
    """A log2(e). Minus infinity becomes finite, so that a step that is none, dt = 0, leaves the state alone."""
    rate = _matrix(A, channel, inside, states, N) * LOG2E
    return tl.where(rate < LOWEST, LOWEST, rate)


@triton.jit
def _states_at(stream, b, channel, inside, states, N: tl.constexpr):
    """Pointers to (P, N, Q) of a (B, D, N) tensor given as (pointer, three strides), and which of them exist."""
    n = tl.arange(0, N)[None, :, None]
    at = stream[0] + b * stream[1] + channel[:, None, :] * stream[2] + n * stream[3]
    return at, inside[:, None, :] & (n < states)


@triton.jit
def _stream_at(stream, b, channel, t0, T: tl.constexpr):
    """Pointers to the tile (T, P, Q) of a (B, D, L) tensor that begins at step t0."""
    steps = tl.arange(0, T)[:, None, None].to(tl.int64)
    base = stream[0] + b * stream[1] + t0.to(tl.int64) * stream[3]
    return base + channel[None] * stream[2] + steps * stream[3]


@triton.jit
def _load(stream, b, channel, t0, mask, T: tl.constexpr):
    """The tile that begins at t0 as float32, zero where masked."""
    return tl.load(_stream_at(stream, b, channel, t0, T), mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _store(stream, b, channel, t0, value, mask, T: tl.constexpr):
    """Rounds a tile to the stream's dtype and stores it."""
    tl.store(_stream_at(stream, b, channel, t0, T), rounded(value, stream[0].dtype.element_ty), mask=mask)


@triton.jit
def _tile_start(tile, length, REVERSE: tl.constexpr, T: tl.constexpr):
    """First step in memory of the tile; negative where the last tile of a reversed scan sticks out."""
    if REVERSE:
        return length - (tile + 1) * T
    else:
        return tile * T


@triton.jit
def _masks(kinds, b, inside, t0, length, T: tl.constexpr):
    """(T, P, Q): which entries of the tile exist, and which of them are steps and no padding."""
    t = t0 + tl.arange(0, T)
    exists = (t >= 0) & (t < length)
    live = exists
    if kinds is not None:
        live = tl.load(kinds + b * length + t, mask=exists, other=PADDING) != PADDING
    return exists[:, None, None] & inside[None], live[:, None, None] & inside[None]


@triton.jit
def _kind(kinds, b, t, length):
    """Kind of step t, a scalar."""
    exists = (t >= 0) & (t < length)
    if kinds is not None:
        return tl.load(kinds + b * length + t, mask=exists, other=PADDING).to(tl.int32)
    else:
        return tl.where(exists, 0, PADDING)


@triton.jit
def _time_steps(delta, bias, b, channel, inside, t0, live, SOFTPLUS: tl.constexpr, T: tl.constexpr):
    """delta + bias, and dt, which is zero where there is no step."""
    raw = _load(delta, b, channel, t0, live, T)
    if bias is not None:
        raw += _vector(bias, channel, inside)[None]
    dt = raw
    if SOFTPLUS:
        dt = softplus(raw)
    return raw, tl.where(live, dt, 0.0)


@triton.jit
def _projection(stream, fixed, b, group, t, kind, states, N: tl.constexpr):
    """B or C of step t, (1, N, 1), zero where there is no step; or the constant (P, N, Q)."""
    if fixed is not None:
        return fixed
    else:
        n = tl.arange(0, N)
        at = stream[0] + b * stream[1] + group * stream[2] + n * stream[3] + t.to(tl.int64) * stream[4]
        return tl.load(at, mask=(n < states) & (kind != PADDING), other=0.0).to(tl.float32)[None, :, None]


@triton.jit
def _fixed(stream, channel, inside, states, CONSTANT: tl.constexpr, N: tl.constexpr):
    """The constant B or C as (P, N, Q), or None."""
    if CONSTANT:
        return _matrix(stream[0], channel, inside, states, N)
    else:
        return None


@triton.jit
def _before(h, kind, kinds):
    """The state that a step of this kind starts from; also what is left of a gradient when the step starts from zero."""
    if kinds is not None:
        return tl.where(kind == RESET, 0.0, h)
    else:
        return h


@triton.jit
def _of_step(sums, kind, kinds):
    """Sums over the channels, zero for a padded step even where a channel is not finite."""
    if kinds is not None:
        return tl.where(kind == PADDING, 0.0, sums)
    else:
        return sums


@triton.jit
def _saved_at(saved, b, tile, tiles, channel, inside, channels, states, N: tl.constexpr):
    """Pointers to (P, N, Q), the state before a tile but the first, in (B, tiles - 1, N, D); and which of them exist."""
    n = tl.arange(0, N)[None, :, None]
    at = saved + ((b * (tiles - 1) + tile - 1) * states + n) * channels + channel[:, None, :]
    return at, inside[:, None, :] & (n < states)


@triton.jit
def _state_or_zero(stream, b, channel, inside, states, N: tl.constexpr):
    """(P, N, Q) of a (B, D, N) tensor as float32, or zeros if there is none."""
    if stream is None:
        return tl.zeros((channel.shape[0], N, channel.shape[1]), tl.float32)
    else:
        at, mask = _states_at(stream, b, channel, inside, states, N)
        return tl.load(at, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _store_state(stream, b, channel, inside, states, value):
    """Rounds (P, N, Q) to the dtype of a (B, D, N) tensor and stores it."""
    at, mask = _states_at(stream, b, channel, inside, states, value.shape[1])
    tl.store(at, rounded(value, stream[0].dtype.element_ty), mask=mask)


@triton.jit
def _advance(h, rate, dt, x, B_t, kind, kinds, r: tl.constexpr):
    """The state after step r of a tile."""
    return tl.exp2(_row(dt, r)[:, None, :] * rate) * _before(h, kind, kinds) + _row(x, r)[:, None, :] * B_t


# longer than 50 lines because every argument takes one
@triton.jit
def scan_forward(
    u,
    delta,
    z,
    out,
    B,
    C,
    A,
    D,
    bias,
    start,
    kinds,
    last,
    saved,
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
    """Walks the tiles in processed order; stores the output, the state before each tile but the first, and the last one."""
    b, unit, group, channel, inside = _place(blocks, units, group_channels, P, Q)
    rate = _decay_rate(A, channel, inside, states, N)
    B_fixed = _fixed(B, channel, inside, states, B_CONSTANT, N)
    C_fixed = _fixed(C, channel, inside, states, C_CONSTANT, N)
    tiles = tl.cdiv(length, T)
    h = _state_or_zero(start, b, channel, inside, states, N)
    for tile in range(tiles):
        if saved is not None:
            at, mask = _saved_at(saved, b, tile, tiles, channel, inside, channels, states, N)
            tl.store(at, h, mask=mask & (tile > 0))
        t0 = _tile_start(tile, length, REVERSE, T)
        exists, live = _masks(kinds, b, inside, t0, length, T)
        raw, dt = _time_steps(delta, bias, b, channel, inside, t0, live, SOFTPLUS, T)
        us = _load(u, b, channel, t0, live, T)
        x = dt * us
        y = tl.zeros((T, P, Q), tl.float32)
        for i in tl.static_range(T):
            kind = _kind(kinds, b, t0 + _place_of(i, REVERSE, T), length)
            B_t = _projection(B, B_fixed, b, group, t0 + _place_of(i, REVERSE, T), kind, states, N)
            C_t = _projection(C, C_fixed, b, group, t0 + _place_of(i, REVERSE, T), kind, states, N)
            h = _advance(h, rate, dt, x, B_t, kind, kinds, _place_of(i, REVERSE, T))
            y = _with_row(y, _place_of(i, REVERSE, T), tl.sum(h * C_t, 1))
        if D is not None:
            y += _vector(D, channel, inside)[None] * us
        if z is not None:
            gate = _load(z, b, channel, t0, live, T)
            y *= gate * sigmoid(gate)
        _store(out, b, channel, t0, tl.where(live, y, 0.0), exists, T)
    if last is not None:
        _store_state(last, b, channel, inside, states, h)
