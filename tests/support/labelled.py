"""Tensors that say they lie on another device and compute on the CPU: PyTorch's rules of devices, without a card.

Inside `elsewhere()` a module or tensor moved to that device, or made there, becomes `Labelled`. An operation of such a tensor
with a tensor of the CPU raises as on a card, copies between the two aside.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

aten = torch.ops.aten
# Operations that read one device and write another.
COPIES = (aten.copy_.default, aten._to_copy.default)


class Labelled(torch.Tensor):
    """A tensor of the CPU, `held`, under the name of another device."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor, device: torch.device) -> Labelled:
        new: Any = torch.Tensor._make_wrapper_subclass
        size, strides, offset = held.size(), held.stride(), held.storage_offset()
        # Views of parameters, which are no inference tensors, must be none either.
        with torch.inference_mode(False):
            self: Labelled = new(cls, size, strides=strides, storage_offset=offset, dtype=held.dtype, device=device)
        self.held = held
        return self

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Outside of `elsewhere`, where only results are read."""
        labels = [x.device for x in tree_leaves((args, kwargs)) if isinstance(x, Labelled)]
        return compute(labels[0], func, args, kwargs or {})

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Labelled({self.device}, {tuple(self.shape)}, {self.dtype})"


def compute(label: torch.device, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """One operation: `label` wherever it names a device, plain tensors of the CPU otherwise."""
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    labelled = any(isinstance(x, Labelled) for x in tensors)
    if labelled and func is aten._has_compatible_shallow_copy_type.default:
        # `Module.to` then makes new parameters.
        return False
    device = kwargs.get("device")
    goes = device is not None and torch.device(device).type == label.type
    if func not in COPIES:
        # A number of the CPU may stand beside tensors of a card.
        wrong = [x for x in tensors if not isinstance(x, Labelled) and x.ndim > 0]
        if labelled and wrong:
            raise RuntimeError(f"{func} mixes tensors of {label} and of the CPU: {[tuple(x.shape) for x in wrong]}")
    if goes:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    outer = {id(x.held): x for x in tensors if isinstance(x, Labelled)}
    result = func(*tree_map(_held, args), **tree_map(_held, kwargs))
    stays = goes or (labelled and device is None)
    if func is aten.copy_.default:
        return args[0]

    def wrap(x: Any) -> Any:
        if not isinstance(x, Tensor) or not stays:
            return x
        return outer.get(id(x)) if id(x) in outer else Labelled(x, label)

    return tree_map(wrap, result)


def _held(x: Any) -> Any:
    return x.held if isinstance(x, Labelled) else x


class _Elsewhere(TorchDispatchMode):
    def __init__(self, label: torch.device) -> None:
        super().__init__()
        self.label = label

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # In inference mode operations arrive whole, which name devices in other ways than their parts do.
        if torch.is_inference_mode_enabled() and func._can_decompose():
            with self:
                parts = func.decompose(*args, **(kwargs or {}))
            if parts is not NotImplemented:
                return parts
        return compute(self.label, func, args, kwargs or {})


@contextmanager
def elsewhere() -> Iterator[torch.device]:
    """The device "meta", the only one beside the CPU on which PyTorch slices and differentiates without a card."""
    label = torch.device("meta")
    with _Elsewhere(label):
        yield label


def pretend_card(monkeypatch: Any, count: int = 1, capability: tuple[int, int] = (9, 0)) -> None:
    """Makes torch.cuda report cards; nothing runs on them."""
    answers = {
        "_lazy_init": lambda: None,
        "is_available": lambda: True,
        "device_count": lambda: count,
        "current_device": lambda: 0,
        "get_device_name": lambda device=None: "Pretended Card",
        "is_bf16_supported": lambda including_emulation=True: capability >= (8, 0),
        "get_device_capability": lambda device=None: capability,
        "max_memory_allocated": lambda device=None: 5 << 20,
        "get_rng_state": lambda device=None: torch.zeros(16, dtype=torch.uint8),
        "set_rng_state": lambda state, device=None: None,
    }
    for name, answer in answers.items():
        monkeypatch.setattr(torch.cuda, name, answer)
