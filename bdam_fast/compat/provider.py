"""Modules under the names of mamba_ssm, causal_conv1d and VMamba's extensions, for code that imports those.

B batch, L length, D channels.
"""

import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from .. import _backend, _operators
from ..nn import Mamba
from . import conv, inner, scan

# What stands in our modules; the versions are those of the packages whose functions they hold.
MAMBA_VERSION, CONV_VERSION = "2.3.2+bdam.fast", "1.7.0+bdam.fast"
_installed: dict[str, ModuleType] = {}
_replaced: dict[str, ModuleType] = {}


def install(replace: bool = False) -> list[str]:
    """Lets `import mamba_ssm` and `import causal_conv1d` find these functions in this process, and returns the module names.

    Code that nobody patched then runs on the operators, if it is imported afterwards: what has been imported before keeps
    what it found. Also VMamba's `selective_scan_cuda_oflex` and `selective_scan_cuda_core`. Parts of the packages that are
    not here (Mamba-2, layer norms) raise ImportError, as in an installation without them. A second call does nothing.

    Args:
        replace: take the place of packages that are installed; `uninstall()` brings them back.

    Raises:
        RuntimeError: such a package is installed or imported, and `replace` is not set. Nothing has been changed then.
    """
    if _installed:
        return sorted(_installed)
    modules = _modules()
    if not replace:
        for name in sorted(n for n in modules if "." not in n):
            if name in sys.modules or importlib.util.find_spec(name) is not None:
                raise RuntimeError(
                    f"compat.install: {name} must not be installed, but is; uninstall it, or pass replace=True"
                )
    roots = {name.partition(".")[0] for name in modules}
    for name in [n for n in sys.modules if n.partition(".")[0] in roots]:
        _replaced[name] = sys.modules.pop(name)
    sys.modules.update(modules)
    _installed.update(modules)
    return sorted(modules)


def uninstall() -> None:
    """Takes back `install()`; code that has imported the modules keeps their functions."""
    for name, module in _installed.items():
        if sys.modules.get(name) is module:
            del sys.modules[name]
    sys.modules.update(_replaced)
    _installed.clear()
    _replaced.clear()


@dataclass
class InferenceParams:
    """The state of a generation, as `Mamba.forward` takes it: steps seen so far, and the layers' states by index."""

    max_seqlen: int
    max_batch_size: int
    seqlen_offset: int = 0
    batch_size_offset: int = 0
    key_value_memory_dict: dict[int, Any] = field(default_factory=dict)
    lengths_per_sample: Tensor | None = None

    def reset(self, max_seqlen: int, max_batch_size: int) -> None:
        """Begins a new sequence with the same states."""
        self.max_seqlen, self.max_batch_size, self.seqlen_offset = max_seqlen, max_batch_size, 0


def _modules() -> dict[str, ModuleType]:
    """The modules by name, each an attribute of its parent."""
    scans = {name: getattr(scan, name) for name in ("selective_scan_fn", "selective_scan_ref")}
    inners = {
        name: getattr(inner, name)
        for name in (
            *("mamba_inner_fn", "mamba_inner_ref", "mamba_inner_fn_no_out_proj"),
            *("bimamba_inner_fn", "bimamba_inner_ref"),
        )
    }
    convs = {name: getattr(conv, name) for name in ("causal_conv1d_fn", "causal_conv1d_update")}
    states = {name: getattr(scan, name) for name in ("selective_state_update", "selective_state_update_ref")}
    varlen = {name: getattr(conv, name) for name in vars(conv) if name.startswith("causal_conv1d_varlen_states")}
    refs = {name: getattr(conv, name) for name in ("causal_conv1d_ref", "causal_conv1d_update_ref")}
    contents: dict[str, dict[str, Any]] = {
        "causal_conv1d": {"__version__": CONV_VERSION, **convs},
        "causal_conv1d.causal_conv1d_interface": {**convs, **refs},
        "causal_conv1d.causal_conv1d_varlen": varlen,
        "mamba_ssm": {"__version__": MAMBA_VERSION, **scans, **inners, "Mamba": Mamba},
        "mamba_ssm.modules": {},
        "mamba_ssm.modules.mamba_simple": {"Mamba": Mamba},
        "mamba_ssm.ops": {},
        "mamba_ssm.ops.selective_scan_interface": {**scans, **inners},
        "mamba_ssm.ops.triton": {},
        "mamba_ssm.ops.triton.selective_state_update": states,
        "mamba_ssm.utils": {},
        "mamba_ssm.utils.generation": {"InferenceParams": InferenceParams},
        "selective_scan_cuda_core": {"fwd": _vmamba_forward, "bwd": _vmamba_backward},
        "selective_scan_cuda_oflex": {"fwd": _vmamba_forward, "bwd": _vmamba_backward},
    }
    modules: dict[str, ModuleType] = {}
    for name, members in contents.items():
        module = modules[name] = ModuleType(name, f"{name.partition('.')[0]}, as bdam_fast.compat provides it.")
        module.__spec__ = ModuleSpec(name, None, is_package=True)
        module.__path__ = []
        vars(module).update(members)
        parent, _, own = name.rpartition(".")
        if parent and own not in contents.get(parent, {}):  # a function may have the name of its module
            setattr(modules[parent], own, module)
    return modules


def _scan_operator(u: Tensor) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """The raw operators of the scan, forward and backward, on the kernels that `auto` takes for `u`."""
    backend = _backend.resolve("selective_scan", "auto", u.device, u.dtype)
    if backend == "reference":
        raise RuntimeError(f"selective_scan_cuda_oflex: there is no kernel for {u.dtype} on {u.device}")
    operator = _operators.OPERATORS["selective_scan"]
    return operator.raw(backend), _operators.raw(_operators.NAMESPACES[backend], "selective_scan_backward")


@torch.no_grad()
def _vmamba_forward(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    nrows: int = 1,
    oflex: bool = False,
) -> list[Tensor]:
    """[out, x] of VMamba's extension; x is what its backward takes."""
    u = scan.wide(u, oflex)
    forward, _ = _scan_operator(u)
    out, _, saved = forward(u, delta, A, B, C, D, None, delta_bias, None, None, delta_softplus, False, False, True)
    return [out, saved]


@torch.no_grad()
def _vmamba_backward(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    dout: Tensor,
    x: Tensor,
    delta_softplus: bool,
    nrows: int = 1,
) -> list[Tensor | None]:
    """[du, ddelta, dA, dB, dC, dD, ddelta_bias]; None for an absent input."""
    own = u.to(dout.dtype)
    _, backward = _scan_operator(own)
    tensors = (own, delta, A, B, C, D, None, delta_bias, None, None, x)
    du, ddelta, dA, dB, dC, dD, _, dbias, _ = backward(dout, None, *tensors, delta_softplus, False)
    return [
        du.to(u.dtype),
        ddelta,
        dA,
        dB,
        dC,
        None if D is None else dD,
        None if delta_bias is None else dbias,
    ]
