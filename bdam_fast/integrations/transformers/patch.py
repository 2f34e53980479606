"""Puts the operators into Hugging Face transformers' Mamba and FalconMamba models, and takes them out again.

Two generations are known. Up to 5.15 a mixer has a `slow_forward`, which is replaced (`_transformers_mixer.py`); in later
versions the mixers call functions of their module, which are replaced here by name. Mixers that exist already run on the
operators too, since both are looked up at each call. Only tensors on a CPU are taken over.
"""

import functools
import importlib
import importlib.util
import inspect
from collections.abc import Callable
from types import ModuleType
from typing import Any

from torch import Tensor

import bdam_fast
from bdam_fast.integrations.transformers.mamba import SILU, slow_forward

MIXERS = {"mamba": "MambaMixer", "falcon_mamba": "FalconMambaMixer"}
_replaced: list[tuple[Any, str, Any]] = []  # owner, name, and what stood there before the patch


def patch_transformers() -> None:
    """Makes the Mamba and FalconMamba models of Hugging Face transformers run on these operators, wherever they were made.

    Logits, gradients and generated tokens stay what they were, up to rounding; masks, caches and beam search are not
    touched. On other devices than a CPU, and for what the operators do not take (packed sequences), the models' own
    functions are called. A second call does nothing; `unpatch_transformers()` puts everything back.

    Raises:
        RuntimeError: transformers is not installed, or its models are of a generation that is not known here.
    """
    if _replaced:
        return
    changes = [change for family, mixer in MIXERS.items() for change in _changes(_modeling(family), mixer)]
    for owner, name, value in changes:
        _replaced.append((owner, name, vars(owner)[name]))
        setattr(owner, name, value)


def unpatch_transformers() -> None:
    """Puts back what `patch_transformers()` replaced; does nothing without it."""
    while _replaced:
        setattr(*_replaced.pop())


def _modeling(family: str) -> ModuleType:
    try:
        return importlib.import_module(f"transformers.models.{family}.modeling_{family}")
    except ImportError as error:
        if importlib.util.find_spec("transformers") is not None:
            raise _unknown(f"{error}") from error
        raise RuntimeError(
            "patch_transformers: transformers must be installed, got none; run `pip install transformers`"
        ) from error


def _unknown(what: str) -> RuntimeError:
    version = importlib.import_module("transformers").__version__
    return RuntimeError(
        f"patch_transformers: transformers must have the Mamba models of 4.57 to 5.23 as known here, got version {version} "
        f"({what})"
    )


def _changes(module: ModuleType, mixer_name: str) -> list[tuple[Any, str, Any]]:
    """(owner, name, replacement) for one model's module, nothing changed yet."""
    mixer = getattr(module, mixer_name, None)
    slow = None if mixer is None else vars(mixer).get("slow_forward")
    if slow is not None:
        replacement = slow_forward(module, slow)
        if replacement is None:
            raise _unknown(f"{mixer_name}.slow_forward has other arguments")
        silent = [(mixer, name, _say_nothing) for name in ("warn_slow_implementation",) if name in vars(mixer)]
        return [(mixer, "slow_forward", replacement), *silent]
    replacements = _functions(module)
    for name, function in replacements.items():
        if _parameters(getattr(module, name, None)) != _parameters(function):
            raise _unknown(f"{module.__name__}.{name} is missing or has other arguments")
    return [(module, name, function) for name, function in replacements.items()]


def _parameters(function: Any) -> list[str]:
    """Names of a function's arguments, or of the module's that the `kernels` package makes of a function."""
    target = getattr(function, "forward", function)
    if not callable(target):
        return []
    parameters = inspect.signature(target).parameters.values()
    return [p.name for p in parameters if p.kind is not inspect.Parameter.VAR_KEYWORD]


def _say_nothing(self: Any) -> None:
    """In place of the mixer's warning that it will be slow."""


def _functions(module: ModuleType) -> dict[str, Callable[..., Any]]:
    """Replacements of the module functions, by name; each keeps the module's own for other devices."""
    ours: dict[str, Callable[..., Any]] = {
        "causal_conv1d_fn": _convolve,
        "causal_conv1d_update": _convolve_step,
        "mamba_selective_scan": _scan,
        "mamba_selective_state_update": _scan_step,
        "mamba_inner_fn": _no_short_cut,
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
    out = bdam_fast.causal_conv1d(hidden_states, weight, bias, _fused(activation))
    return _activate(out, activation)


def _convolve_step(
    hidden_states: Tensor,
    conv_state: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
) -> Tensor:
    out = bdam_fast.causal_conv1d_update(hidden_states, conv_state, weight, bias, _fused(activation))
    return _activate(out, activation)


def _fused(activation: str | None) -> str | None:
    """The activation if the convolution has it."""
    return activation if activation in SILU else None


def _activate(x: Tensor, activation: str | None) -> Tensor:
    """What the convolution did not do of the activation."""
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
    return bdam_fast.selective_scan(hidden_states, dt, A, B, C, D, z, delta_bias, delta_softplus, return_last_state)


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
    return bdam_fast.selective_state_update(state, hidden_states, dt, A, B, C, D, z, dt_bias, dt_softplus)


def _no_short_cut(
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
    """None sends a training mixer on to the other functions, which are the same two operators.

    The short cut would leave out the mask after the convolution, an activation that is not SiLU, and FalconMamba's norm
    of the step before its projection: results other than those without the patch.
    """
