"""The Triton kernel of selective_state_update. B batch, D channels, N states, G groups of channels that share B and C."""

import triton
import triton.language as tl

from ..._triton import LOG2E, rounded, sigmoid, softplus


@triton.jit
def _row(stream, b, channel, inside):
    """A (B, D) tensor's channels as float32; a stream is (pointer, batch stride, channel stride)."""
    return tl.load(stream[0] + b * stream[1] + channel * stream[2], mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _projection(stream, b, group, n, states):
    """B or C, (1, N); a stream is (pointer, batch stride, group stride, state stride)."""
    at = stream[0] + b * stream[1] + group.to(tl.int64) * stream[2] + n * stream[3]
    return tl.load(at, mask=n < states, other=0.0).to(tl.float32)[None, :]


STEPS = ("x", "dt", "z", "out", "B", "C")
STRIDES = ("x_b", "x_d", "dt_b", "dt_d", "z_b", "z_d", "out_b", "out_d", "B_b", "B_g", "B_n", "C_b", "C_g", "C_n")


# Strides of a step depend on the length where it is one of many, x[:, t]; in a tuple Triton would specialise them.
@triton.jit(do_not_specialize_on_alignment=[*STEPS, *STRIDES])
def update_kernel(
    state, x, dt, z, out, B, C, A, D, bias,
    x_b, x_d, dt_b, dt_d, z_b, z_d, out_b, out_d, B_b, B_g, B_n, C_b, C_g, C_n,
    states, group_channels, blocks, units,
    SOFTPLUS: tl.constexpr, BLOCK: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """The new state, stored, and the output, formed before the state is rounded."""
    x, dt, out, B, C = (x, x_b, x_d), (dt, dt_b, dt_d), (out, out_b, out_d), (B, B_b, B_g, B_n), (C, C_b, C_g, C_n)
    b = (tl.program_id(0) // units).to(tl.int64)
    unit = tl.program_id(0) % units
    group = unit // blocks
    local = (unit % blocks) * BLOCK + tl.arange(0, BLOCK)
    inside = local < group_channels
    channel = (group * group_channels + local).to(tl.int64)
    n = tl.arange(0, N)
    mask = inside[:, None] & (n < states)[None, :]
    step = _row(dt, b, channel, inside)
    if bias is not None:
        step += tl.load(bias + channel, mask=inside, other=0.0)
    if SOFTPLUS:
        step = softplus(step)
    xs = _row(x, b, channel, inside)
    rate = tl.load(A + channel[:, None] * states + n[None, :], mask=mask, other=0.0)
    at = state[0] + b * state[1] + channel[:, None] * state[2] + n[None, :] * state[3]
    h = tl.load(at, mask=mask, other=0.0).to(tl.float32)
    h = tl.exp2((step * LOG2E)[:, None] * rate) * h + (step * xs)[:, None] * _projection(B, b, group, n, states)
    tl.store(at, rounded(h, state[0].dtype.element_ty), mask=mask)
    y = tl.sum(tl.where(mask, h * _projection(C, b, group, n, states), 0.0), 1)
    if D is not None:
        y += tl.load(D + channel, mask=inside, other=0.0) * xs
    if z is not None:
        gate = _row((z, z_b, z_d), b, channel, inside)
        y *= gate * sigmoid(gate)
    tl.store(out[0] + b * out[1] + channel * out[2], rounded(y, out[0].dtype.element_ty), mask=inside)
