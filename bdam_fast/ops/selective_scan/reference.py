"""The selective scan of Mamba-1 as its equation in plain PyTorch: any device, any dtype, any order of derivative.

B batch, L length, D channels, N states, G groups of channels that share B and C.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ... import _autograd, _native


def selective_scan_reference(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    initial_state: Tensor | None = None,
    reverse: bool = False,
    seq_idx: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Output (B, D, L) in u's dtype and last state (B, D, N) in float32 (float64 for float64 inputs), complex for a complex A.

    With dt_t = softplus(delta_t + delta_bias) (Gu and Dao 2023, equations 2 and 4, zero-order hold for A, Euler for B):
        h_t = exp(dt_t A) h_{t-1} + dt_t B_t u_t
        y_t = <C_t, h_t> + D u_t, or 2 Re <C_t, h_t> + D u_t for a complex A
        out = y silu(z)
    """
    _native.count_call("selective_scan.reference.forward")
    with _autograd.full_precision(u.device):
        state_type = torch.float64 if u.dtype == torch.float64 else torch.float32
        if (
            seq_idx is not None
        ):  # what stands in a padded step must not reach anything, not even as 0 * NaN in a gradient
            padded = (seq_idx < 0)[:, None]
            u, delta = u.masked_fill(padded, 0), delta.masked_fill(padded, 0)
            z = None if z is None else z.masked_fill(padded, 0)
        u_BDL, dt = u.to(state_type), delta.to(state_type)
        if delta_bias is not None:
            dt = dt + delta_bias.to(state_type)[:, None]
        if delta_softplus:
            dt = F.softplus(dt)
        kind = state_type
        if A.is_complex():  # not `to_complex()`, which torch.compile does not know
            kind = torch.complex128 if state_type == torch.float64 else torch.complex64
        B_BDNL = _per_step(B.to(kind), u, seq_idx)
        C_BDNL = _per_step(C.to(kind), u, seq_idx)
        state = _zero_state(u, A, kind) if initial_state is None else initial_state.to(kind)
        y, state = _recurrence(u_BDL, dt, A.to(kind), B_BDNL, C_BDNL, state, reverse, seq_idx)
        if y.is_complex():
            y = 2 * y.real
        if D is not None:
            y = y + D.to(state_type)[:, None] * u_BDL
        if z is not None:
            y = y * F.silu(z.to(state_type))
        if seq_idx is not None:
            y = y.masked_fill(padded, 0)
        return y.to(u.dtype), state


def _recurrence(
    u: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    state: Tensor,
    reverse: bool,
    seq_idx: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The loop over the steps: y (B, D, L) without the skip D u, and the state after the last processed step."""
    length = u.shape[2]
    if length == 0:
        return dt * u, state.clone()
    # unbind and not indexing: the gradient of L slices is one stack instead of L additions of whole tensors.
    decay = torch.exp(dt.unsqueeze(-1) * A.unsqueeze(1)).unbind(2)
    update = ((dt * u).unsqueeze(-1) * B.transpose(2, 3)).unbind(2)
    C_steps = C.unbind(3)
    order = range(length - 1, -1, -1) if reverse else range(length)
    keep, skip = (None, None) if seq_idx is None else _step_masks(seq_idx, order)
    outputs: list[Tensor] = [u] * length
    for t in order:
        before = state if keep is None else torch.where(keep[t], state, 0)
        after = decay[t] * before + update[t]
        state = after if skip is None else torch.where(skip[t], state, after)
        outputs[t] = (state * C_steps[t]).sum(-1)
    return torch.stack(outputs, 2), state


def _per_step(projection: Tensor, u: Tensor, seq_idx: Tensor | None) -> Tensor:
    """B or C, given as (D, N), (B, N, L) or (B, G, N, L), as (B, D, N, L), zero in padded steps."""
    batch, channels, length = u.shape
    if projection.dim() == 2:
        full = projection[None, :, :, None].expand(batch, -1, -1, length)
    else:
        grouped = projection[:, None] if projection.dim() == 3 else projection
        full = grouped.repeat_interleave(channels // grouped.shape[1], dim=1) if grouped.shape[1] > 1 else grouped
    return full if seq_idx is None else full.masked_fill((seq_idx < 0)[:, None, None], 0)


def _zero_state(u: Tensor, A: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros(u.shape[0], u.shape[1], A.shape[1], dtype=dtype, device=u.device)


def _step_masks(seq_idx: Tensor, order: range) -> tuple[list[Tensor], list[Tensor]]:
    """For every step, (B, 1, 1) masks: whether the state before it is kept, and whether the step is skipped as padding.

    The state is reset where the index differs from that of the last step that was processed; padded steps are skipped.
    """
    length = seq_idx.shape[1]
    current = torch.full_like(seq_idx[:, 0], -1)
    keep: list[Tensor] = [current] * length
    skip: list[Tensor] = [current] * length
    for t in order:
        index = seq_idx[:, t]
        padded = index < 0
        keep[t] = (padded | (current < 0) | (index == current))[:, None, None]
        skip[t] = padded[:, None, None]
        current = torch.where(padded, current, index)
    return keep, skip
