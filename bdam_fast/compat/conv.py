"""The functions of causal_conv1d. B batch, L length, D channels, S entries of a state, W width (taps)."""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from .. import _autograd, _checks
from ..ops.causal_conv1d.op import causal_conv1d
from ..ops.causal_conv1d_update import op as conv_update
from .arguments import takes_tensors
from .rows import at_rows, check_index, check_rows, packed, without_padding


@takes_tensors
def causal_conv1d_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    seq_idx: Tensor | None = None,
    initial_states: Tensor | None = None,
    return_final_states: bool = False,
    final_states_out: Tensor | None = None,
    activation: str | None = None,
    *,
    cu_seqlens: Tensor | None = None,
    backend: str = "auto",
) -> Any:
    """`bdam_fast.causal_conv1d`: out (B, D, L), or (out, final_states (B, D, W - 1) in x's dtype).

    Any memory order, and states together with `seq_idx`, which the existing package refuses. `final_states_out` is
    written to and returned. `cu_seqlens` (S + 1,) int32 are the ends of S sequences packed in one row.

    Raises:
        ValueError: `final_states_out` without `return_final_states`, `cu_seqlens` with more than one row or with
            `seq_idx`; otherwise as `bdam_fast.causal_conv1d`.
    """
    if final_states_out is not None and not return_final_states:
        raise ValueError("causal_conv1d_fn: final_states_out must come with return_final_states=True, got False")
    out = causal_conv1d(
        *(x, weight, bias, activation),
        initial_states=initial_states,
        return_final_states=return_final_states,
        seq_idx=packed("causal_conv1d_fn", cu_seqlens, seq_idx, x),
        backend=backend,
    )
    if not return_final_states:
        return out
    out, final = out
    return out, final.to(x.dtype) if final_states_out is None else final_states_out.copy_(final)


def causal_conv1d_ref(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    initial_states: Tensor | None = None,
    return_final_states: bool = False,
    final_states_out: Tensor | None = None,
    activation: str | None = None,
    seq_idx: Tensor | None = None,
) -> Any:
    """`causal_conv1d_fn` on the reference, its arguments in the other order that the existing package has."""
    states = (initial_states, return_final_states, final_states_out)
    return causal_conv1d_fn(x, weight, bias, seq_idx, *states, activation, backend="reference")


@takes_tensors
def causal_conv1d_update(
    x: Tensor,
    conv_state: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    cache_seqlens: Tensor | None = None,
    conv_state_indices: Tensor | None = None,
    *,
    check_indices: bool = False,
    backend: str = "auto",
) -> Tensor:
    """`bdam_fast.causal_conv1d_update`, also with a circular state and with the states of a batch chosen by index.

    Args:
        x: (B, D) or (B, D, L).
        conv_state: (B, D, S), S at least W - 1; updated in place.
        cache_seqlens: (B,) int32, the steps seen so far: entry t modulo S of the state holds step t, and nothing is moved.
        conv_state_indices: (B,) int32, the row of `conv_state` that belongs to each item of x, no row twice. An item
            with a negative index is padding: its output is zero and no state is read or written.
        check_indices: raise where a row stands twice (which waits for a GPU); without it one of the items wins.

    Returns:
        out, x's shape and dtype.

    Raises:
        ValueError: a wrong shape, or an index behind the last row.
    """
    op = "causal_conv1d_update"
    if conv_state_indices is not None:
        check_index(op, "conv_state_indices", conv_state_indices, x.shape[0])
        check_rows(op, "conv_state_indices", conv_state_indices, conv_state.shape[0], check_indices)
        (inputs,) = without_padding(conv_state_indices < 0, x)

        def step(states: Tensor) -> Tensor:
            return causal_conv1d_update(inputs, states, weight, bias, activation, cache_seqlens, backend=backend)

        return at_rows(conv_state, conv_state_indices, step)
    if cache_seqlens is None:
        return conv_update.causal_conv1d_update(x, conv_state, weight, bias, activation, backend=backend)
    conv_update.check(x, conv_state, weight, bias)
    check_index(op, "cache_seqlens", cache_seqlens, x.shape[0])
    entries, steps = conv_state.shape[2], x.unsqueeze(-1) if x.dim() == 2 else x
    length = steps.shape[2]

    def places(first: int, end: int) -> Tensor:
        steps_seen = cache_seqlens.long()[:, None] + torch.arange(first, end, device=x.device)
        return (steps_seen % entries)[:, None].expand(-1, x.shape[1], -1)

    with _autograd.full_precision(x.device):
        window = conv_state.gather(2, places(1 - weight.shape[1], 0))
        out = causal_conv1d(steps, weight, bias, activation, initial_states=window, backend=backend)
        # Of more steps than it has entries the state holds the last.
        first = max(0, length - entries)
        conv_state.scatter_(2, places(first, length), steps[:, :, first:].to(conv_state.dtype))
    return out.squeeze(-1) if x.dim() == 2 else out


@takes_tensors
def causal_conv1d_varlen_states(x: Tensor, cu_seqlens: Tensor, state_len: int) -> Tensor:
    """The last `state_len` steps of each of S packed sequences, as states to continue from: (S, D, state_len), x's dtype.

    Args:
        x: (T, D), the steps of all sequences one behind the other.
        cu_seqlens: (S + 1,) int32 or int64, ascending: where the sequences begin, and where the last one ends.
        state_len: entries of a state; those before the beginning of a short sequence are zero.

    Raises:
        TypeError, ValueError: another dtype or shape.
    """
    op = "causal_conv1d_varlen_states"
    _checks.check_dim(op, "x", x, "(T, D)", 2)
    check_index(op, "cu_seqlens", cu_seqlens, max(2, cu_seqlens.numel()))
    begin, end = cu_seqlens[:-1].long()[:, None], cu_seqlens[1:].long()[:, None]
    steps = end + torch.arange(-state_len, 0, device=x.device)  # (S, state_len)
    inside = steps >= begin
    states = x[torch.where(inside, steps, 0)] if x.shape[0] else x.new_zeros((*steps.shape, x.shape[1]))
    return states.masked_fill(~inside[..., None], 0).transpose(1, 2)


causal_conv1d_update_ref = partial(causal_conv1d_update, backend="reference")
causal_conv1d_varlen_states_ref = causal_conv1d_varlen_states
