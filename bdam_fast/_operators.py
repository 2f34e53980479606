"""Where each backend's raw operators live, and how they come to be: one schema, several sets of kernels.

`bdam_fast::…` holds the compiled kernels, by device: the CPU's and the CUDA C++ ones. `bdam_fast_triton::…` holds the
same operators, with the same schemas, implemented by Triton kernels.
"""

import importlib
from collections.abc import Callable
from functools import cache, partial
from types import ModuleType
from typing import Any

import torch

from bdam_fast import _autograd, _native, profiling

NAMESPACES = {"cpu": "bdam_fast", "cuda": "bdam_fast", "triton": "bdam_fast_triton"}
_registered: set[tuple[str, str]] = set()  # one namespace may serve two backends, by device
_libraries: list[torch.library.Library] = []  # a registration lives as long as its Library object


@cache
def raw(namespace: str, name: str) -> Any:
    """The raw operator `namespace::name`, which must have been loaded; with a range round each call if those are on."""
    operator = getattr(getattr(torch.ops, namespace), name).default
    return profiling.ranged(f"{namespace}::{name}", operator)


def backend_of(namespace: str, device: torch.device) -> str:
    """The backend whose kernels an operator of `namespace` runs on `device`."""
    if namespace == NAMESPACES["triton"]:
        return "triton"
    return "cuda" if namespace != NAMESPACES["cpu"] or device.type == "cuda" else "cpu"


def load(
    op: str,
    backend: str,
    fakes: Callable[[str], dict[str, Any]],
    autograd: Callable[..., Any],
    triton_module: str,
    writes: str = "",
) -> Any:
    """Makes a backend's kernels of one operator callable, with their fake and autograd formulas, and returns the raw forward.

    Args:
        fakes: what makes the results of the raw operators in a namespace, the forward first; their annotations are the
            schema of the Triton ones. All behind the forward are backwards, which have no derivative.
        autograd: what autograd does with a call of the forward: its namespace, then the arguments.
        triton_module: where the Triton kernels are: functions `forward` and `backward`, or `update`.
        writes: the argument that is updated in place, if any.

    Raises:
        RuntimeError: the extension that holds the kernels is not built, or does not load.
    """
    namespace = NAMESPACES[backend]
    if backend != "triton":
        _native.extension()
    if backend == "cuda":
        _native.cuda_extension()
    made = fakes(namespace)
    forward, *backwards = made
    if (namespace, forward) not in _registered:
        if backend == "triton":
            _define(namespace, made, importlib.import_module(triton_module), writes)
        for name, fake in made.items():
            torch.library.register_fake(f"{namespace}::{name}", fake)
        _autograd.register(namespace, forward, partial(autograd, namespace))
        for name in backwards:
            _autograd.register_once_differentiable(op, namespace, name)
        _registered.add((namespace, forward))
    return raw(namespace, forward)


def _define(namespace: str, fakes: dict[str, Any], kernels: ModuleType, writes: str) -> None:
    library = torch.library.Library(namespace, "FRAGMENT")
    for name, fake in fakes.items():
        library.define(name + torch.library.infer_schema(fake, mutates_args={writes} if writes else ()))
        kernel = getattr(kernels, name.rpartition("_")[2])
        library.impl(name, _counted(name, kernel), "CompositeExplicitAutograd")
    _libraries.append(library)


def _counted(name: str, kernel: Callable[..., Any]) -> Callable[..., Any]:
    """The kernel, noting its calls as `selective_scan.triton.forward`."""
    op, _, direction = name.rpartition("_")
    count = f"{op}.triton.{direction}" if direction in ("forward", "backward") else f"{name}.triton.forward"

    def call(*args: Any) -> Any:
        _native.count_call(count)
        return kernel(*args)

    return call
