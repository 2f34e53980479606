"""selective_scan in Triton: why it is as it is, and the launches, with the raw operator's signature.

B batch, L length, D channels, N states, G groups of channels that share B and C.

A program takes one batch item and a block of channels and walks over the steps, all states of its channels in registers.
It is one warp, so that no other warp is waited for in the loop. Steps come in tiles of 8 (fewer if the sequence is
shorter): u, delta and z of a tile are loaded before its steps, the results are stored after them, and between lies no
store that would hold back a load. In (B, L, D) order a row of channels is one coalesced access, in (B, D, L) order the
8 steps of a channel are one access of 16 bytes (32 in float32). 512 states lie 4 channels by 4 states in a thread at
N = 16: both sums, over states and over channels, are then begun in a thread and take 3 shuffles a state in all, against 10
for a thread with all states of one channel.

The forward saves the state before every tile but the first (8 bytes per element of u at N = 16). The backward walks the
tiles from the last: it takes the states of a tile again from the saved one and keeps them in registers, then walks its
steps in reverse and takes the exponentials a second time. There is no scratch memory.

The gradients of B and C are sums over channels, those of A, D and delta_bias over the batch: each program stores its
part, and a sum over the parts in a fixed order follows. No atomics: the same inputs give the same bits.

Counted in sm_90 code at N = 16, per state and step, L 192, what stands outside the loop included: 11 to 14 instructions
forward, 36 to 41 backward, of which 2 to 3 spill.

A long sequence of few channels would be few programs, batch times channels / 32, whose warps wait for themselves: on an
H200, 2 x 1536 channels and 2048 steps took 10 times as long as with the CUDA kernels. So it is cut in chunks (triton_cut.py
has the rule) that run at the same time, which needs the state that enters each: a first walk over u, delta and B takes each
chunk from a zero state (8 instructions a state and step), and scan_carry goes through the chunks with exp(A sum dt). Backward the
same with the gradient of the state, over dout, delta, z and C (9 instructions). The chunks have not been timed.
"""

import torch
from torch import Tensor

from ..._triton import on_device, parameter
from .triton_arguments import fours, projection, step_kinds, stream, strides, tiling
from .triton_cut import TILE, Cut, cut_of, entering_gradients, entering_states
from .triton_kernels_backward import scan_backward
from .triton_kernels_forward import scan_forward

ZEROS = 16  # at the end of each row of the saved states' shape; in memory all of them come last


def saved_shape(batch: int, channels: int, length: int, states: int) -> tuple[int, ...]:
    """Shape of what the forward saves: the states before every tile but the first, (B, tiles - 1, D, N), then zeros.

    A size that is 0 for some lengths would have a traced graph tell these from the others.
    """
    tiles = torch.sym_max((length + TILE - 1) // TILE - 1, 0)
    return (batch, tiles * (states * channels) + ZEROS)


def forward(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    initial_state: Tensor | None,
    seq_idx: Tensor | None,
    delta_softplus: bool,
    reverse: bool,
    return_last_state: bool,
    save_states: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """`selective_scan_forward`: out, the last state and the saved states, (0,) float32 where not asked for."""
    batch, channels, length = u.shape
    states = A.shape[1]
    out = torch.empty_like(u)
    last_shape = (batch, channels, states) if return_last_state else (0,)
    last = torch.empty(last_shape, dtype=torch.float32, device=u.device)
    shape = saved_shape(batch, channels, length, states) if save_states else (0,)
    saved = torch.empty(shape, dtype=torch.float32, device=u.device)
    if save_states:
        saved.view(-1)[batch * (shape[1] - ZEROS) :].zero_()
    if batch > 0:
        cut, kinds = cut_of(u, A, B, C), step_kinds(seq_idx, reverse)
        unit, store = tiling(u, delta, z)
        (B_, B_strides), (C_, C_strides) = projection(B), projection(C)
        A_ = parameter(A)
        with on_device(u):
            start, entered = entering_states(
                cut, u, delta, A_, B, delta_bias, initial_state, kinds, delta_softplus, reverse
            )
            scan_forward[cut.grid(batch)](
                *(u, delta, z, out, B_, C_, A_, parameter(D), parameter(delta_bias), start, kinds),
                *(stream(last) if return_last_state else None, saved if save_states else None),
                *(*strides(u, delta, z, out), *B_strides, *C_strides, *cut.sizes(u, states, unit), entered),
                *(delta_softplus, reverse, unit, store, B.dim() == 2, C.dim() == 2, fours(states, B, C)),
                *(*cut.block, cut.tile),
                num_warps=1,
            )
    return out, last, saved


def backward(
    dout: Tensor,
    dlast_state: Tensor | None,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    initial_state: Tensor | None,
    seq_idx: Tensor | None,
    checkpoint: Tensor,
    delta_softplus: bool,
    reverse: bool,
) -> tuple[Tensor, ...]:
    """`selective_scan_backward`: the gradients of u, delta, A, B, C, D, z, delta_bias and initial_state.

    Each in its input's dtype and memory order; that of an absent input is (0,) in u's dtype.
    """
    batch, states = u.shape[0], A.shape[1]
    cut = cut_of(u, A, B, C)
    du, ddelta, dz, dstart = (_like_or_empty(t, u) for t in (u, delta, z, initial_state))
    sum_A, sum_B, sum_C, sum_D, sum_bias = _parts(cut, u, A, B, C, D, delta_bias)
    if batch > 0:
        kinds = step_kinds(seq_idx, reverse)
        unit, store = tiling(u, delta, z, dout)
        (B_, B_strides), (C_, C_strides) = projection(B), projection(C)
        A_, dz_ = parameter(A), None if z is None else dz
        with on_device(u):
            behind, entered = entering_gradients(
                cut, dout, dlast_state, delta, A_, C, z, delta_bias, kinds, delta_softplus, reverse
            )
            scan_backward[cut.grid(batch)](
                *(dout, u, delta, z, du, ddelta, dz_, B_, C_, A_, parameter(D), parameter(delta_bias)),
                *(behind, None if initial_state is None else stream(initial_state), kinds, checkpoint),
                *(None if initial_state is None else stream(dstart), sum_A, sum_B, sum_C, sum_D, sum_bias),
                *(*strides(dout, u, delta, z, du, ddelta, dz_), *B_strides, *C_strides),
                *(*cut.sizes(u, states, unit), entered),
                *(delta_softplus, reverse, unit, store, B.dim() == 2, C.dim() == 2, fours(states, B, C)),
                *(*cut.block, cut.tile),
                num_warps=1,
            )
    dD, dbias = (
        u.new_empty((0,)) if t is None else _like(t, p.sum(0)) for t, p in ((D, sum_D), (delta_bias, sum_bias))
    )
    dB, dC = _projection_gradient(B, sum_B), _projection_gradient(C, sum_C)
    return du, ddelta, _like(A, sum_A.sum(0)), dB, dC, dD, dz, dbias, dstart


def _like_or_empty(value: Tensor | None, u: Tensor) -> Tensor:
    """Memory for the gradient of an input that may be absent."""
    return u.new_empty((0,)) if value is None else torch.empty_like(value)


def _parts(
    cut: Cut, u: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, delta_bias: Tensor | None
) -> tuple[Tensor, ...]:
    """Memory for the programs' parts of dA, dB, dC, dD and the bias's gradient; (0,) where the input is absent."""
    batch, channels, length = u.shape
    states = A.shape[1]
    rows = batch * cut.chunks
    matrix, vector, per_step = (rows, channels, states), (rows, channels), (batch, cut.units, length, states)
    shapes: list[tuple[int, ...]] = [matrix]
    shapes += [matrix if t.dim() == 2 else per_step for t in (B, C)]
    shapes += [(0,) if t is None else vector for t in (D, delta_bias)]
    return tuple(torch.empty(shape, dtype=torch.float32, device=u.device) for shape in shapes)


def _like(value: Tensor, gradient: Tensor) -> Tensor:
    """The gradient in the dtype and memory order of its input."""
    return torch.empty_like(value).copy_(gradient)


def _projection_gradient(value: Tensor, sums: Tensor) -> Tensor:
    """dB or dC from the programs' parts: (B, D, N), or (B, units, L, N) with the units of a group adjacent."""
    if value.dim() == 2:
        return _like(value, sums.sum(0))
    if value.dim() == 3:
        return _like(value, sums.sum(1).transpose(1, 2))
    batch, _, length, states = sums.shape
    count = value.shape[1]
    return _like(value, sums.view(batch, count, sums.shape[1] // count, length, states).sum(2).transpose(2, 3))
