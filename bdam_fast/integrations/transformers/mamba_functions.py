"""The functions that transformers' Mamba and FalconMamba mixers call since 5.16, on the operators."""

import functools
import importlib
from collections.abc import Callable
from types import ModuleType
from typing import Any

from torch import Tensor

from bdam_fast.integrations.transformers.mamba import SILU
from bdam_fast.ops.causal_conv1d.op import causal_conv1d
from bdam_fast.ops.causal_conv1d_update.op import causal_conv1d_update
from bdam_fast.ops.selective_scan.op import selective_scan
from bdam_fast.ops.selective_state_update.op import selective_state_update


def functions(module: ModuleType) -> dict[str, Callable[..., Any]]:
    """Replacements of the module functions, by name; each keeps the module's own for other devices."""
    ours: dict[str, Callable[..., Any]] = {
        "causal_conv1d_fn": _convolve,
        "causal_conv1d_update": _convolve_step,
        "mamba_selective_scan": _scan,
        "mamba_selective_state_update": _scan_step,
        "mamba_inner_fn": _no_shortcut,
    }
    return {name: _route(getattr(module, name, None), function) for name, function in ours.items()}


def _route(own: Any, ours: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(ours)
    def routed(first: Tensor, *args: Any, **kwargs: Any) -> Any:
        packed = kwargs.get("seq_idx") is not None or kwargs.get("cu_seqlens") is not None
        return (own if packed or first.device.type != "cpu" else ours)(first, *args, **kwargs)

    return routed


def _convolve(
    hidden_states: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str | None = None, **kwargs: Any
) -> Tensor:
    out = causal_conv1d(hidden_states, weight, bias, _fused(activation))
    return _activate(out, activation)


def _convolve_step(
    hidden_states: Tensor,
    conv_state: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
) -> Tensor:
    out = causal_conv1d_update(hidden_states, conv_state, weight, bias, _fused(activation))
    return _activate(out, activation)


def _fused(activation: str | None) -> str | None:
    """The activation, if the convolution computes it."""
    return activation if activation in SILU else None


def _activate(x: Tensor, activation: str | None) -> Tensor:
    """The activation that the convolution did not compute."""
    if activation is None or activation in SILU:
        return x
    return importlib.import_module("transformers.activations").ACT2FN[activation](x)


def _scan(
    hidden_states: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
    use_mambapy: bool = False,  # two other ways to the same result
    use_associative_scan: bool = False,
    **kwargs: Any,
) -> Any:
    return selective_scan(hidden_states, dt, A, B, C, D, z, delta_bias, delta_softplus, return_last_state)


def _scan_step(
    state: Tensor,
    hidden_states: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    z: Tensor | None = None,
    **kwargs: Any,
) -> Tensor:
    return selective_state_update(state, hidden_states, dt, A, B, C, D, z, dt_bias, dt_softplus)


def _no_shortcut(
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
    delta_softplus: bool = True,
    b_rms_weight: Tensor | None = None,
    c_rms_weight: Tensor | None = None,
    dt_rms_weight: Tensor | None = None,
    b_c_dt_rms_eps: float = 1e-6,
    **kwargs: Any,
) -> None:
    """Returns None, which sends a training mixer on to the other functions, the same two operators.

    The shortcut would leave out the mask after the convolution, an activation that is not SiLU, and FalconMamba's norm
    of the step before its projection: results other than those without the patch.
    """
