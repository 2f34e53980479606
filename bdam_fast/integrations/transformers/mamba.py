"""The mixer of Hugging Face transformers' Mamba and FalconMamba on the operators, for versions up to 5.15.

There a mixer has a `slow_forward`, which runs wherever the CUDA kernels do not. Its cache is a `MambaCache` told apart by
`cache_position` up to 5.3, and a general `Cache` with a layer for every mixer after that.

B batch, L length, E inner channels, N states.
"""

import functools
import importlib.util
import inspect
from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ... import _backend, _native
from ..._plain import is_plain
from ...ops.causal_conv1d.op import causal_conv1d
from ...ops.causal_conv1d_update.op import causal_conv1d_update
from ...ops.selective_scan.op import selective_scan
from ...ops.selective_state_update.op import selective_state_update

SILU = ("silu", "swish")


@_native.constant_in_graphs
def takes(backend: str, device: torch.device, dtype: torch.dtype) -> bool:
    """True if the operators run a call on `device`, and not the module's own function.

    `auto` takes what has a kernel, and on a GPU only what would be a loop in PyTorch: without the package mamba_ssm.
    """
    if backend != "auto":
        return backend == "reference" or (
            device.type == "cpu" if backend == "cpu" else _backend.runs_on(backend, device)
        )
    if device.type == "cuda" and importlib.util.find_spec("mamba_ssm") is not None:
        return False
    return _backend.automatic("selective_scan", device, dtype) != "reference"


WITH_POSITION = ["self", "input_states", "cache_params", "cache_position", "attention_mask"]
WITHOUT_POSITION = ["self", "input_states", "cache_params", "attention_mask"]


def slow_forward(module: ModuleType, own: Callable[..., Tensor], backend: str) -> Callable[..., Tensor] | None:
    """A replacement of the mixer's `own` slow_forward; None where its arguments are not those of a known version."""
    norm = getattr(module, "rms_forward", None)  # FalconMamba's, of the step, B and C
    names = list(inspect.signature(own).parameters)
    if names not in (WITH_POSITION, WITHOUT_POSITION):
        return None

    @functools.wraps(own)
    def replacement(self: Any, *args: Any, **kwargs: Any) -> Tensor:
        given = dict(zip(names[1:], args, strict=False)) | kwargs
        cache = _cache(self, given.get("cache_params"), given.get("cache_position"), names == WITH_POSITION)
        hidden_BLD = given["input_states"]
        if not takes(backend, hidden_BLD.device, hidden_BLD.dtype) or not cache.fits(self, hidden_BLD.shape[1]):
            return own(self, *args, **kwargs)
        return _forward(self, norm, hidden_BLD, cache, given.get("attention_mask"), backend)

    return replacement


class _Cache(NamedTuple):
    """One mixer's part of a cache."""

    decoding: bool = False
    conv_state: Tensor | None = None  # (B, E, W); None before the first call
    ssm_state: Tensor | None = None  # (B, E, N)
    store_conv: Callable[[Tensor], Any] | None = None  # None without a cache
    store_ssm: Callable[[Tensor], Any] | None = None

    def fits(self, mixer: Any, length: int) -> bool:
        """True for calls that the operators cover: a first call, or one step with a window of the filter's own width.

        A step with a conv1d that is more than its weights is left to the mixer, which reads the weights alone there.
        """
        if not self.decoding:
            return True
        if length != 1 or self.conv_state is None or not is_plain(mixer.conv1d, nn.Conv1d):
            return False
        return self.conv_state.shape[2] == int(mixer.conv_kernel_size)


def _cache(mixer: Any, cache: Any, cache_position: Tensor | None, with_position: bool) -> _Cache:
    index = mixer.layer_idx
    if cache is None:
        return _Cache()
    if with_position:
        first = cache_position is not None and cache_position.shape[0] == mixer.conv_kernel_size
        conv_state, ssm_state = cache.conv_states[index], cache.ssm_states[index]
        store = functools.partial(_store_with_position, cache, index, cache_position)
        return _Cache(not first, conv_state, ssm_state, store, ssm_state.copy_)
    decoding = cache.has_previous_state(index)
    layer = cache.layers[index]
    states = (layer.conv_states, layer.recurrent_states) if decoding else (None, None)
    conv_state, ssm_state = (s if s is None or isinstance(s, Tensor) else s[0] for s in states)
    return _Cache(
        decoding,
        conv_state,
        ssm_state,
        lambda entries: cache.update_conv_state(entries, index),
        lambda last: cache.update_recurrent_state(last, index),
    )


def _store_with_position(cache: Any, index: int, cache_position: Tensor | None, entries: Tensor) -> None:
    cache.update_conv_state(index, entries, cache_position)


def _forward(
    mixer: Any,
    norm: Callable[..., Tensor] | None,
    hidden_BLD: Tensor,
    cache: _Cache,
    attention_mask: Tensor | None,
    backend: str,
) -> Tensor:
    mask = 1 if attention_mask is None else attention_mask.unsqueeze(1)
    x_BEL, gate_BEL = mixer.in_proj(hidden_BLD).transpose(1, 2).chunk(2, dim=1)
    x_BEL = _convolve(mixer, x_BEL * mask, cache, backend) * mask
    widths = [mixer.time_step_rank, mixer.ssm_state_size, mixer.ssm_state_size]
    step, B_BLN, C_BLN = mixer.x_proj(x_BEL.transpose(1, 2)).split(widths, dim=-1)
    if norm is not None:
        step, B_BLN, C_BLN = (norm(p, variance_epsilon=mixer.rms_eps) for p in (step, B_BLN, C_BLN))
    y_BEL = _scan(mixer, x_BEL, gate_BEL, (mixer.dt_proj(step), B_BLN, C_BLN), cache, backend)
    return mixer.out_proj(y_BEL.transpose(1, 2))


def _convolve(mixer: Any, x_BEL: Tensor, cache: _Cache, backend: str) -> Tensor:
    layer, length = mixer.conv1d, x_BEL.shape[-1]
    activation = mixer.activation if mixer.activation in SILU else None
    if cache.decoding and cache.conv_state is not None:
        filters = (layer.weight.squeeze(1), layer.bias, activation)
        out = causal_conv1d_update(x_BEL, cache.conv_state, *filters, backend=backend)
    else:
        if cache.store_conv is not None:
            cache.store_conv(F.pad(x_BEL, (mixer.conv_kernel_size - length, 0)))
        if not is_plain(layer, nn.Conv1d):
            return mixer.act(layer(x_BEL)[..., :length])
        out = causal_conv1d(x_BEL, layer.weight.squeeze(1), layer.bias, activation, backend=backend)
    return out if activation is not None else mixer.act(out)


def _scan(
    mixer: Any,
    x_BEL: Tensor,
    gate_BEL: Tensor,
    projections: tuple[Tensor, Tensor, Tensor],
    cache: _Cache,
    backend: str,
) -> Tensor:
    """The scan, or one step of it; the step projection has its bias already."""
    step_BLE, B_BLN, C_BLN = projections
    A, gated = -torch.exp(mixer.A_log.float()), mixer.activation in SILU
    z_BEL, state = gate_BEL if gated else None, cache.ssm_state
    if cache.decoding and state is not None:
        z_BE = None if z_BEL is None else z_BEL[..., 0]
        args = (x_BEL[..., 0], step_BLE[:, 0], A, B_BLN[:, 0], C_BLN[:, 0], mixer.D, z_BE)
        y_BEL = selective_state_update(state, *args, dt_softplus=True, backend=backend).unsqueeze(-1)
    else:
        y_BEL, last = selective_scan(
            *(x_BEL, step_BLE.transpose(1, 2), A, B_BLN.transpose(1, 2), C_BLN.transpose(1, 2), mixer.D, z_BEL),
            delta_softplus=True,
            return_last_state=True,
            initial_state=None if state is None else state.clone(),  # overwritten below
            backend=backend,
        )
        if cache.store_ssm is not None:
            cache.store_ssm(last)
    return y_BEL if gated else y_BEL * mixer.act(gate_BEL)
