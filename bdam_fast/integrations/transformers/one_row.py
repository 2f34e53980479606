"""One token at a time: the large layers of a model on all threads.

With one row PyTorch's matrix product is MKL's product of a matrix and a vector, which on AMD's processors stays on one thread: 17
GB/s of weights on a machine that reads 42 (two threads). As a batch of products, one for each part of the outputs, it is 32.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from ..._plain import is_plain
from .mamba import takes

LAYERS = ("in_proj", "out_proj", "lm_head")
# Parts of the outputs: a number that is not that of the threads, so that this has the same bits with any.
PARTS = 8
# Weights of a layer from which on the threads' start is paid back.
LARGE = 2**16


def decoding(own: Callable[..., Any], backend: str) -> Callable[..., Any]:
    """A `forward` of a mixer or a model whose large plain layers take one row by `one_row`, where no gradient is wanted."""

    @functools.wraps(own)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling() or torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"):
            return own(self, *args, **kwargs)
        if _has_any_global_hook():  # which sees these layers without the patch
            return own(self, *args, **kwargs)
        return own(_Decoding(self, backend), *args, **kwargs)

    return forward


class _Decoding:
    """A module as its `forward` sees it: all is its own but the calls of its large layers."""

    def __init__(self, module: nn.Module, backend: str) -> None:
        self.__dict__.update(_module=module, _backend=backend)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._module, name, value)

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._module, name)
        return _Layer(value) if name in LAYERS and _fits(value, self._backend) else value


class _Layer:
    """A linear layer with another way to take one row."""

    def __init__(self, layer: nn.Linear) -> None:
        self._layer = layer

    def __call__(self, x: Tensor) -> Tensor:
        layer = self._layer
        return one_row(x, layer.weight, layer.bias) if x.numel() == x.shape[-1] else layer(x)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._layer, name)


def _fits(layer: Any, backend: str) -> bool:
    """True for layers that are their weights alone, of which `one_row` takes these, and that are worth it."""
    if not is_plain(layer, nn.Linear) or layer.weight.device.type != "cpu" or type(layer.weight) is not nn.Parameter:
        return False
    weight = layer.weight
    whole = weight.shape[0] % PARTS == 0 and weight.is_contiguous() and weight.dtype == torch.float32
    return whole and weight.numel() >= LARGE and takes(backend, weight.device, weight.dtype)


def one_row(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """F.linear(x, weight, bias) of one row (…, I) to (…, O), equal to it up to rounding; O must be a multiple of PARTS."""
    outputs, inputs = weight.shape
    parts = weight.view(PARTS, outputs // PARTS, inputs).transpose(1, 2)
    out = torch.bmm(x.reshape(1, 1, inputs).expand(PARTS, 1, inputs), parts).view(*x.shape[:-1], outputs)
    return out if bias is None else out + bias
