"""causal_conv1d: the public function, its checks, and the operator's fake and autograd formulas.

B batch, D channels, L length, W width (taps).
"""

from typing import Any

import torch
from torch import Tensor

from ... import _autograd, _backend, _checks, _operators
from .reference import causal_conv1d_reference

OP = "causal_conv1d"
MAX_WIDTH = 8


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    *,
    initial_states: Tensor | None = None,
    return_final_states: bool = False,
    reverse: bool = False,
    seq_idx: Tensor | None = None,
    backend: str = "auto",
) -> Any:  # a union would make every caller narrow it
    """Causal depthwise convolution along L, the filter in front of the selective scan (Gu and Dao 2023, figure 3).

    s_t = bias + sum_j weight[:, j] x_{t-W+1+j};  out = s, or silu(s) = s sigmoid(s).

    Args:
        x: (B, D, L) with any strides; a transposed (B, L, D) tensor is read and written without a copy.
        weight: (D, W), W from 1 to 8; the last tap is that of the step itself.
        bias: (D,).
        activation: None, `"silu"`, or `"swish"` (the same).
        initial_states: (B, D, W - 1), the inputs before the first processed step, the oldest first; zero by default.
        return_final_states: also return the last W - 1 processed inputs, which continue the sequence in a next call.
        reverse: process the steps from the last to the first: step t then sees t, t + 1, …
        seq_idx: (B, L) int32 (or int64), the index of the packed sequence that each step belongs to. The window is emptied where
            it differs from that of the step processed before; steps with a negative index are padding: they are
            skipped, their output is zero and nothing in them has a gradient or is read into one.
        backend: `auto`, `cuda`, `triton`, `cpu` or `reference`.

    Every floating tensor may be float32, bfloat16, float16 or float64, each its own; sums and states are float32
    (float64 if x is float64). All of them have gradients, through the final states too. Results are the same bits at
    every call and for any number of threads.

    Returns:
        out (B, D, L) in x's dtype and memory order, or (out, final_states) with final_states (B, D, W - 1) in float32
        or float64.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: a wrong shape, an unknown activation or backend, or a tensor on another device.
        RuntimeError: a backend that is not available.

    Second derivatives, forward-mode AD and `torch.func` transforms run on the reference, which says so once.
    """
    if not isinstance(x, Tensor):
        _checks.check_tensor(OP, "x", x)
    silu = wants_silu(OP, activation)
    seq_idx = _checks.narrow_index(seq_idx)
    tensors = (x, weight, bias, initial_states, seq_idx)
    chosen = _backend.resolve(OP, backend, x.device, x.dtype)
    if chosen == "reference":
        _check(*tensors)
        out, final = causal_conv1d_reference(x, weight, bias, silu, initial_states, reverse, seq_idx)
        return (out, final) if return_final_states else out
    results = OPERATOR.call(chosen, tensors, (silu, reverse, return_final_states))
    return results if return_final_states else results[0]


def wants_silu(op: str, activation: object) -> bool:
    """True if `activation` is SiLU.

    Raises:
        TypeError, ValueError: it is neither None nor one of SiLU's two names.
    """
    if activation is None:
        return False
    if not isinstance(activation, str):
        raise TypeError(f"{op}: activation must be None or a string, got {type(activation).__name__}")
    if activation not in ("silu", "swish"):
        raise ValueError(f'{op}: activation must be None, "silu" or "swish", got {activation!r}')
    return True


def _check(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    initial_states: Tensor | None,
    seq_idx: Tensor | None,
    *flags: bool,
) -> None:
    _checks.check_tensor(OP, "x", x)
    device = x.device
    _checks.check_tensor(OP, "weight", weight, device)
    shape = x.shape
    _checks.check_dim(OP, "x", x, "(B, D, L)", 3)
    _checks.check_dim(OP, "weight", weight, "(D, W)", 2)
    batch, channels, length = shape
    width = weight.shape[1]
    if channels < 1:
        raise ValueError(f"{OP}: x must have at least one channel, got shape {_checks.shape_text(shape)}")
    if not 1 <= width <= MAX_WIDTH:
        raise ValueError(f"{OP}: weight must have 1 to {MAX_WIDTH} taps, got shape {_checks.shape_text(weight.shape)}")
    _checks.check_order(OP, "x", x, weight.shape[0], "weight")
    _checks.check_shape(OP, "weight", weight, (channels, width))
    _checks.check_optional(OP, "bias", bias, (channels,), device)
    _checks.check_optional(OP, "initial_states", initial_states, (batch, channels, width - 1), device)
    if seq_idx is not None:
        _checks.check_seq_idx(OP, seq_idx, (batch, length), device)


def _check_backward(
    dout: Tensor, dfinal_states: Tensor | None, x: Tensor, weight: Tensor, *others: Tensor | bool | None
) -> None:
    _check(x, weight, *others)  # type: ignore[arg-type]
    _checks.check_tensor(OP, "dout", dout, x.device)
    _checks.check_shape(OP, "dout", dout, x.shape, "x")
    state_shape = (x.shape[0], x.shape[1], weight.shape[1] - 1)
    _checks.check_optional(OP, "dfinal_states", dfinal_states, state_shape, x.device)


class _CausalConv1d(torch.autograd.Function):
    """`apply((namespace, raw, silu, reverse, return_final_states), *five tensors)`, as `Operator` records a call."""

    @staticmethod
    def forward(ctx: Any, options: tuple[str, bool, bool, bool, bool], *tensors: Any) -> Any:
        namespace, raw, *flags = options
        forward = _operators.raw(namespace, "causal_conv1d_forward")
        out, final = _autograd.below_autograd(forward, (*tensors, *flags))
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors)
        ctx.options = options
        return_final = flags[2]
        if raw and not return_final:
            ctx.mark_non_differentiable(final)
        return (out, final) if raw or return_final else (out,)

    @staticmethod
    def backward(ctx: Any, dout: Tensor | None, dfinal: Tensor | None = None) -> Any:
        tensors = ctx.saved_tensors
        if dout is None and dfinal is None:
            return (None,) * 6
        if dout is None:
            dout = torch.zeros_like(tensors[0])
        namespace, _, silu, reverse, _ = ctx.options
        raw = _operators.raw(namespace, "causal_conv1d_backward")
        needed = ctx.needs_input_grad
        if torch.is_grad_enabled():
            flags = (silu, reverse, True)
            call = _autograd.recorded_backward(
                OP, lambda *own: _reference(*own, *flags), tensors, needed[1:], (dout, dfinal)
            )
            return (None, *call)
        grads = _autograd.below_autograd(raw, (dout, dfinal, *tensors, silu, reverse))
        return (None, *(g if need else None for g, need in zip(grads, needed[1:5], strict=True)), None)


def _fake_forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    initial_states: Tensor | None,
    seq_idx: Tensor | None,
    silu: bool,
    reverse: bool,
    return_final_states: bool,
) -> tuple[Tensor, Tensor]:
    _checks.check_devices(OP, x, (weight, bias, initial_states, seq_idx))
    state_type = _checks.sums_dtype(x)
    final_shape = (x.shape[0], x.shape[1], weight.shape[1] - 1) if return_final_states else (0,)
    return torch.empty_like(x), x.new_empty(final_shape, dtype=state_type)


def _fake_backward(
    dout: Tensor,
    dfinal_states: Tensor | None,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    initial_states: Tensor | None,
    seq_idx: Tensor | None,
    silu: bool,
    reverse: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    _checks.check_devices(OP, x, (dout, dfinal_states, weight, bias, initial_states, seq_idx))
    dbias, dinitial = (x.new_empty((0,)) if t is None else torch.empty_like(t) for t in (bias, initial_states))
    return torch.empty_like(x), torch.empty_like(weight), dbias, dinitial


def _reference(*arguments: Any) -> tuple[Tensor, Tensor]:
    """The out and the final states of the raw operator's arguments."""
    x, weight, bias, initial_states, seq_idx, silu, reverse, _ = arguments
    return causal_conv1d_reference(x, weight, bias, silu, initial_states, reverse, seq_idx)


OPERATOR = _operators.Operator(
    OP,
    _CausalConv1d.apply,
    _operators.Raw(_fake_forward, _check),
    _operators.Raw(_fake_backward, _check_backward),
    reference=_reference,
)
