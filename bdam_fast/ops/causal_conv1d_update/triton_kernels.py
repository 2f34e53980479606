"""The Triton kernel of causal_conv1d_update. B batch, D channels, L length, S entries, W width (taps)."""

import triton
import triton.language as tl

from ..._triton import rounded, sigmoid


@triton.jit
def _queue(state, state_s, x, x_l, at, ok, S):
    """q at `at`, the state followed by x, float32; pointers to the first entry and step of each channel."""
    before = tl.load(state + at * state_s, mask=ok & (at < S), other=0.0).to(tl.float32)
    step = tl.load(x + (at - S) * x_l, mask=ok & (at >= S), other=0.0).to(tl.float32)
    return tl.where(at < S, before, step)


# A thread has one channel, so that no access is wide and alignment tells the compiler nothing.
@triton.jit(do_not_specialize_on_alignment=["x_ptr", "out_ptr", "L", "x_b", "x_d", "x_l", "out_b", "out_d", "out_l"])
def update_kernel(
    x_ptr, state_ptr, weight_ptr, bias_ptr, out_ptr,
    L, D, S,
    x_b, x_d, x_l, state_b, state_d, state_s, out_b, out_d, out_l,
    WIDTH: tl.constexpr, SILU: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """out, and then the last S entries of q over the state.

    A thread may overwrite what another one has yet to read, so barriers stand between reading and writing. Entries are
    shifted in ascending blocks: the ones that later blocks read, L further on, have not been written then.
    """
    blocks = tl.cdiv(D, BLOCK_D)
    b = (tl.program_id(0) // blocks).to(tl.int64)
    d = (tl.program_id(0) % blocks * BLOCK_D + tl.arange(0, BLOCK_D)).to(tl.int64)
    ok = d < D
    x, state, out = x_ptr + b * x_b + d * x_d, state_ptr + b * state_b + d * state_d, out_ptr + b * out_b + d * out_d
    offset = tl.zeros([BLOCK_D], tl.float32)
    if bias_ptr is not None:
        offset = tl.load(bias_ptr + d, mask=ok, other=0.0).to(tl.float32)
    for t in range(0, L):
        s = offset
        for j in tl.static_range(WIDTH):
            tap = tl.load(weight_ptr + d * WIDTH + j, mask=ok, other=0.0).to(tl.float32)
            s += tap * _queue(state, state_s, x, x_l, tl.cast(S + t - WIDTH + 1 + j, tl.int64), ok, S)
        if SILU:
            s = s * sigmoid(s)
        tl.store(out + tl.cast(t, tl.int64) * out_l, rounded(s, out_ptr.dtype.element_ty), mask=ok)
    kind: tl.constexpr = state_ptr.dtype.element_ty
    for i0 in range(0, S, BLOCK_S):
        i = (i0 + tl.arange(0, BLOCK_S)).to(tl.int64)[:, None]
        to, mask = state[None, :] + i * state_s, (i < S) & ok[None, :]
        shifted = i + L < S
        old = tl.load(to + state_s * tl.cast(L, tl.int64), mask=mask & shifted, other=0.0)
        step = x[None, :] + (i + L - S) * x_l
        new = rounded(tl.load(step, mask=mask & (i + L >= S), other=0.0).to(tl.float32), kind)
        tl.debug_barrier()
        tl.store(to, tl.where(shifted, old, new), mask=mask)
        tl.debug_barrier()
