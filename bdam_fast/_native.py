"""Loads the compiled extension when an operator first needs it, and counts calls."""

import importlib
import importlib.util
import os
from collections import Counter
from collections.abc import Callable
from functools import lru_cache
from types import ModuleType
from typing import TypeVar

import torch

REMEDY = (
    "build it with `pip install --no-build-isolation .` (or, in a checkout, `python setup.py build_ext --inplace`), "
    'or pass backend="reference"'
)
OPERATORS = ("selective_scan", "selective_state_update", "causal_conv1d", "causal_conv1d_update", "hsic")
CUDA_OPERATORS = ("selective_scan", "selective_state_update", "causal_conv1d", "causal_conv1d_update")
CUDA_REMEDY = (
    "install bdam-fast-cuda of the same version, or build it on a machine with nvcc and a CUDA build of torch "
    "(`BDAM_FAST_CUDA=1 pip install --no-build-isolation .`), "
    'or pass backend="triton"'
)
_python_calls: Counter[str] = Counter()
# Called each time that the library has been imported, before anybody can use it.
when_loaded: list[Callable[[], None]] = []
F = TypeVar("F", bound=Callable[..., object])


def constant_in_graphs(function: F) -> F:
    """Lets `torch.compile` call a function while tracing and keep the answer.

    `torch.compiler.assume_constant_result` does the same, but imports the whole compiler (1 s) with the package; the
    mark that it sets is all that is needed.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


@lru_cache(maxsize=1)
def _attempt() -> tuple[ModuleType | None, str]:
    """The extension module, or None and why not. Importing it registers the operators' schemas and CPU kernels, and
    `when_loaded` what the library does not hold: derivatives and shapes.

    The environment variable BDAM_FAST_ISA (baseline, avx2 or avx512) is read here, once.
    """
    try:
        module = importlib.import_module("._C", __package__)
    except ImportError as error:
        return None, str(error)
    for complete in when_loaded:
        complete()
    asked = os.environ.get("BDAM_FAST_ISA")
    if asked:
        if asked not in module.available_isas():
            runs = ", ".join(module.available_isas())
            raise RuntimeError(f"bdam_fast: BDAM_FAST_ISA must be one of {runs} on this CPU, got {asked!r}")
        module.set_isa(asked)
    return module, ""


def available() -> bool:
    """True if the extension is built and loads in this process."""
    return _attempt()[0] is not None


def why_missing() -> str:
    """The loader's own words when the extension is not available, else an empty string."""
    return _attempt()[1]


def extension() -> ModuleType:
    """The extension module `bdam_fast._C`.

    Raises:
        RuntimeError: it is not built, or does not load; the text names the remedy.
    """
    module, reason = _attempt()
    if module is None:
        raise RuntimeError(f"bdam_fast: the compiled extension is not available ({reason}); {REMEDY}")
    return module


@lru_cache(maxsize=1)
def _attempt_cuda() -> tuple[ModuleType | None, str]:
    """The module with the CUDA C++ kernels, or None and why not. Importing it registers them."""
    if _attempt()[0] is None:
        return None, _attempt()[1]
    if cuda_library() and torch.version.cuda is None:
        return None, f"torch {torch.__version__} is not a CUDA build; install one, or uninstall bdam-fast-cuda"
    try:
        module = importlib.import_module("._C_cuda", __package__)
    except ImportError as error:
        return None, str(error)
    ours, theirs = _version(), module.version()
    if ours != theirs:
        return None, (
            f"they are those of version {theirs}, and bdam_fast is of {ours}: `pip install bdam-fast-cuda=={ours}`"
        )
    return module, ""


def _version() -> str:
    """The version of the package, which is complete when an operator is called."""
    from . import __version__

    return __version__


def cuda_library() -> str:
    """Path of the library with the CUDA C++ kernels, whether or not it can be used; empty if there is none."""
    spec = importlib.util.find_spec("._C_cuda", __package__)
    return (spec.origin or "") if spec else ""


def cuda_available() -> bool:
    """True if the CUDA C++ kernels are built and load in this process."""
    return _attempt_cuda()[0] is not None


def cuda_extension() -> ModuleType:
    """The extension module `bdam_fast._C_cuda`.

    Raises:
        RuntimeError: it is not built, or does not load; the text names the remedy.
    """
    module, reason = _attempt_cuda()
    if module is None:
        raise RuntimeError(f"bdam_fast: the CUDA kernels are not available ({reason}); {CUDA_REMEDY}")
    return module


@lru_cache(maxsize=1)
def triton_available() -> bool:
    """True if the package triton is installed. It is imported when one of its kernels is first needed."""
    return importlib.util.find_spec("triton") is not None


@constant_in_graphs
def count_call(name: str) -> None:
    """Notes one call of an implementation in Python, e.g. `selective_scan.reference.forward`.

    A graph notes the one that is traced: a count in it would have each run find another number, and compile it again.
    """
    _python_calls[name] += 1


def call_counts() -> dict[str, int]:
    """Calls so far as `{"selective_scan.cpu.forward": 12, …}`.

    The cpu and cuda numbers are counted inside the extensions, at the entry of each kernel; the reference is counted
    forward only (its backward is plain autograd).
    """
    counts = {f"{op}.reference.forward": 0 for op in OPERATORS} | dict(_python_calls)
    for module in _loaded():
        counts.update(module.call_counts())
    return dict(sorted(counts.items()))


def reset_call_counts() -> None:
    """Sets every call count to zero."""
    _python_calls.clear()
    for module in _loaded():
        module.reset_call_counts()


def _loaded() -> list[ModuleType]:
    """The extensions that this process can use."""
    return [module for module in (_attempt()[0], _attempt_cuda()[0]) if module is not None]
