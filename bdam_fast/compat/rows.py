"""States of a batch chosen by index out of a pool, and packed sequences given by their ends.

B batch, L length, D channels.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._C import _TorchDispatchModeKey as Modes
from torch._subclasses import FakeTensor

from .. import _autograd, _checks


def check_index(op: str, name: str, value: Tensor, count: int) -> None:
    """An int32 or int64 tensor (count,)."""
    if value.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"{op}: {name} must be int32 or int64, got {value.dtype}")
    _checks.check_shape(op, name, value, (count,))


def check_rows(op: str, name: str, indices: Tensor, count: int, check: bool) -> None:
    """Raises where an index lies behind the last row or, if `check`, stands twice; not while the call is traced."""
    if _is_traced(indices) or indices.numel() == 0 or not (check or indices.device.type == "cpu"):
        return
    if indices.max() >= count:
        raise ValueError(f"{op}: {name} must be below {count}, or negative for padding, got {indices.max().item()}")
    if check:
        rows, times = indices[indices >= 0].unique(return_counts=True)
        if rows.numel() and times.max() > 1:
            raise ValueError(f"{op}: {name} must name each row once, got {rows[times > 1][0].item()} more than once")


def _is_traced(value: Tensor) -> bool:
    """True where `value` has no values to read: in `torch.compile`, in `make_fx` and among fake tensors."""
    if torch.compiler.is_compiling() or isinstance(value, FakeTensor):
        return True
    return any(torch._C._get_dispatch_mode(mode) is not None for mode in (Modes.FAKE, Modes.PROXY))


def without_padding(padding: Tensor, *tensors: Tensor | None) -> list[Any]:
    """The tensors (B, …), zero in items of padding where a gradient may be asked for: what stands there reaches no sum."""
    if not _autograd.needs_grad(tensors):
        return list(tensors)
    return [None if t is None else t.masked_fill(_like(padding, t), 0) for t in tensors]


def at_rows(pool: Tensor, indices: Tensor, step: Callable[[Tensor], Tensor]) -> Tensor:
    """`step(states)`, which updates its states in place, on the rows `indices` (B,) of `pool`; the result (B, …).

    Items with a negative index are padding: their result is zero, and no row is written for them. Nothing depends on the
    values of the indices but values, so that a graph holds for all of them.
    """
    if indices.shape[0] == 0:
        return step(pool[:0].clone())
    padding = indices < 0
    rows = indices.long().clamp(min=0)
    before = pool[rows]
    states = before.clone()
    out = step(states)
    after = torch.where(_like(padding, states), before, states)
    # Padding writes what the first item that is none writes; where all items are padding, row 0 as it was.
    own = torch.arange(indices.shape[0], device=indices.device)
    item = torch.where(padding, padding.to(torch.int8).argmin(), own)
    pool[rows[item]] = after[item]
    return out.masked_fill(_like(padding, out), 0)


def _like(items: Tensor, t: Tensor) -> Tensor:
    """(B,) as (B, 1, …) with as many dimensions as `t`."""
    return items.view(-1, *[1] * (t.dim() - 1))


def packed(op: str, cu_seqlens: Tensor | None, seq_idx: Tensor | None, first: Tensor) -> Tensor | None:
    """seq_idx (1, L) of sequences packed one behind the other in `first` (1, D, L); steps behind the last are padding.

    cu_seqlens is (S + 1,), int32 or int64: where the sequences begin, and where the last one ends.

    Raises:
        TypeError, ValueError: another dtype or shape, more than one row, or `seq_idx` besides.
    """
    if cu_seqlens is None:
        return seq_idx
    if seq_idx is not None:
        raise ValueError(f"{op}: cu_seqlens must come without seq_idx, got both")
    if first.dim() != 3 or first.shape[0] != 1:
        shape = _checks.shape_text(first.shape)
        raise ValueError(f"{op}: cu_seqlens needs sequences packed in one row (1, D, L), got {shape}")
    check_index(op, "cu_seqlens", cu_seqlens, max(2, cu_seqlens.numel()))
    steps = torch.arange(first.shape[2], device=first.device, dtype=cu_seqlens.dtype)
    index = torch.searchsorted(cu_seqlens[1:].contiguous(), steps, right=True)
    return torch.where(index < cu_seqlens.shape[0] - 1, index, -1).to(torch.int32)[None]
