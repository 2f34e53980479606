"""selective_scan in Triton: how it is cut into programs, and the launches, with the raw operator's signature.

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
forward, 36 to 41 backward, of which 2 to 3 spill. Not measured: no GPU was at hand. There is no second way for
long sequences with few channels: programs number batch times channels / 32, whatever the length.
"""

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from ... import _tuning
from ..._triton import on_device, parameter
from .triton_kernels_backward import scan_backward
from .triton_kernels_forward import scan_forward

TILE = 8
ZEROS = 16  # at the end of each row of the saved states' shape; in memory all of them come last


class Blocks(NamedTuple):
    """A program's channels, P in a thread and Q over the lanes, and N the states padded to a power of two."""

    P: int
    N: int
    Q: int


def saved_shape(batch: int, channels: int, length: int, states: int) -> tuple[int, ...]:
    """Shape of what the forward saves: the states before every tile but the first, (B, tiles - 1, D, N), then zeros.

    A size that is 0 for some lengths would have a traced graph tell these from the others.
    """
    tiles = torch.sym_max((length + TILE - 1) // TILE - 1, 0)
    return (batch, tiles * (states * channels) + ZEROS)


def blocks_of(channels: int, states: int, device: torch.device) -> Blocks:
    """512 states a program, 16 in a thread: 4 channels by 4 states at N = 16, which shares the work of both sums.

    A card's table may have fewer: more programs, with fewer registers each.
    """
    N = triton.next_power_of_2(states)
    block = min(64, max(1, _tuning.size("selective_scan.states", device) // N), triton.next_power_of_2(channels))
    Q = min(8, block)
    return Blocks(block // Q, N, Q)


def tile_of(length: int) -> int:
    """Steps a tile: fewer than 8 only where one tile is the whole sequence, so that no step is computed for nothing."""
    return min(TILE, triton.next_power_of_2(max(length, 1)))


def stream(value: Tensor | None) -> tuple[Any, ...] | None:
    """A tensor of three dimensions without steps as the kernels take it: with its strides."""
    return None if value is None else (value, *value.stride())


def strides(*values: Tensor | None) -> list[int]:
    """Strides of (B, D, L) tensors, zeros for an absent one."""
    return [s for t in values for s in ((0, 0, 0) if t is None else t.stride())]


def projection(value: Tensor) -> tuple[Tensor, tuple[int, int, int, int]]:
    """B or C and its strides (batch, group, state, time); a constant one like the other small parameters."""
    if value.dim() == 2:
        constant = parameter(value)
        assert constant is not None
        return constant, (0, 0, 0, 0)
    batch, states, time = value.stride(0), value.stride(-2), value.stride(-1)
    group = value.stride(1) if value.dim() == 4 and value.shape[1] > 1 else 0
    return value, (batch, group, states, time)


def tiling(u: Tensor, *others: Tensor | None) -> tuple[int, bool]:
    """(UNIT, STORE_TILED) of streams (B, D, L): how the tiles of tensors whose steps are adjacent are loaded and stored.

    They are stored at once where the steps of u are adjacent, and loaded at once, UNIT steps an access of 16 bytes, where
    those of all streams are, every channel begins at a multiple of 16 bytes and no access goes past its end. Else UNIT is
    1 and rows are loaded: steps that lie over the lanes would cost a row shuffles (3344 bytes spilled instead of 1568 in
    the backward at L = 77, sm_90).
    """
    adjacent = u.stride(2) == 1 and u.stride(1) != 1
    unit = 16 // u.element_size()
    streams = [u, *(t for t in others if t is not None)]
    aligned = u.shape[2] % unit == 0 and all(_begins_aligned(t) for t in streams)
    return unit if adjacent and aligned else 1, adjacent


def _begins_aligned(t: Tensor) -> bool:
    """True if steps are adjacent and the first of every channel lies at a multiple of 16 bytes."""
    size = t.element_size()
    return t.stride(2) == 1 and all(at % 16 == 0 for at in (t.data_ptr(), t.stride(0) * size, t.stride(1) * size))


def fours(states: int, *projections: Tensor) -> bool:
    """True where B and C per step are read by four states an access: 16 states, adjacent, and four of them aligned.

    No state is masked then, and a thread has one access a step in place of four (sm_90, channels adjacent: 41.4 to 39.7
    instructions a state and step backward).
    """

    def aligned(t: Tensor) -> bool:
        size = t.element_size()
        others = [stride for axis, stride in enumerate(t.stride()) if axis != t.dim() - 2]
        return t.stride(-2) == 1 and all(at % (4 * size) == 0 for at in (t.data_ptr(), *(s * size for s in others)))

    return states == 16 and all(aligned(t) for t in projections if t.dim() > 2)


def groups_of(value: Tensor) -> int:
    """The number of groups of B or C."""
    return value.shape[1] if value.dim() == 4 else 1


def step_kinds(seq_idx: Tensor | None, reverse: bool) -> Tensor | None:
    """(B, L) int8 in memory order: 0 a step, 1 a step from a zero state, 2 padding."""
    if seq_idx is None:
        return None
    index = seq_idx.flip(1) if reverse else seq_idx
    place = torch.arange(index.shape[1], device=index.device)
    seen = torch.where(index >= 0, place, -1).cummax(1).values
    before = torch.nn.functional.pad(seen[:, :-1], (1, 0), value=-1)  # the step processed last before each
    changed = (before >= 0) & (index.gather(1, before.clamp(min=0)) != index)
    kinds = torch.where(index < 0, 2, changed.to(torch.int8)).to(torch.int8)
    return kinds.flip(1) if reverse else kinds.contiguous()


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
    groups = max(groups_of(B), groups_of(C))
    block = blocks_of(channels // groups, states, u.device)
    blocks = triton.cdiv(channels // groups, block.P * block.Q)
    out = torch.empty_like(u)
    last_shape = (batch, channels, states) if return_last_state else (0,)
    last = torch.empty(last_shape, dtype=torch.float32, device=u.device)
    shape = saved_shape(batch, channels, length, states) if save_states else (0,)
    saved = torch.empty(shape, dtype=torch.float32, device=u.device)
    if save_states:
        saved.view(-1)[batch * (shape[1] - ZEROS) :].zero_()
    if batch > 0:
        unit, store = tiling(u, delta, z)
        (B_, B_strides), (C_, C_strides) = projection(B), projection(C)
        with on_device(u):
            scan_forward[(batch * groups * blocks,)](
                *(u, delta, z, out, B_, C_, parameter(A), parameter(D), parameter(delta_bias)),
                *(stream(initial_state), step_kinds(seq_idx, reverse)),
                *(stream(last) if return_last_state else None, saved if save_states else None),
                *(*strides(u, delta, z, out), *B_strides, *C_strides),
                *(length // unit, channels, states, channels // groups, blocks, groups * blocks),
                *(delta_softplus, reverse, unit, store, B.dim() == 2, C.dim() == 2, fours(states, B, C)),
                *(*block, tile_of(length)),
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
    batch, channels, length = u.shape
    states = A.shape[1]
    groups = max(groups_of(B), groups_of(C))
    block = blocks_of(channels // groups, states, u.device)
    blocks = triton.cdiv(channels // groups, block.P * block.Q)
    units = groups * blocks

    du, ddelta, dz, dstart = (_like_or_empty(t, u) for t in (u, delta, z, initial_state))
    sum_A, sum_B, sum_C, sum_D, sum_bias = _parts(u, A, B, C, D, delta_bias, units)
    if batch > 0:
        unit, store = tiling(u, delta, z, dout)
        (B_, B_strides), (C_, C_strides) = projection(B), projection(C)
        dz_ = None if z is None else dz
        with on_device(u):
            scan_backward[(batch * units,)](
                *(dout, u, delta, z, du, ddelta, dz_, B_, C_, parameter(A), parameter(D), parameter(delta_bias)),
                *(stream(dlast_state), stream(initial_state), step_kinds(seq_idx, reverse), checkpoint),
                *(None if initial_state is None else stream(dstart), sum_A, sum_B, sum_C, sum_D, sum_bias),
                *(*strides(dout, u, delta, z, du, ddelta, dz_), *B_strides, *C_strides),
                *(length // unit, channels, states, channels // groups, blocks, units),
                *(delta_softplus, reverse, unit, store, B.dim() == 2, C.dim() == 2, fours(states, B, C)),
                *(*block, tile_of(length)),
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
    u: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, delta_bias: Tensor | None, units: int
) -> tuple[Tensor, ...]:
    """Memory for the programs' parts of dA, dB, dC, dD and the bias's gradient; (0,) where the input is absent."""
    batch, channels, length = u.shape
    states = A.shape[1]
    matrix, vector, per_step = (batch, channels, states), (batch, channels), (batch, units, length, states)
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
