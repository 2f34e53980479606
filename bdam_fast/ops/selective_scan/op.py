"""selective_scan: the public function, its checks, and the operator's fake and autograd formulas.

B batch, L length, D channels, N states, G groups of channels that share B and C.
"""

from typing import Any

import torch
from torch import Tensor

from ... import _autograd, _backend, _checks, _operators
from . import fake, saving
from .reference import selective_scan_reference

OP = "selective_scan"
MAX_STATES = 256


def selective_scan(
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
    *,
    initial_state: Tensor | None = None,
    reverse: bool = False,
    seq_idx: Tensor | None = None,
    backend: str = "auto",
) -> Any:  # a union would make every caller narrow it
    """The selective state space recurrence of Mamba-1 (Gu and Dao 2023, equations 2 and 4).

    dt_t = softplus(delta_t + delta_bias) (linear above 20; without `delta_softplus` no softplus),
    h_t = exp(dt_t A) h_{t-1} + dt_t B_t u_t,  y_t = <C_t, h_t> + D u_t,  out = y silu(z).

    Args:
        u, delta, z: (B, D, L) with any strides; a transposed (B, L, D) tensor is read and written without a copy.
        A: (D, N), N at most 256. Real; complex on the reference alone, where B, C and the states may be complex too and
            y_t is twice the real part of <C_t, h_t> (without conjugation): half of the states of a conjugate pair.
        B, C: (B, N, L), (B, G, N, L) with G dividing D, or constant (D, N).
        D, delta_bias: (D,).
        return_last_state: also return the state after the last processed step.
        initial_state: (B, D, N), the state before the first processed step; zero by default.
        reverse: process the steps from the last to the first; the last state is then the one after step 0.
        seq_idx: (B, L) int32 (or int64), the index of the packed sequence that each step belongs to. The state is reset where it
            differs from that of the step processed before; steps with a negative index are padding: they are skipped,
            their output is zero and nothing in them has a gradient or is read into one.
        backend: `auto`, `cuda`, `triton`, `cpu` or `reference`.

    Every floating tensor may be float32, bfloat16, float16 or float64, each its own; sums and states are float32
    (float64 if u is float64). All of them have gradients, through the last state too. Results are the same bits at
    every call and for any number of threads.

    Returns:
        out (B, D, L) in u's dtype and memory order, or (out, last_state) with last_state (B, D, N) in float32 or
        float64.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: a wrong shape, a tensor on another device, or an unknown backend.
        RuntimeError: a backend that is not available.

    Second derivatives, forward-mode AD and `torch.func` transforms run on the reference, which says so once.
    """
    if not isinstance(u, Tensor):
        _checks.check_tensor(OP, "u", u)
    seq_idx = _checks.narrow_index(seq_idx)
    if isinstance(A, Tensor) and A.is_complex():
        return _complex_scan(
            u,
            delta,
            A,
            B,
            C,
            D,
            z,
            delta_bias,
            delta_softplus,
            return_last_state,
            initial_state,
            reverse,
            seq_idx,
            backend,
        )
    chosen = _backend.resolve(OP, backend, u.device, u.dtype)
    if chosen == "reference":
        _check(u, delta, A, B, C, D, z, delta_bias, initial_state, seq_idx)
        out, last = selective_scan_reference(
            u, delta, A, B, C, D, z, delta_bias, delta_softplus, initial_state, reverse, seq_idx
        )
        return (out, last) if return_last_state else out
    tensors = (u, delta, A, B, C, D, z, delta_bias, initial_state, seq_idx)
    # States are saved where autograd follows the call, whatever the last flag says.
    results = OPERATOR.call(chosen, tensors, (delta_softplus, reverse, return_last_state, 0))
    return results[:2] if return_last_state else results[0]


def _complex_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    return_last_state: bool,
    initial_state: Tensor | None,
    reverse: bool,
    seq_idx: Tensor | None,
    backend: str,
) -> Any:
    """The scan with a complex A, which the reference alone has."""
    if backend != "reference":
        raise TypeError(f'{OP}: a complex A needs backend="reference", got backend="{backend}"')
    real = [t.real if isinstance(t, Tensor) and t.is_complex() else t for t in (A, B, C, initial_state)]
    _check(u, delta, *real[:3], D, z, delta_bias, real[3], seq_idx)  # type: ignore[arg-type]
    out, last = selective_scan_reference(
        u, delta, A, B, C, D, z, delta_bias, delta_softplus, initial_state, reverse, seq_idx
    )
    return (out, last) if return_last_state else out


def _check(
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
    *flags: bool,
) -> None:
    _checks.check_tensor(OP, "u", u)
    device = u.device
    for name, value in (("delta", delta), ("A", A), ("B", B), ("C", C)):
        _checks.check_tensor(OP, name, value, device)
    shape = u.shape
    _checks.check_dim(OP, "u", u, "(B, D, L)", 3)
    _checks.check_dim(OP, "A", A, "(D, N)", 2)
    batch, channels, length = shape
    states = A.shape[1]
    if channels < 1:
        raise ValueError(f"{OP}: u must have at least one channel, got shape {_checks.shape_text(shape)}")
    if not 1 <= states <= MAX_STATES:
        raise ValueError(f"{OP}: A must have 1 to {MAX_STATES} states, got shape {_checks.shape_text(A.shape)}")
    _checks.check_order(OP, "u", u, A.shape[0], "A")
    _checks.check_shape(OP, "delta", delta, shape, "u")
    _checks.check_shape(OP, "A", A, (channels, states))
    groups = [_check_projection(name, value, shape, states) for name, value in (("B", B), ("C", C))]
    if 1 not in groups and groups[0] != groups[1]:
        raise ValueError(f"{OP}: B and C must have as many groups, got {groups[0]} and {groups[1]}")
    for name, vector in (("D", D), ("delta_bias", delta_bias)):
        _checks.check_optional(OP, name, vector, (channels,), device)
    _checks.check_optional(OP, "z", z, shape, device, "u")
    _checks.check_optional(OP, "initial_state", initial_state, (batch, channels, states), device)
    if seq_idx is not None:
        _checks.check_seq_idx(OP, seq_idx, (batch, length), device)


def _check_projection(name: str, value: Tensor, shape: torch.Size, states: int) -> int:
    """Checks B or C and returns its number of groups."""
    batch, channels, length = shape
    _checks.check_dim(OP, name, value, "(D, N), (B, N, L) or (B, G, N, L)", 2, 3, 4)
    if value.dim() == 2:
        _checks.check_shape(OP, name, value, (channels, states))
        return 1
    if value.dim() == 3:
        _checks.check_shape(OP, name, value, (batch, states, length))
        return 1
    groups = value.shape[1]
    if groups < 1 or channels % groups:
        raise ValueError(
            f"{OP}: {name} must have a number of groups that divides the {channels} channels, "
            f"got shape {_checks.shape_text(value.shape)}"
        )
    _checks.check_shape(OP, name, value, (batch, groups, states, length))
    return groups


def _check_backward(dout: Tensor, dlast_state: Tensor | None, *others: Any) -> None:
    *tensors, checkpoint, _, _ = others
    _check(*tensors)
    u, _, A, B, C = tensors[:5]
    _checks.check_tensor(OP, "dout", dout, u.device)
    _checks.check_shape(OP, "dout", dout, u.shape, "u")
    _checks.check_optional(OP, "dlast_state", dlast_state, (*u.shape[:2], A.shape[1]), u.device)
    saved = fake.saved_shape(_operators.NAMESPACES["triton"], u, A, B, C)
    _checks.check_saved(OP, "checkpoint", checkpoint, saved, u)


class _SelectiveScan(torch.autograd.Function):
    """`apply((namespace, raw, delta_softplus, reverse, return_last_state, save_states), *ten tensors)`, as `Operator` records
    it; 0 for save_states leaves it to `saving.every`."""

    @staticmethod
    def forward(ctx: Any, options: tuple[Any, ...], *tensors: Any) -> Any:
        namespace, raw, *flags, save = options
        save = save or saving.every(namespace, flags[0], tensors)
        forward = _operators.raw(namespace, "selective_scan_forward")
        out, last, checkpoint = _autograd.below_autograd(forward, (*tensors, *flags, save))
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors, checkpoint)
        ctx.options = options
        return_last = flags[2]
        if raw:
            ctx.mark_non_differentiable(*((checkpoint,) if return_last else (last, checkpoint)))
            return out, last, checkpoint
        return (out, last) if return_last else (out,)

    @staticmethod
    def backward(ctx: Any, dout: Tensor | None, dlast: Tensor | None = None, *_: Any) -> Any:
        *tensors, checkpoint = ctx.saved_tensors
        if dout is None and dlast is None:
            return (None,) * 11
        if dout is None:
            dout = torch.zeros_like(tensors[0])
        namespace, _, softplus, reverse, *_ = ctx.options
        raw = _operators.raw(namespace, "selective_scan_backward")
        needed = ctx.needs_input_grad
        if torch.is_grad_enabled():
            flags = (softplus, reverse, True, False)
            call = _autograd.recorded_backward(
                OP, lambda *own: _reference(*own, *flags), tensors, needed[1:], (dout, dlast)
            )
            return (None, *call)
        grads = _autograd.below_autograd(raw, (dout, dlast, *tensors, checkpoint, softplus, reverse))
        return (None, *[g if need else None for g, need in zip(grads, needed[1:10], strict=True)], None)


def _reference(*arguments: Any) -> tuple[Tensor, Tensor]:
    """The out and the last state of the raw operator's arguments."""
    u, delta, A, B, C, D, z, bias, initial_state, seq_idx, softplus, reverse, *_ = arguments
    return selective_scan_reference(u, delta, A, B, C, D, z, bias, softplus, initial_state, reverse, seq_idx)


OPERATOR = _operators.Operator(
    OP,
    _SelectiveScan.apply,
    _operators.Raw(fake.forward, _check, by_namespace=True),
    _operators.Raw(fake.backward, _check_backward),
    reference=_reference,
)
