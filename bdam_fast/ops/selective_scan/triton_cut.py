"""selective_scan in Triton: how a call is cut into programs, and the states that enter the chunks of a long sequence.

B batch, L length, D channels, N states, G groups of channels that share B and C.
"""

from typing import Any, NamedTuple, TypeAlias

import torch
import triton
from torch import Tensor

from ... import _tuning
from ..._triton import parameter
from .triton_arguments import fours, groups_of, projection, stream, strides, tiling
from .triton_kernels_chunks import scan_carry, scan_chunks, scan_gradient_chunks

TILE = 8
# A sequence is cut in chunks where there are fewer than FEW programs and at least LONG steps: into chunks of at least
# SHORTEST steps, until there are MANY programs. Of one warp each, 8 fit a multiprocessor (registers), 1056 an H100.
# Shapes alone decide, so that the bits of a result do not depend on the GPU.
FEW, MANY, LONG, SHORTEST = 352, 1056, 512, 128
CARRIED = 256  # states of a program of scan_carry

Entering: TypeAlias = tuple[tuple[Any, ...], int]


class Blocks(NamedTuple):
    """A program's channels, P in a thread and Q over the lanes, and N the states padded to a power of two."""

    P: int
    N: int
    Q: int


class Cut(NamedTuple):
    """A program takes a block of channels, of `units` in all groups, and a chunk of tiles of steps."""

    block: Blocks
    blocks: int
    units: int
    chunks: int
    chunk_tiles: int
    tile: int

    def grid(self, batch: int) -> tuple[int]:
        """The number of programs."""
        return (batch * self.chunks * self.units,)

    def sizes(self, u: Tensor, states: int, unit: int) -> tuple[int, ...]:
        """The sizes that a kernel takes, lengths in units of `tiling`."""
        _, channels, length = u.shape
        group_channels = channels * self.blocks // self.units
        return (length // unit, channels, states, group_channels, *self[1:5])


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


def chunk_tiles(programs: int, length: int) -> int:
    """Tiles of a chunk, where so many programs take whole sequences."""
    tiles = max(1, triton.cdiv(length, tile_of(length)))
    if not 0 < programs < FEW or length < LONG:
        return tiles
    return triton.cdiv(tiles, min(MANY // programs, length // SHORTEST))


def cut_of(u: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Cut:
    """The cut of a call of these arguments."""
    batch, channels, length = u.shape
    groups = max(groups_of(B), groups_of(C))
    block = blocks_of(channels // groups, A.shape[1], u.device)
    blocks = triton.cdiv(channels // groups, block.P * block.Q)
    units, tile = groups * blocks, tile_of(length)
    per_chunk = chunk_tiles(batch * units, length)
    chunks = max(1, triton.cdiv(triton.cdiv(length, tile), per_chunk))
    return Cut(block, blocks, units, chunks, per_chunk, tile)


def entering(A: Tensor, value: Tensor | None) -> Entering:
    """States as the kernels take them, and whether there are any: one variant of a kernel serves both."""
    if value is None:
        channels, states = A.shape
        return (A, channels * states, states, 1), 0
    return stream(value), 1


def entering_states(
    cut: Cut,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    delta_bias: Tensor | None,
    initial_state: Tensor | None,
    kinds: Tensor | None,
    delta_softplus: bool,
    reverse: bool,
) -> Entering:
    """The state that enters each chunk, (B * chunks, D, N), see `entering`; A is float32 and contiguous."""
    if cut.chunks == 1:
        return entering(A, initial_state)
    unit, _ = tiling(u, delta)
    B_, B_strides = projection(B)
    ends, decays = _workspace(cut, u, A)
    scan_chunks[cut.grid(u.shape[0])](
        *(u, delta, B_, A, parameter(delta_bias), kinds, ends, decays),
        *(*strides(u, delta), *B_strides, *cut.sizes(u, A.shape[1], unit)),
        *(delta_softplus, reverse, unit, B.dim() == 2, fours(A.shape[1], B), *cut.block, cut.tile),
        num_warps=1,
    )
    return _carried(cut, A, ends, decays, initial_state, backwards=False)


def entering_gradients(
    cut: Cut,
    dout: Tensor,
    dlast_state: Tensor | None,
    delta: Tensor,
    A: Tensor,
    C: Tensor,
    z: Tensor | None,
    delta_bias: Tensor | None,
    kinds: Tensor | None,
    delta_softplus: bool,
    reverse: bool,
) -> Entering:
    """The gradient of the state after each chunk, (B * chunks, D, N), see `entering`; A is float32 and contiguous."""
    if cut.chunks == 1:
        return entering(A, dlast_state)
    unit, _ = tiling(dout, delta, z)
    C_, C_strides = projection(C)
    ends, decays = _workspace(cut, dout, A)
    scan_gradient_chunks[cut.grid(dout.shape[0])](
        *(dout, delta, z, C_, A, parameter(delta_bias), kinds, ends, decays),
        *(*strides(dout, delta, z), *C_strides, *cut.sizes(dout, A.shape[1], unit)),
        *(delta_softplus, reverse, unit, C.dim() == 2, fours(A.shape[1], C), *cut.block, cut.tile),
        num_warps=1,
    )
    return _carried(cut, A, ends, decays, dlast_state, backwards=True)


def _workspace(cut: Cut, u: Tensor, A: Tensor) -> tuple[Tensor, Tensor]:
    """Memory for what leaves each chunk, and for its decay."""
    shape = (u.shape[0] * cut.chunks, *A.shape)
    ends = torch.empty(shape, dtype=torch.float32, device=u.device)
    return ends, torch.empty_like(ends)


def _carried(cut: Cut, A: Tensor, ends: Tensor, decays: Tensor, first: Tensor | None, backwards: bool) -> Entering:
    """States or gradients that enter each chunk, where `first` enters the one that is walked first."""
    size = ends[0].numel()
    grid = (triton.cdiv(size, CARRIED), ends.shape[0] // cut.chunks)
    scan_carry[grid](ends, decays, parameter(first), size, cut.chunks, backwards, CARRIED)
    return entering(A, ends)
