"""causal_conv1d_update: the causal convolution of the steps that follow a state, which is updated in place.

B batch, D channels, L length, S entries of the state, W width (taps).
"""

import torch
from torch import Tensor

from ... import _autograd, _backend, _checks, _operators
from ..causal_conv1d.op import MAX_WIDTH, causal_conv1d, wants_silu
from .reference import causal_conv1d_update_reference

OP = "causal_conv1d_update"


def causal_conv1d_update(
    x: Tensor,
    conv_state: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    *,
    backend: str = "auto",
) -> Tensor:
    """`causal_conv1d` of the steps that follow `conv_state`, for decoding; `conv_state` is updated in place.

    With q = conv_state followed by x:  s_t = bias + sum_j weight[:, j] q_{S+t-W+1+j};  out = s, or silu(s) = s
    sigmoid(s);  conv_state becomes the last S entries of q.

    Args:
        x: (B, D), one step, or (B, D, L).
        conv_state: (B, D, S) with S >= W - 1, the inputs before x, the oldest first; read and written; not expanded, and
            sharing memory with no other argument.
        weight: (D, W), W from 1 to 8; the last tap is that of the step itself.
        bias: (D,).
        activation: None, `"silu"`, or `"swish"` (the same).
        backend: `auto`, `cuda`, `triton`, `cpu` or `reference`.

    Every tensor may be float32, bfloat16, float16 or float64 with any strides, each its own; the computation is in
    float32 (float64 if x is float64), and x is rounded to the state's dtype when it is stored. Where a gradient is wanted
    the steps go through `causal_conv1d` and the new state is copied into `conv_state`, so that both results carry it. A
    refused call leaves the state as it was. Results are the same bits at every call and for any number of threads.

    Returns:
        out in x's shape and dtype.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: a wrong shape, an expanded state, an unknown activation or backend, or a tensor on another device.
        RuntimeError: a backend that is not available; a state that is a leaf which requires grad, in grad mode.

    Second derivatives, forward-mode AD and `torch.func` transforms run on the reference, which says so once.
    """
    if not isinstance(x, Tensor):
        _checks.check_tensor(OP, "x", x)
    silu = wants_silu(OP, activation)
    tensors = (x, conv_state, weight, bias)
    chosen = _backend.resolve(OP, backend, x.device, x.dtype)
    if chosen == "reference":
        check(*tensors)
        return _reference(*tensors, silu)
    return OPERATOR.call(chosen, tensors, (silu,))


def _differentiable(
    options: tuple[str, bool, bool], x: Tensor, conv_state: Tensor, weight: Tensor, bias: Tensor | None
) -> Tensor:
    """The steps as a convolution with initial states; a copy of the old state is what its gradient will read."""
    namespace, _, silu = options
    backend = _operators.backend_of(namespace, x.device)
    _checks.check_not_leaf(OP, "conv_state", conv_state)
    steps = x.unsqueeze(-1) if x.dim() == 2 else x
    entries = conv_state.shape[2]
    before = conv_state.clone()
    window = before[:, :, entries - weight.shape[1] + 1 :]
    with _autograd.full_precision(x.device):  # else it casts what is concatenated, or refuses it
        out = causal_conv1d(steps, weight, bias, "silu" if silu else None, initial_states=window, backend=backend)
        conv_state.copy_(torch.cat([before, steps.to(before.dtype)], 2)[:, :, steps.shape[2] :])
    return out.squeeze(-1) if x.dim() == 2 else out


def _reference(x: Tensor, conv_state: Tensor, weight: Tensor, bias: Tensor | None, silu: bool) -> Tensor:
    """The steps in plain PyTorch; the state is overwritten."""
    _checks.check_not_leaf(OP, "conv_state", conv_state)
    out, after = causal_conv1d_update_reference(x, conv_state, weight, bias, silu)
    conv_state.copy_(after)
    return out


def check(x: Tensor, conv_state: Tensor, weight: Tensor, bias: Tensor | None, *flags: bool) -> None:
    """Raises where an argument has a wrong type, dtype, shape or device."""
    _checks.check_tensor(OP, "x", x)
    device = x.device
    _checks.check_tensor(OP, "conv_state", conv_state, device)
    _checks.check_tensor(OP, "weight", weight, device)
    _checks.check_dim(OP, "x", x, "(B, D) or (B, D, L)", 2, 3)
    _checks.check_dim(OP, "conv_state", conv_state, "(B, D, S)", 3)
    _checks.check_dim(OP, "weight", weight, "(D, W)", 2)
    batch, channels = x.shape[:2]
    width, entries = weight.shape[1], conv_state.shape[2]
    if channels < 1:
        raise ValueError(f"{OP}: x must have at least one channel, got shape {_checks.shape_text(x.shape)}")
    if not 1 <= width <= MAX_WIDTH:
        raise ValueError(f"{OP}: weight must have 1 to {MAX_WIDTH} taps, got shape {_checks.shape_text(weight.shape)}")
    _checks.check_order(OP, "x", x, weight.shape[0], "weight")
    _checks.check_shape(OP, "weight", weight, (channels, width))
    _checks.check_shape(OP, "conv_state", conv_state, (batch, channels, entries))
    if entries < width - 1:
        raise ValueError(
            f"{OP}: conv_state must have at least W - 1 = {width - 1} entries, "
            f"got shape {_checks.shape_text(conv_state.shape)}"
        )
    _checks.check_not_expanded(OP, "conv_state", conv_state)
    _checks.check_optional(OP, "bias", bias, (channels,), device)


def _fake(x: Tensor, conv_state: Tensor, weight: Tensor, bias: Tensor | None, silu: bool) -> Tensor:
    _checks.check_devices(OP, x, (conv_state, weight, bias))
    return torch.empty_like(x)


OPERATOR = _operators.Operator(
    OP, _differentiable, _operators.Raw(_fake, check), reference=_reference, writes="conv_state"
)
