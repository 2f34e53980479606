"""selective_state_update: one step of the selective scan, the state updated in place.

B batch, D channels, N states, G groups of channels that share B and C.
"""

from typing import Any

import torch
from torch import Tensor

from ... import _autograd, _backend, _checks, _operators
from ..selective_scan.op import MAX_STATES, selective_scan
from .reference import selective_state_update_reference

OP = "selective_state_update"


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
    *,
    backend: str = "auto",
) -> Tensor:
    """One step of `selective_scan` (Gu and Dao 2023, equations 2 and 4) for decoding; `state` is updated in place.

    dt = softplus(dt + dt_bias) (linear above 20; without `dt_softplus` no softplus),
    state = exp(dt A) state + dt B x,  y = <C, state> + D x,  out = y silu(z).

    Args:
        state: (B, D, N), read and written; not expanded, and sharing memory with no other argument.
        x, dt, z: (B, D).
        A: (D, N), real, N at most 256.
        B, C: (B, N), or (B, G, N) with G dividing D.
        D, dt_bias: (D,).
        dt_softplus: whether the step goes through softplus.
        backend: `auto`, `cuda`, `triton`, `cpu` or `reference`.

    Every tensor may be float32, bfloat16, float16 or float64 with any strides, each its own; the computation is in
    float32 (float64 if x is float64), and the state is rounded to its own dtype when it is stored. Where a gradient is
    wanted the step goes through `selective_scan` and the new state is copied into `state`, so that both results carry
    it. A refused call leaves the state as it was. Results are the same bits at every call and for any number of threads.

    Returns:
        out (B, D) in x's dtype.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: a wrong shape, an expanded state, a tensor on another device, or an unknown backend.
        RuntimeError: a backend that is not available; a state that is a leaf which requires grad, in grad mode.

    Second derivatives, forward-mode AD and `torch.func` transforms run on the reference, which says so once.
    """
    if not isinstance(state, Tensor):
        _checks.check_tensor(OP, "state", state)
    tensors = (state, x, dt, A, B, C, D, z, dt_bias)
    chosen = _backend.resolve(OP, backend, state.device, x.dtype if isinstance(x, Tensor) else None)
    if chosen == "reference":
        _check(*tensors)
        return _reference(*tensors, dt_softplus)
    return OPERATOR.call(chosen, tensors, (dt_softplus,))


def _differentiable(options: tuple[str, bool, bool], *tensors: Any) -> Tensor:
    """The step as a scan over one step, whose last state is copied into the state; the scan keeps a copy of the old."""
    namespace, _, dt_softplus = options
    state, x, dt, A, B, C, D, z, dt_bias = tensors
    _checks.check_not_leaf(OP, "state", state)
    with _autograd.full_precision(state.device):
        out, after = selective_scan(
            x.unsqueeze(-1),
            dt.unsqueeze(-1),
            A,
            B.unsqueeze(-1),
            C.unsqueeze(-1),
            D,
            None if z is None else z.unsqueeze(-1),
            dt_bias,
            dt_softplus,
            True,
            initial_state=state.clone(),
            backend=_operators.backend_of(namespace, state.device),
        )
        state.copy_(after)
        return out.squeeze(-1)


def _reference(*arguments: Any) -> Tensor:
    """The step in plain PyTorch; the state is overwritten."""
    state = arguments[0]
    _checks.check_not_leaf(OP, "state", state)
    out, after = selective_state_update_reference(*arguments)
    state.copy_(after)
    return out


def _check(
    state: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    *flags: bool,
) -> None:
    _checks.check_tensor(OP, "state", state)
    device = state.device
    for name, value in (("x", x), ("dt", dt), ("A", A), ("B", B), ("C", C)):
        _checks.check_tensor(OP, name, value, device)
    _checks.check_dim(OP, "state", state, "(B, D, N)", 3)
    batch, channels, states = state.shape
    if channels < 1:
        raise ValueError(f"{OP}: state must have at least one channel, got shape {_checks.shape_text(state.shape)}")
    if not 1 <= states <= MAX_STATES:
        raise ValueError(f"{OP}: state must have 1 to {MAX_STATES} states, got shape {_checks.shape_text(state.shape)}")
    _checks.check_not_expanded(OP, "state", state)
    if x.dim() == 3 and x.shape[1] == 1:
        shape = _checks.shape_text(x.shape)
        raise ValueError(
            f"{OP}: x must have shape {_checks.shape_text((batch, channels))}, one step, got {shape}; pass x[:, 0]"
        )
    _checks.check_shape(OP, "x", x, (batch, channels))
    _checks.check_shape(OP, "dt", dt, (batch, channels), "x")
    _checks.check_shape(OP, "A", A, (channels, states))
    groups = [_check_projection(name, value, state.shape) for name, value in (("B", B), ("C", C))]
    if 1 not in groups and groups[0] != groups[1]:
        raise ValueError(f"{OP}: B and C must have as many groups, got {groups[0]} and {groups[1]}")
    for name, vector in (("D", D), ("dt_bias", dt_bias)):
        _checks.check_optional(OP, name, vector, (channels,), device)
    _checks.check_optional(OP, "z", z, (batch, channels), device, "x")


def _check_projection(name: str, value: Tensor, shape: torch.Size) -> int:
    """Checks B or C and returns its number of groups."""
    batch, channels, states = shape
    _checks.check_dim(OP, name, value, "(B, N) or (B, G, N)", 2, 3)
    if value.dim() == 2:
        _checks.check_shape(OP, name, value, (batch, states))
        return 1
    groups = value.shape[1]
    if groups < 1 or channels % groups:
        raise ValueError(
            f"{OP}: {name} must have a number of groups that divides the {channels} channels, "
            f"got shape {_checks.shape_text(value.shape)}"
        )
    _checks.check_shape(OP, name, value, (batch, groups, states))
    return groups


def _fake(
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
    _checks.check_devices(OP, state, (x, dt, A, B, C, D, z, dt_bias))
    return torch.empty_like(x)


OPERATOR = _operators.Operator(OP, _differentiable, _operators.Raw(_fake, _check), reference=_reference, writes="state")
