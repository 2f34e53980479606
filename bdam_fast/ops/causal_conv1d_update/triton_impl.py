"""The raw operator causal_conv1d_update by a Triton kernel. B batch, D channels, L length, S entries, W width (taps)."""

import torch
import triton
from torch import Tensor

from ..._triton import on_device
from .triton_kernels import update_kernel


def update(x: Tensor, conv_state: Tensor, weight: Tensor, bias: Tensor | None, silu: bool) -> Tensor:
    """`bdam_fast::causal_conv1d_update`: out like x, (B, D) or (B, D, L); conv_state (B, D, S) is updated in place.

    x is float32, bfloat16 or float16; the state, weight (D, W) and bias (D,) have any floating dtype, all of them any
    strides. Old entries of the state move without rounding, new ones are x rounded to its dtype.
    """
    out = torch.empty_like(x)
    if x.numel() == 0:
        return out
    steps, results = (t.unsqueeze(-1) if t.dim() == 2 else t for t in (x, out))
    batch, channels, length = steps.shape
    entries, width = conv_state.shape[2], weight.shape[1]
    block_d = min(128, triton.next_power_of_2(channels))
    block_s = min(8, triton.next_power_of_2(max(1, entries)))
    strides = [s for t in (steps, conv_state, results) for s in t.stride()]
    pointers = (steps, conv_state, weight.contiguous(), None if bias is None else bias.contiguous(), results)
    flags = {"WIDTH": width, "SILU": silu, "BLOCK_S": block_s, "BLOCK_D": block_d}
    with on_device(x):
        update_kernel[(batch * triton.cdiv(channels, block_d),)](
            *pointers, length, channels, entries, *strides, **flags, num_warps=max(1, block_d // 32)
        )
    return out
