"""selective_scan's results as shapes, for tracing and meta tensors; their annotations are the raw operators' schema.

B batch, L length, D channels, N states, G groups of channels that share B and C.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ... import _checks, _operators

OP = "selective_scan"
TILE = 32  # steps between saved states on the CPU; kScanTile and kScanUnit in csrc/selective_scan/selective_scan.h
UNIT = 16
CUDA_TILE = 8  # kCudaTile in csrc/selective_scan/cuda/launch.h
NineTensors = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def forward(namespace: str) -> Callable[..., Any]:
    """The forward's shapes, whose saved states differ between the kernels."""

    def fake(
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
        _checks.check_devices(OP, u, (delta, A, B, C, D, z, delta_bias, initial_state, seq_idx))
        batch, channels, length = u.shape
        states = A.shape[1]
        state_type = _checks.sums_dtype(u)
        last_shape = (batch, channels, states) if return_last_state else (0,)
        last = u.new_empty(last_shape, dtype=state_type)
        if not save_states:
            return torch.empty_like(u), last, u.new_empty((0,), dtype=state_type)
        saved = saved_shape(namespace, u, A, B, C, save_states)
        return torch.empty_like(u), last, u.new_empty(saved, dtype=state_type)

    return fake


def saved_shape(namespace: str, u: Tensor, A: Tensor, B: Tensor, C: Tensor, every: int = 1) -> tuple[Any, ...]:
    """The shape (B, size) of the states that a backend's forward saves; its own rule stands in its sources.

    every: 2 where the CUDA kernels save half of them.

    The size is neither 0 nor 1 for any length, so that a graph needs no guard on it; one axis, since the number of tiles
    alone is either for short sequences.
    """
    batch, channels, length = u.shape
    states = A.shape[1]
    groups = max(t.shape[1] if t.dim() == 4 else 1 for t in (B, C))
    backend = _operators.backend_of(namespace, u.device)
    if backend == "triton":
        from .triton_impl import saved_shape as of_triton

        return of_triton(batch, channels, length, states)
    if backend == "cuda":
        padded = max(8, 1 << (states - 1).bit_length())
        steps = CUDA_TILE * every
        return (batch, (length + steps - 1) // steps * padded * channels)
    units = groups * ((channels // groups + UNIT - 1) // UNIT)
    tiles = torch.sym_max((length + TILE - 1) // TILE - 1, 0)
    return (batch, tiles * (units * states * UNIT) + UNIT)


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
) -> NineTensors:
    """A gradient like each input; an empty tensor for an absent one."""
    _checks.check_devices(
        OP, u, (dout, dlast_state, delta, A, B, C, D, z, delta_bias, initial_state, seq_idx, checkpoint)
    )
    present = [torch.empty_like(t) for t in (u, delta, A, B, C)]
    optional = [u.new_empty((0,)) if t is None else torch.empty_like(t) for t in (D, z, delta_bias, initial_state)]
    return tuple(present + optional)  # type: ignore[return-value]
