"""One step of the selective scan as its equation in plain PyTorch.

B batch, D channels, N states, G groups of channels that share B and C.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ... import _autograd, _native


def selective_state_update_reference(
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
) -> tuple[Tensor, Tensor]:
    """(out (B, D) in x's dtype, state after the step (B, D, N) in float32 or float64) of `selective_state_update`.

    With dt = softplus(dt + dt_bias):  h = exp(dt A) state + dt B x,  y = <C, h> + D x,  out = y silu(z).
    """
    _native.count_call("selective_state_update.reference.forward")
    with _autograd.full_precision(x.device):
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        x_BD, step = x.to(dtype), dt.to(dtype)
        if dt_bias is not None:
            step = step + dt_bias.to(dtype)
        if dt_softplus:
            step = F.softplus(step)
        B_BDN, C_BDN = (_per_channel(value.to(dtype), x.shape[1]) for value in (B, C))
        before = state.to(dtype, copy=True)  # its gradient reads it after `state` has been overwritten
        after = torch.exp(step.unsqueeze(-1) * A.to(dtype)) * before + (step * x_BD).unsqueeze(-1) * B_BDN
        y = (after * C_BDN).sum(-1)
        if D is not None:
            y = y + D.to(dtype) * x_BD
        if z is not None:
            y = y * F.silu(z.to(dtype))
        return y.to(x.dtype), after


def _per_channel(projection: Tensor, channels: int) -> Tensor:
    """B or C of one step, (B, N) or (B, G, N), as (B, 1 or D, N)."""
    grouped = projection[:, None] if projection.dim() == 2 else projection
    return grouped.repeat_interleave(channels // grouped.shape[1], dim=1) if grouped.shape[1] > 1 else grouped
