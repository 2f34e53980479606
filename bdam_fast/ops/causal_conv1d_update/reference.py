"""The steps of a causal depthwise convolution after a state, in plain PyTorch.

B batch, D channels, L steps, W width (taps), S entries of the state.
"""

import torch
from torch import Tensor

from ... import _autograd, _native
from ..causal_conv1d.reference import filter_window


def causal_conv1d_update_reference(
    x: Tensor, conv_state: Tensor, weight: Tensor, bias: Tensor | None, silu: bool
) -> tuple[Tensor, Tensor]:
    """(out in x's shape and dtype, the new state (B, D, S)) of `causal_conv1d_update`, whose arguments are checked.

    s_t = bias + sum_j weight[:, j] q_{S+t-W+1+j}, where q is the state followed by x; the new state is the end of q.
    """
    _native.count_call("causal_conv1d_update.reference.forward")
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    with _autograd.full_precision(x.device):
        taps = weight.to(dtype)
        offset = taps.new_zeros(x.shape[1]) if bias is None else bias.to(dtype)
        steps = x[:, :, None] if x.dim() == 2 else x
        unused = conv_state.shape[2] - weight.shape[1] + 1
        window = torch.cat([conv_state[:, :, unused:].to(dtype), steps.to(dtype)], 2)
        out = filter_window(window, taps, offset, silu).to(x.dtype)
        after = torch.cat([conv_state, steps.to(conv_state.dtype)], 2)[:, :, steps.shape[2] :]
        return out.view(x.shape) if x.dim() == 2 else out, after
