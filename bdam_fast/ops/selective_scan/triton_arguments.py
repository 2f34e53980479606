"""selective_scan in Triton: tensors as the kernels take them.

B batch, L length, D channels, N states, G groups of channels that share B and C.
"""

from typing import Any

import torch
from torch import Tensor

from ..._triton import parameter

LARGEST_OFFSET = 2**31 - 1  # in elements: kernels multiply strides of groups and states in 32 bits


def stream(value: Tensor) -> tuple[Any, ...]:
    """A tensor of three dimensions without steps as the kernels take it: with its strides."""
    return (value, *value.stride())


def strides(*values: Tensor | None) -> list[int]:
    """Strides of (B, D, L) tensors, zeros for an absent one."""
    return [s for t in values for s in ((0, 0, 0) if t is None else t.stride())]


def projection(value: Tensor) -> tuple[Tensor, tuple[int, int, int, int]]:
    """B or C and its strides (batch, group, state, time); a constant one like the other small parameters.

    Copied with the states adjacent where a group and a state lie further apart than the kernels' 32 bits reach.
    """
    if value.dim() == 2:
        return parameter(value), (0, 0, 0, 0)
    if sum((n - 1) * s for n, s in zip(value.shape[1:-1], value.stride()[1:-1], strict=True)) > LARGEST_OFFSET:
        value = value.movedim(-1, 1).contiguous().movedim(1, -1)
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
