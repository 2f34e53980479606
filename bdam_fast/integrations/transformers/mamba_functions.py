"""The functions that transformers' Mamba, FalconMamba, Jamba and Zamba mixers call since 5.16, on the operators."""

import functools
import importlib
import threading
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

from torch import Tensor

from ...ops.causal_conv1d.op import causal_conv1d
from ...ops.causal_conv1d_update.op import causal_conv1d_update
from ...ops.selective_scan.op import selective_scan
from ...ops.selective_state_update.op import selective_state_update
from .mamba import SILU, takes


class _Continued(threading.local):
    """States from which the scans of a mixer's call continue, in the order of its heads; empty in other calls."""

    states: Iterator[Tensor] = iter(())


_continued = _Continued()


def functions(module: ModuleType, backend: str) -> dict[str, Callable[..., Any]]:
    """Replacements of those functions that the module has, by name; each keeps the module's own for other devices."""
    return {name: _route(getattr(module, name), ours, backend) for name, ours in OURS.items() if hasattr(module, name)}


def continuing(own: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A mixer's `forward` that continues several steps from the state of a cache, where its own starts from zero."""

    @functools.wraps(own)
    def forward(self: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        cache = args[0] if args else kwargs.get("cache", kwargs.get("cache_params"))
        state = None
        if cache is not None and hidden_states.shape[1] > 1:
            state = cache.get_recurrent_state(self.layer_idx, state_idx=0)
        if state is None:
            return own(self, hidden_states, *args, **kwargs)
        state = state.clone()  # the cache overwrites it
        _continued.states = iter(state.unbind(1) if state.dim() == 4 else (state,))  # heads are scanned one by one
        try:
            return own(self, hidden_states, *args, **kwargs)
        finally:
            _continued.states = iter(())

    return forward


def _route(own: Any, ours: Callable[..., Any], backend: str) -> Callable[..., Any]:
    @functools.wraps(ours)
    def routed(first: Tensor, *args: Any, **kwargs: Any) -> Any:
        packed = kwargs.get("seq_idx") is not None or kwargs.get("cu_seqlens") is not None
        if packed or not takes(backend, first.device, first.dtype):
            return own(first, *args, **kwargs)
        return ours(first, *args, **kwargs, backend=backend)

    return routed


def _convolve(
    hidden_states: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    *,
    backend: str,
    **kwargs: Any,
) -> Tensor:
    out = causal_conv1d(hidden_states, weight, bias, _fused(activation), backend=backend)
    return _activate(out, activation)


def _convolve_step(
    hidden_states: Tensor,
    conv_state: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    *,
    backend: str,
) -> Tensor:
    out = causal_conv1d_update(hidden_states, conv_state, weight, bias, _fused(activation), backend=backend)
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
    *,
    backend: str,
    **kwargs: Any,
) -> Any:
    return selective_scan(
        *(hidden_states, dt, A, B, C, D, z, delta_bias, delta_softplus, return_last_state),
        initial_state=next(_continued.states, None),
        backend=backend,
    )


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
    *,
    backend: str,
    **kwargs: Any,
) -> Tensor:
    return selective_state_update(state, hidden_states, dt, A, B, C, D, z, dt_bias, dt_softplus, backend=backend)


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


OURS: dict[str, Callable[..., Any]] = {
    "causal_conv1d_fn": _convolve,
    "causal_conv1d_update": _convolve_step,
    "mamba_selective_scan": _scan,
    "mamba_selective_state_update": _scan_step,
    "mamba_inner_fn": _no_shortcut,
}
