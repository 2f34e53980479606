"""The causal depthwise convolution in plain PyTorch: any device, any floating dtype, differentiable by plain autograd.

B batch, D channels, L length, W width (taps).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ... import _autograd, _native


def causal_conv1d_reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    silu: bool,
    initial_states: Tensor | None,
    reverse: bool,
    seq_idx: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """(out (B, D, L), final_states (B, D, W - 1)) of `causal_conv1d`, whose arguments are taken as checked.

    s_t = bias + sum_j weight[:, j] q_{t+j}, where q is the initial states followed by x in processing order, and out
    is s or s sigmoid(s). Everything is computed in float32, or float64 if x is; final_states has that type.
    """
    _native.count_call("causal_conv1d.reference.forward")
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    with _autograd.full_precision(x.device):
        steps = x.to(dtype).flip(2) if reverse else x.to(dtype)
        taps = weight.to(dtype)
        offset = taps.new_zeros(x.shape[1]) if bias is None else bias.to(dtype)
        shape = (x.shape[0], x.shape[1], weight.shape[1] - 1)
        before = steps.new_zeros(shape) if initial_states is None else initial_states.to(dtype)
        if seq_idx is None or x.shape[2] == 0:
            window = torch.cat([before, steps], 2)
            out, final = filter_window(window, taps, offset, silu), window[:, :, x.shape[2] :]
        else:
            out, final = _packed(steps, taps, offset, silu, before, seq_idx.flip(1) if reverse else seq_idx)
        if reverse:
            out = out.flip(2)
        return out.to(x.dtype), final


def filter_window(window: Tensor, taps: Tensor, offset: Tensor, silu: bool, runs: Tensor | None = None) -> Tensor:
    """The filter over window (B, D, W - 1 + L); with runs (B, W - 1 + L) a tap of another run is zero."""
    width = taps.shape[1]
    length = window.shape[2] - width + 1
    s = offset[:, None].expand(window.shape[0], -1, length)
    for j in range(width):
        q = window[:, :, j : j + length]
        if runs is not None:
            q = q.masked_fill((runs[:, j : j + length] != runs[:, width - 1 :])[:, None], 0)
        s = s + taps[:, j, None] * q
    return F.silu(s) if silu else s


def _packed(
    steps: Tensor, taps: Tensor, offset: Tensor, silu: bool, before: Tensor, seq_idx: Tensor
) -> tuple[Tensor, Tensor]:
    """The filter over sequences packed in a row: the steps without the padding, which is moved to the end and back."""
    window_length = before.shape[2]
    padding = seq_idx < 0
    order = padding.to(torch.int8).argsort(dim=1, stable=True)
    count = (~padding).sum(1, keepdim=True)
    tail = torch.arange(steps.shape[2], device=steps.device) >= count
    compact = steps.gather(2, order[:, None].expand_as(steps)).masked_fill(tail[:, None], 0)
    index = seq_idx.gather(1, order)
    runs = F.pad((index[:, 1:] != index[:, :-1]).long().cumsum(1), (1 + window_length, 0))
    window = torch.cat([before, compact], 2)
    out = filter_window(window, taps, offset, silu, runs).masked_fill(tail[:, None], 0)
    out = out.gather(2, order.argsort(1)[:, None].expand_as(out))
    last = count + torch.arange(window_length, device=steps.device)
    final = window.gather(2, last[:, None].expand_as(before))
    last_runs = runs.gather(1, last)
    return out, final.masked_fill((last_runs != last_runs[:, -1:])[:, None], 0)
