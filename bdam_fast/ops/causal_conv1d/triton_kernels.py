"""Triton kernels of the causal depthwise convolution.

s_c = bias + sum_j w_j q_{c-W+1+j}, out = s or s sigmoid(s), where c counts the processed steps and q is x in processing
order, preceded by the W - 1 initial states at c = -(W - 1) .. -1. A program owns BLOCK_D channels of one batch item and
`tiles` times BLOCK_L positions, in tiles [BLOCK_L, BLOCK_D]; each tap loads the tile once more, shifted, mostly from the
first cache. Triton compiles once for all lengths and batches: it specialises nothing that follows from them, and L comes
as a multiple of L_UNIT, batch strides as multiples of UNIT (`unit_of`).

A position p is a step, so that p = c, or p = L - 1 - c in reverse. For packed sequences it is a rank instead, p = c among
the steps that are no padding, and `plan` (3, B, L) int32 says at each rank which step it is and where its sequence begins
and ends, as ranks [begin, end); begin is -(W - 1) in the first sequence, which the initial states precede. The ranks
from `end` of the last entry on are the padding.

B batch, D channels, L length, W width (taps).
"""

# mypy: disable-error-code=assignment
# Tuples grow in unrolled loops, which Triton takes as new values and mypy as one variable.

import triton
import triton.language as tl

from ..._triton import rounded, sigmoid


@triton.jit
def _program(L, D, chunks, tiles, BLOCK_L: tl.constexpr, BLOCK_D: tl.constexpr):
    """(batch item, chunk, first position, position behind the last, channels) of this program."""
    pid = tl.program_id(0)
    span = tiles * BLOCK_L
    blocks = tl.cdiv(D, BLOCK_D)
    chunk = pid // blocks % chunks
    d = pid % blocks * BLOCK_D + tl.arange(0, BLOCK_D)
    return (pid // blocks // chunks).to(tl.int64), chunk, chunk * span, tl.minimum(chunk * span + span, L), d


@triton.jit
def _columns(ptr, b, d, stride_b, stride_d, UNIT: tl.constexpr):
    """Pointers to the first step of channels d of batch item b."""
    return ptr + b * stride_b * UNIT + d.to(tl.int64) * stride_d


@triton.jit
def _taps(weight_ptr, bias_ptr, d, D, WIDTH: tl.constexpr):
    """The weights of channels d, a tuple over the taps, and the bias; float32."""
    taps = ()
    for j in tl.static_range(WIDTH):
        taps = taps + (tl.load(weight_ptr + d * WIDTH + j, mask=d < D, other=0.0).to(tl.float32),)
    offset = tl.zeros(d.shape, tl.float32)
    if bias_ptr is not None:
        offset = tl.load(bias_ptr + d, mask=d < D, other=0.0).to(tl.float32)
    return taps, offset


@triton.jit
def _plan(plan_ptr, b, L, plan_size):
    """(steps, begins, ends, number of steps that are no padding) of a batch item."""
    steps = plan_ptr + b * L
    ends = steps + 2 * tl.cast(plan_size, tl.int64)
    return steps, steps + plan_size, ends, tl.load(ends + L - 1)


@triton.jit
def _bounds(begins, ends, c, L, count, WIDTH: tl.constexpr):
    """The sequence [begin, end) that each c belongs to; an entry of the initial state belongs to the first."""
    if begins is None:
        return -(WIDTH - 1), count
    else:
        at = tl.maximum(c, 0)
        return tl.load(begins + at, mask=at < L, other=0), tl.load(ends + at, mask=at < L, other=0)


@triton.jit
def _read(columns, stride, steps, p, c, shift: tl.constexpr, ok, mask_d, REVERSE: tl.constexpr):
    """Rows [BLOCK_L, BLOCK_D] at c + shift, float32, zero where not `ok`."""
    if steps is None:
        step = p - shift if REVERSE else p + shift
    else:
        step = tl.load(steps + c + shift, mask=ok, other=0).to(tl.int64)
    at = columns[None, :] + (step * stride)[:, None]
    return tl.load(at, mask=ok[:, None] & mask_d[None, :], other=0.0).to(tl.float32)


@triton.jit
def _window(
    x,
    x_l,
    initial,
    steps,
    p,
    c,
    shift: tl.constexpr,
    begin,
    count,
    first,
    mask_d,
    WIDTH: tl.constexpr,
    REVERSE: tl.constexpr,
):
    """q at c + shift, zero before the sequence; `first`: some of it may lie before c = 0."""
    at = c + shift
    rows = _read(x, x_l, steps, p, c, shift, (at >= 0) & (at >= begin) & (at < count), mask_d, REVERSE)
    if initial is not None:
        if first:
            ok = (at < 0) & (at >= begin)
            entry = initial[None, :] + (at + WIDTH - 1)[:, None]
            before = tl.load(entry, mask=ok[:, None] & mask_d[None, :], other=0.0).to(tl.float32)
            rows = tl.where(ok[:, None], before, rows)
    return rows


@triton.jit
def _positions(p0, L, BLOCK_L: tl.constexpr, REVERSE: tl.constexpr):
    """(positions as int64, c as int32, the least c) of a tile that starts at p0."""
    p = p0 + tl.arange(0, BLOCK_L)
    if REVERSE:
        return p.to(tl.int64), L - 1 - p, L - p0 - BLOCK_L
    else:
        return p.to(tl.int64), p, p0


@triton.jit
def _last_entry(i: tl.constexpr, count, begins, L, WIDTH: tl.constexpr):
    """(c of entry i of the final states, whether it belongs to the last sequence)."""
    at = count - (WIDTH - 1) + i
    if begins is None:
        return at, True
    else:
        return at, at >= tl.load(begins + tl.maximum(count - 1, 0))


@triton.jit
def _write_final(
    final_ptr, x, x_l, initial, steps, begins, b, d, L, D, count, WIDTH: tl.constexpr, REVERSE: tl.constexpr
):
    """The last W - 1 entries of the window behind the last step, (B, D, W - 1)."""
    for i in tl.static_range(WIDTH - 1):
        at, own = _last_entry(i, count, begins, L, WIDTH)
        step = tl.maximum(at, 0)
        if steps is not None:
            step = tl.load(steps + step)
        elif REVERSE:
            step = L - 1 - step
        value = tl.load(x + tl.cast(step, tl.int64) * x_l, mask=(d < D) & own & (at >= 0), other=0.0).to(tl.float32)
        if initial is not None:
            before = tl.load(initial + at + WIDTH - 1, mask=(d < D) & own & (at < 0), other=0.0).to(tl.float32)
            value = tl.where(own & (at < 0), before, value)
        tl.store(final_ptr + (b * D + d) * (WIDTH - 1) + i, value, mask=d < D)


UNSPECIALIZED = ["L", "chunks", "tiles", "plan_size", "x_b", "out_b", "dout_b", "dx_b"]


@triton.jit(do_not_specialize=UNSPECIALIZED)
def forward_kernel(
    x_ptr, weight_ptr, bias_ptr, initial_ptr, plan_ptr, out_ptr, final_ptr,
    L, D, chunks, tiles, plan_size,
    x_b, x_d, x_l, out_b, out_d, out_l,
    WIDTH: tl.constexpr, SILU: tl.constexpr, REVERSE: tl.constexpr, L_UNIT: tl.constexpr, UNIT: tl.constexpr,
    BLOCK_L: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """out (B, D, L) and, where wanted, final (B, D, W - 1); weights, bias and initial states are contiguous."""
    L *= L_UNIT
    b, chunk, begin_p, end_p, d = _program(L, D, chunks, tiles, BLOCK_L, BLOCK_D)
    mask_d = d < D
    x, out = _columns(x_ptr, b, d, x_b, x_d, UNIT), _columns(out_ptr, b, d, out_b, out_d, UNIT)
    initial = None
    if initial_ptr is not None:
        initial = initial_ptr + (b * D + d) * (WIDTH - 1)
    taps, offset = _taps(weight_ptr, bias_ptr, d, D, WIDTH)
    steps = None
    begins = None
    ends = None
    count = L
    if plan_ptr is not None:
        steps, begins, ends, count = _plan(plan_ptr, b, L, plan_size)
    for p0 in range(begin_p, end_p, BLOCK_L):
        p, c, least = _positions(p0, L, BLOCK_L, REVERSE)
        begin, _ = _bounds(begins, ends, c, L, count, WIDTH)
        s = tl.zeros([BLOCK_L, BLOCK_D], tl.float32) + offset[None, :]
        for j in tl.static_range(WIDTH):
            rows = _window(
                x, x_l, initial, steps, p, c, j - WIDTH + 1, begin, count, least < WIDTH - 1, mask_d, WIDTH, REVERSE
            )
            s += taps[j][None, :] * rows
        if SILU:
            s = s * sigmoid(s)
        step = p
        if steps is not None:
            step = tl.load(steps + c, mask=c < L, other=0).to(tl.int64)
            s = tl.where((c < count)[:, None], s, 0.0)
        at = out[None, :] + (step * out_l)[:, None]
        tl.store(at, rounded(s, out_ptr.dtype.element_ty), mask=(p < L)[:, None] & mask_d[None, :])
    if final_ptr is not None:
        if chunk == 0:
            _write_final(final_ptr, x, x_l, initial, steps, begins, b, d, L, D, count, WIDTH, REVERSE)


@triton.jit
def _add_final_gradient(dx, dfinal_ptr, c, count, begins, b, d, D, L, WIDTH: tl.constexpr):
    """dx plus the gradient of the final states, whose entry i is q at count - (W - 1) + i."""
    entry = c - count + WIDTH - 1
    ok = (entry >= 0) & (c < count)
    if begins is not None:
        ok = ok & (c >= tl.load(begins + tl.maximum(count - 1, 0)))
    at = (dfinal_ptr + (b * D + d) * (WIDTH - 1))[None, :] + entry[:, None]
    return dx + tl.load(at, mask=ok[:, None] & (d < D)[None, :], other=0.0).to(tl.float32)


@triton.jit
def _filter_gradient(g, taps, offset, window, k: tl.constexpr, WIDTH: tl.constexpr, SILU: tl.constexpr):
    """The gradient of s at c + k, from that of out; window[i] is q at c - (W - 1) + i."""
    if SILU:
        s = tl.zeros(g.shape, tl.float32) + offset[None, :]
        for j in tl.static_range(WIDTH):
            s += taps[j][None, :] * window[k + j]
        gate = sigmoid(s)
        g = g * (gate * (1.0 + s * (1.0 - gate)))
    return g


# longer than 50 lines because of its arguments and of what may be absent
@triton.jit(do_not_specialize=UNSPECIALIZED)
def backward_kernel(
    dout_ptr, dfinal_ptr, x_ptr, weight_ptr, bias_ptr, initial_ptr, plan_ptr, dx_ptr, dinitial_ptr, partial_ptr,
    L, D, chunks, tiles, plan_size,
    x_b, x_d, x_l, dout_b, dout_d, dout_l, dx_b, dx_d, dx_l,
    WIDTH: tl.constexpr, SILU: tl.constexpr, REVERSE: tl.constexpr, L_UNIT: tl.constexpr, UNIT: tl.constexpr,
    BLOCK_L: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """dx, dinitial and, per batch item and chunk, the gradients of the taps and the bias: partial (B, chunks, W + 1, D).

    ds at c .. c + W - 1 is recomputed from the window of 2 W - 1 rows around each tile. Where there is an initial state
    the tiles go on to the positions before the first step, which have no ds of their own.
    """
    L *= L_UNIT
    b, chunk, begin_p, end_p, d = _program(L, D, chunks, tiles, BLOCK_L, BLOCK_D)
    mask_d = d < D
    x, dout = _columns(x_ptr, b, d, x_b, x_d, UNIT), _columns(dout_ptr, b, d, dout_b, dout_d, UNIT)
    dx = _columns(dx_ptr, b, d, dx_b, dx_d, UNIT)
    initial = None
    if initial_ptr is not None:
        initial = initial_ptr + (b * D + d) * (WIDTH - 1)
        if REVERSE:
            end_p += tl.where(chunk == chunks - 1, WIDTH - 1, 0)
        else:
            begin_p -= tl.where(chunk == 0, tl.cdiv(WIDTH - 1, BLOCK_L) * BLOCK_L, 0)
    taps, offset = _taps(weight_ptr, bias_ptr, d, D, WIDTH)
    steps = None
    begins = None
    ends = None
    count = L
    if plan_ptr is not None:
        steps, begins, ends, count = _plan(plan_ptr, b, L, plan_size)
    sums = ()
    for _ in tl.static_range(WIDTH + 1):
        sums = sums + (tl.zeros([BLOCK_L, BLOCK_D], tl.float32),)
    for p0 in range(begin_p, end_p, BLOCK_L):
        p, c, least = _positions(p0, L, BLOCK_L, REVERSE)
        begin, end = _bounds(begins, ends, c, L, count, WIDTH)
        window = ()
        for i in tl.static_range(2 * WIDTH - 1):
            rows = _window(
                x, x_l, initial, steps, p, c, i - WIDTH + 1, begin, count, least < WIDTH - 1, mask_d, WIDTH, REVERSE
            )
            window = window + (rows,)
        gradient = tl.zeros([BLOCK_L, BLOCK_D], tl.float32)
        for k in tl.static_range(WIDTH):
            ok = (c + k >= 0) & (c + k < end)
            g = _read(dout, dout_l, steps, p, c, k, ok, mask_d, REVERSE)
            ds = tl.where(ok[:, None], _filter_gradient(g, taps, offset, window, k, WIDTH, SILU), 0.0)
            gradient += taps[WIDTH - 1 - k][None, :] * ds
            if k == 0:
                added = ()
                for j in tl.static_range(WIDTH):
                    added = added + (sums[j] + tl.where(ok[:, None], ds * window[j], 0.0),)
                sums = added + (sums[WIDTH] + ds,)
        if dfinal_ptr is not None:
            gradient = _add_final_gradient(gradient, dfinal_ptr, c, count, begins, b, d, D, L, WIDTH)
        _write_gradients(gradient, dx_ptr, dx, dx_l, dinitial_ptr, steps, p, c, b, d, L, D, count, WIDTH)
    for j in tl.static_range(WIDTH + 1):
        row = partial_ptr + ((b * chunks + chunk) * (WIDTH + 1) + j) * D
        tl.store(row + d, tl.sum(sums[j], 0), mask=mask_d)


@triton.jit
def _write_gradients(gradient, dx_ptr, dx, dx_l, dinitial_ptr, steps, p, c, b, d, L, D, count, WIDTH: tl.constexpr):
    """dx where c >= 0, zero in the padding; dinitial where c < 0."""
    step = p
    if steps is not None:
        step = tl.load(steps + c, mask=(c >= 0) & (c < L), other=0).to(tl.int64)
    value = tl.where((c < count)[:, None], gradient, 0.0)
    mask_d = (d < D)[None, :]
    at = dx[None, :] + (step * dx_l)[:, None]
    tl.store(at, rounded(value, dx_ptr.dtype.element_ty), mask=((c >= 0) & (c < L))[:, None] & mask_d)
    if dinitial_ptr is not None:
        at = (dinitial_ptr + (b * D + d) * (WIDTH - 1))[None, :] + (c + WIDTH - 1)[:, None]
        ok = (c < 0) & (c >= 1 - WIDTH)
        tl.store(at, rounded(gradient, dinitial_ptr.dtype.element_ty), mask=ok[:, None] & mask_d)
