"""The raw operator selective_state_update by a Triton kernel: one step of the scan, the state updated in place.

B batch, D channels, N states, G groups of channels that share B and C. A program computes about 512 states, the channels
of one batch item, in one warp; everything is read and written once, so that memory sets the speed.
"""

import torch
import triton
from torch import Tensor

from ..._triton import on_device, parameter
from .triton_kernels import update_kernel


def update(
    state: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    dt_softplus: bool,
) -> Tensor:
    """`selective_state_update`: returns out (B, D) in x's dtype and memory order; `state` (B, D, N) is overwritten."""
    batch, channels, states = state.shape
    groups = max(t.shape[1] if t.dim() == 3 else 1 for t in (B, C))
    N = triton.next_power_of_2(states)
    block = min(max(1, 512 // N), triton.next_power_of_2(channels // groups))
    blocks = triton.cdiv(channels // groups, block)
    out = torch.empty_like(x)
    if batch > 0:
        with on_device(x):
            update_kernel[(batch * groups * blocks,)](
                *((state, *state.stride()), x, dt, z, out, B, C, parameter(A), parameter(D), parameter(dt_bias)),
                *(*x.stride(), *dt.stride(), *((0, 0) if z is None else z.stride()), *out.stride()),
                *(*_strides(B), *_strides(C)),
                *(states, channels // groups, blocks, groups * blocks, dt_softplus, block, N),
                num_warps=1,
            )
    return out


def _strides(value: Tensor) -> tuple[int, int, int]:
    """Strides of B or C (batch, group, state)."""
    group = value.stride(1) if value.dim() == 3 and value.shape[1] > 1 else 0
    return value.stride(0), group, value.stride(-1)
