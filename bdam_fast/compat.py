"""The names and signatures that existing code calls, on these operators.

`selective_scan_fn`, `mamba_inner_fn` and `selective_state_update` are those of mamba_ssm 2.2 and 2.3, `causal_conv1d_fn`
and `causal_conv1d_update` those of causal_conv1d 1.4 to 1.7: same arguments in the same order, same results in the same
layout. What is not supported raises and names the argument. `patch_transformers()` makes Hugging Face's Mamba models run
on the operators. B batch, L length, D channels, N states, G groups, W width, R rank of the step projection.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import bdam_fast
from bdam_fast import _checks
from bdam_fast.integrations.transformers.patch import patch_transformers, unpatch_transformers
from bdam_fast.ops.causal_conv1d_update import op as conv_update

__all__ = [
    "causal_conv1d_fn",
    "causal_conv1d_update",
    "mamba_inner_fn",
    "patch_transformers",
    "selective_scan_fn",
    "selective_state_update",
    "unpatch_transformers",
]


def selective_scan_fn(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
) -> Any:
    """`bdam_fast.selective_scan`: out (B, D, L), or (out, last_state (B, D, N)); the last state has a gradient too.

    Raises:
        TypeError: A is complex; otherwise as `bdam_fast.selective_scan`.
    """
    _refuse_complex("selective_scan_fn", A)
    return bdam_fast.selective_scan(u, delta, A, B, C, D, z, delta_bias, delta_softplus, return_last_state)


def mamba_inner_fn(
    xz: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    x_proj_weight: Tensor,
    delta_proj_weight: Tensor,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    A: Tensor,
    B: Tensor | None = None,
    C: Tensor | None = None,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    B_proj_bias: Tensor | None = None,
    C_proj_bias: Tensor | None = None,
    delta_softplus: bool = True,
    checkpoint_lvl: int = 1,
    b_rms_weight: Tensor | None = None,
    c_rms_weight: Tensor | None = None,
    dt_rms_weight: Tensor | None = None,
    b_c_dt_rms_eps: float = 1e-6,
) -> Tensor:
    """The Mamba block between its input projection and its result: convolution, projections, scan, output projection.

    Args:
        xz: (B, 2 D, L), the inputs of the convolution and the gate.
        conv1d_weight, conv1d_bias: (D, 1, W), (D,).
        x_proj_weight, delta_proj_weight, out_proj_weight: (R + 2 N, D), (D, R), (d_model, D).
        A, D, delta_bias: (D, N), (D,), (D,).
        B, C: constant (D, N) or per step (B, 1, N, L); by default projected from the convolution's output.
        B_proj_bias, C_proj_bias: (N,), added to a projected B or C.
        checkpoint_lvl: 0 or 1. In the existing package 1 computes the convolution again in the backward; here both keep
            it, and the results are the same.
        b_rms_weight, c_rms_weight, dt_rms_weight: (N,), (N,), (D,): B, C and the projected step are divided by their root
            mean square over states, states and channels (plus b_c_dt_rms_eps) and multiplied by these.

    Returns:
        (B, L, d_model).

    Raises:
        TypeError: A is complex.
        ValueError: another checkpoint_lvl, a norm of a constant B or C, or a wrong shape.
    """
    _refuse_complex("mamba_inner_fn", A)
    if checkpoint_lvl not in (0, 1):
        raise ValueError(f"mamba_inner_fn: checkpoint_lvl must be 0 or 1, got {checkpoint_lvl!r}")
    states, rank = A.shape[1], delta_proj_weight.shape[1]
    x, z = xz.chunk(2, dim=1)
    x = bdam_fast.causal_conv1d(x, conv1d_weight.squeeze(1), conv1d_bias, "silu")
    projected = F.linear(x.transpose(1, 2), x_proj_weight)  # (B, L, R + 2 N)
    delta = F.linear(projected[..., :rank], delta_proj_weight)
    if dt_rms_weight is not None:
        delta = _rms_norm(delta, dt_rms_weight, b_c_dt_rms_eps)
    B = _projection("B", B, projected[..., rank : rank + states], B_proj_bias, b_rms_weight, b_c_dt_rms_eps)
    C = _projection("C", C, projected[..., -states:], C_proj_bias, c_rms_weight, b_c_dt_rms_eps)
    y = bdam_fast.selective_scan(x, delta.transpose(1, 2), A, B, C, D, z, delta_bias, delta_softplus)
    bias = None if out_proj_bias is None else out_proj_bias.to(out_proj_weight.dtype)
    return F.linear(y.transpose(1, 2), out_proj_weight, bias)


def selective_state_update(
    state: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    state_batch_indices: Tensor | None = None,
) -> Tensor:
    """`bdam_fast.selective_state_update`, also with heads and with the states of a batch chosen by index.

    Args:
        state: (B, D, N), or with H heads (B, H, D, N), heads and channels adjacent; updated in place.
        x, dt, z: (B, D) or (B, H, D).
        A, D, dt_bias: (D, N), (D,), (D,), or with H in front.
        B, C: (B, N) or (B, G, N) with G dividing H (dividing D without heads).
        state_batch_indices: (B,) int32, the row of `state` that belongs to each item of x; no row twice.

    Returns:
        out, x's shape and dtype.

    Raises:
        ValueError: a wrong shape, heads that lie apart in memory, or an index out of range.
    """
    op = "selective_state_update"
    if state_batch_indices is not None:
        rows = _rows(op, "state_batch_indices", state_batch_indices, x.shape[0], state.shape[0])
        chosen = state[rows]
        out = selective_state_update(chosen, x, dt, A, B, C, D, z, dt_bias, dt_softplus)
        state[rows] = chosen
        return out
    if state.dim() != 4:
        return bdam_fast.selective_state_update(state, x, dt, A, B, C, D, z, dt_bias, dt_softplus)
    heads = state.shape[1]
    if heads > 1 and state.stride(1) != state.shape[2] * state.stride(2):
        raise ValueError(f"{op}: state must have adjacent heads and channels, got strides {tuple(state.stride())}")
    for name, value in (("B", B), ("C", C)):
        if value.dim() == 3 and heads % max(value.shape[1], 1):
            shape = _checks.shape_text(value.shape)
            raise ValueError(f"{op}: {name} must have groups that divide the {heads} heads, got shape {shape}")
    state = state.view(state.shape[0], -1, state.shape[3])
    D, z, dt_bias = (None if t is None else t.flatten(-2) for t in (D, z, dt_bias))
    out = bdam_fast.selective_state_update(
        state, x.flatten(1), dt.flatten(1), A.flatten(0, 1), B, C, D, z, dt_bias, dt_softplus
    )
    return out.view(x.shape)


def causal_conv1d_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    seq_idx: Tensor | None = None,
    initial_states: Tensor | None = None,
    return_final_states: bool = False,
    final_states_out: Tensor | None = None,
    activation: str | None = None,
) -> Any:
    """`bdam_fast.causal_conv1d`: out (B, D, L), or (out, final_states (B, D, W - 1) in x's dtype).

    Any memory order, and states together with `seq_idx`, which the existing package refuses. `final_states_out` is
    written to and returned.

    Raises:
        ValueError: `final_states_out` without `return_final_states`; otherwise as `bdam_fast.causal_conv1d`.
    """
    if final_states_out is not None and not return_final_states:
        raise ValueError("causal_conv1d_fn: final_states_out must come with return_final_states=True, got False")
    out = bdam_fast.causal_conv1d(
        *(x, weight, bias, activation),
        initial_states=initial_states,
        return_final_states=return_final_states,
        seq_idx=seq_idx,
    )
    if not return_final_states:
        return out
    out, final = out
    return out, final.to(x.dtype) if final_states_out is None else final_states_out.copy_(final)


def causal_conv1d_update(
    x: Tensor,
    conv_state: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    cache_seqlens: Tensor | None = None,
    conv_state_indices: Tensor | None = None,
) -> Tensor:
    """`bdam_fast.causal_conv1d_update`, also with a circular state and with the states of a batch chosen by index.

    Args:
        x: (B, D) or (B, D, L).
        conv_state: (B, D, S), S at least W - 1; updated in place.
        cache_seqlens: (B,) int32, the steps seen so far: entry t modulo S of the state holds step t, nothing is moved, and
            L is at most S.
        conv_state_indices: (B,) int32, the row of `conv_state` that belongs to each item of x; no row twice.

    Returns:
        out, x's shape and dtype.

    Raises:
        ValueError: a wrong shape, more steps than a circular state holds, or an index out of range.
    """
    op = "causal_conv1d_update"
    if conv_state_indices is not None:
        rows = _rows(op, "conv_state_indices", conv_state_indices, x.shape[0], conv_state.shape[0])
        chosen = conv_state[rows]
        out = causal_conv1d_update(x, chosen, weight, bias, activation, cache_seqlens)
        conv_state[rows] = chosen
        return out
    if cache_seqlens is None:
        return bdam_fast.causal_conv1d_update(x, conv_state, weight, bias, activation)
    conv_update.check(x, conv_state, weight, bias)
    _check_index(op, "cache_seqlens", cache_seqlens, x.shape[0])
    entries, steps = conv_state.shape[2], x.unsqueeze(-1) if x.dim() == 2 else x
    if steps.shape[2] > entries:
        raise ValueError(f"{op}: x must have at most S = {entries} steps with cache_seqlens, got {steps.shape[2]}")

    def places(first: int, end: int) -> Tensor:
        steps_seen = cache_seqlens.long()[:, None] + torch.arange(first, end, device=x.device)
        return (steps_seen % entries)[:, None].expand(-1, x.shape[1], -1)

    window = conv_state.gather(2, places(1 - weight.shape[1], 0))
    out = bdam_fast.causal_conv1d(steps, weight, bias, activation, initial_states=window)
    conv_state.scatter_(2, places(0, steps.shape[2]), steps.to(conv_state.dtype))
    return out.squeeze(-1) if x.dim() == 2 else out


def _refuse_complex(op: str, A: Tensor) -> None:
    if A.is_complex():
        raise TypeError(f"{op}: A must be real, got {A.dtype}; complex states are not supported")


def _projection(
    name: str, given: Tensor | None, projected: Tensor, bias: Tensor | None, rms_weight: Tensor | None, eps: float
) -> Tensor:
    """B or C of `mamba_inner_fn` as the scan takes it; `projected` is (B, L, N)."""
    if given is not None:
        if given.dim() == 2 and rms_weight is not None:
            raise ValueError(f"mamba_inner_fn: {name.lower()}_rms_weight must come with a {name} per step, got (D, N)")
        return given if rms_weight is None else _rms_norm(given.mT, rms_weight, eps).mT
    if bias is not None:
        projected = projected + bias.to(projected.dtype)
    return (projected if rms_weight is None else _rms_norm(projected, rms_weight, eps)).transpose(1, 2)


def _rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return F.rms_norm(x.float(), weight.shape, weight.float(), eps).to(x.dtype)


def _check_index(op: str, name: str, value: Tensor, batch: int) -> None:
    if value.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"{op}: {name} must be int32 or int64, got {value.dtype}")
    _checks.check_shape(op, name, value, (batch,))


def _rows(op: str, name: str, indices: Tensor, batch: int, count: int) -> Tensor:
    """`indices` (B,) as int64, each a row of the state."""
    _check_index(op, name, indices, batch)
    if not torch.compiler.is_compiling() and batch > 0 and not 0 <= indices.min() <= indices.max() < count:
        raise ValueError(f"{op}: {name} must lie in [0, {count}), got {indices.min().item()} to {indices.max().item()}")
    return indices.long()
