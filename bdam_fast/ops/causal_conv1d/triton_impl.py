"""The raw operators of causal_conv1d by Triton kernels. B batch, D channels, L length, W width (taps)."""

from typing import Any

import torch
import triton
from torch import Tensor

from ... import _tuning
from ..._triton import on_device, unit_of
from .triton_kernels import backward_kernel, forward_kernel

PROGRAMS = 1024  # wanted: a few for each multiprocessor of a large GPU


def _tile(x: Tensor) -> int:
    """Elements of a tile: by default 1024, 8 for each of 128 threads, two to four 16-byte loads a tap."""
    return _tuning.size("causal_conv1d.tile", x.device)


def _tiling(x: Tensor, tile: int) -> dict[str, int]:
    """Division of (B, D, L) into programs, by shape and memory order alone: long tiles along the adjacent axis.

    More tiles a program read the weights, and write the partial sums of their gradients, less often; eight are enough.
    """
    batch, channels, length = x.shape
    steps_adjacent = length > 1 and (channels == 1 or x.stride(2) < x.stride(1))
    pow2 = triton.next_power_of_2
    if steps_adjacent:
        block_l = min(128, tile, pow2(length))
        block_d = min(tile // block_l, pow2(channels))
    else:
        block_d = min(64, tile, pow2(channels))
        block_l = min(tile // block_d, pow2(length))
    tiles = 8
    while tiles > 1 and batch * triton.cdiv(length, block_l * tiles) * triton.cdiv(channels, block_d) < PROGRAMS:
        tiles //= 2
    chunks = triton.cdiv(length, block_l * tiles)
    return {"tiles": tiles, "chunks": chunks, "BLOCK_L": block_l, "BLOCK_D": block_d}


def _launch(
    kernel: Any, pointers: tuple[Any, ...], strided: tuple[Tensor, ...], tiling: dict[str, int], **flags: Any
) -> None:
    """Runs `kernel`; its arguments are `pointers`, the sizes, and the strides of the tensors of `strided`."""
    batch, channels, length = strided[0].shape
    programs = batch * tiling["chunks"] * triton.cdiv(channels, tiling["BLOCK_D"])
    unit = unit_of(*strided)
    # Only where steps are adjacent does a wide access have to end with the sequence.
    l_unit = unit if strided[0].stride(2) == 1 and length % unit == 0 else 1
    sizes = (length // l_unit, channels, tiling["chunks"], tiling["tiles"], batch * length)
    blocks = {name: tiling[name] for name in ("BLOCK_L", "BLOCK_D")}
    warps = max(1, min(4, blocks["BLOCK_L"] * blocks["BLOCK_D"] // 128))
    strides = [s for t in strided for s in (t.stride(0) // unit, t.stride(1), t.stride(2))]
    with on_device(strided[0]):
        kernel[(programs,)](*pointers, *sizes, *strides, **flags, L_UNIT=l_unit, UNIT=unit, **blocks, num_warps=warps)


def _contiguous(*tensors: Tensor | None) -> list[Tensor | None]:
    """Parameters as a kernel reads them; states without entries (W = 1) are absent."""
    return [None if t is None or t.numel() == 0 else t.contiguous() for t in tensors]


def packing_plan(seq_idx: Tensor, reverse: bool, width: int) -> Tensor:
    """(3, B, L) int32: the step at each rank, and where the sequence of that rank begins and ends.

    Ranks count the steps of seq_idx (B, L) that are no padding, in processing order; the padding stands behind them,
    with an end at their number. The first sequence begins at -(width - 1): the initial states precede it.
    """
    length = seq_idx.shape[1]
    index = seq_idx.flip(1) if reverse else seq_idx
    padding = index < 0
    order = padding.to(torch.int8).argsort(dim=1, stable=True)
    count = (~padding).sum(1, keepdim=True)
    rank = torch.arange(length, device=seq_idx.device).expand_as(order)
    ordered = index.gather(1, order)
    starts = torch.zeros_like(padding)
    starts[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    begin = torch.where(starts, rank, 0).cummax(1).values
    begin = torch.where((begin == 0) | (rank >= count), 1 - width, begin)
    following = torch.where(starts, rank, length).roll(-1, 1)
    following[:, -1] = length
    end = torch.minimum(following.flip(1).cummin(1).values.flip(1), count)
    return torch.stack([length - 1 - order if reverse else order, begin, end]).to(torch.int32)


def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    initial_states: Tensor | None,
    seq_idx: Tensor | None,
    silu: bool,
    reverse: bool,
    return_final_states: bool,
) -> tuple[Tensor, Tensor]:
    """`bdam_fast::causal_conv1d_forward`: out like x (B, D, L), and final_states (B, D, W - 1) float32, or (0,).

    x is float32, bfloat16 or float16 with any strides; weight (D, W), bias (D,) and initial_states (B, D, W - 1) have
    any floating dtype; seq_idx is (B, L) int32. Sums are float32; every output is one sum in a fixed order.
    """
    batch, channels, length = x.shape
    width = weight.shape[1]
    out = torch.empty_like(x)
    final = x.new_empty((batch, channels, width - 1) if return_final_states else (0,), dtype=torch.float32)
    if x.numel() == 0:
        if return_final_states:
            final.zero_() if initial_states is None else final.copy_(initial_states)
        return out, final
    plan = None if seq_idx is None else packing_plan(seq_idx, reverse, width)
    pointers = (x, *_contiguous(weight, bias, initial_states), plan, out, final if final.numel() else None)
    flags = {"WIDTH": width, "SILU": silu, "REVERSE": reverse and plan is None}
    _launch(forward_kernel, pointers, (x, out), _tiling(x, _tile(x)), **flags)
    return out, final


def backward(
    dout: Tensor,
    dfinal_states: Tensor | None,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    initial_states: Tensor | None,
    seq_idx: Tensor | None,
    silu: bool,
    reverse: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`bdam_fast::causal_conv1d_backward`: (dx, dweight, dbias, dinitial_states), each like its input or (0,).

    dout has the shape of x and any strides, dfinal_states is (B, D, W - 1) or absent. The gradients of weight and bias
    are summed within programs, and then over the programs by torch.sum: the same bits at every call.
    """
    batch, channels, length = x.shape
    width = weight.shape[1]
    dx = torch.empty_like(x)
    dinitial = x.new_empty((0,)) if initial_states is None else torch.empty_like(initial_states)
    if x.numel() == 0:
        if initial_states is not None:
            dinitial.zero_() if dfinal_states is None else dinitial.copy_(dfinal_states)
        sums = x.new_zeros((width + 1, channels), dtype=torch.float32)
    else:
        # Wider or packed, a whole tile would have registers spill (255 on sm_90).
        tiling = _tiling(x, _tile(x) if width <= 4 and seq_idx is None else _tile(x) // 2)
        partial = x.new_empty((batch * tiling["chunks"], width + 1, channels), dtype=torch.float32)
        target = (
            dinitial if dinitial.is_contiguous() else torch.empty(dinitial.shape, dtype=dinitial.dtype, device=x.device)
        )
        plan = None if seq_idx is None else packing_plan(seq_idx, reverse, width)
        inputs = (dout, *_contiguous(dfinal_states), x, *_contiguous(weight, bias, initial_states), plan)
        pointers = (*inputs, dx, target if dinitial.numel() else None, partial)
        flags = {"WIDTH": width, "SILU": silu, "REVERSE": reverse and plan is None}
        _launch(backward_kernel, pointers, (x, dout, dx), tiling, **flags)
        if target is not dinitial:
            dinitial.copy_(target)
        sums = partial.sum(0)
    dweight = torch.empty_like(weight).copy_(sums[:width].T)
    dbias = x.new_empty((0,)) if bias is None else torch.empty_like(bias).copy_(sums[width])
    return dx, dweight, dbias, dinitial
