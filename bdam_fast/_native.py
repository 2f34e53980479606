"""Loads the compiled extension when an operator first needs it, and counts calls."""

import importlib
import os
from collections import Counter
from collections.abc import Callable
from functools import lru_cache
from types import ModuleType
from typing import TypeVar

REMEDY = (
    "build it with `pip install --no-build-isolation .` (or, in a checkout, `python setup.py build_ext --inplace`), "
    'or pass backend="reference"'
)
OPERATORS = ("selective_scan", "selective_state_update", "causal_conv1d", "causal_conv1d_update", "hsic")
_reference_calls: Counter[str] = Counter()
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
    """The extension module, or None and why not. Importing it registers the operators' schemas and CPU kernels.

    The environment variable BDAM_FAST_ISA (baseline, avx2 or avx512) is read here, once.
    """
    try:
        module = importlib.import_module("bdam_fast._C")
    except ImportError as error:
        return None, str(error)
    asked = os.environ.get("BDAM_FAST_ISA")
    if asked:
        if asked not in module.available_isas():
            runs = ", ".join(module.available_isas())
            raise RuntimeError(f"bdam_fast: BDAM_FAST_ISA must be one of {runs} on this CPU, got {asked!r}")
        module.set_isa(asked)
    return module, ""


def available() -> bool:
    """Whether the extension is built and loads in this process."""
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


def count_reference_call(name: str) -> None:
    """Notes one forward call of an operator's reference, e.g. `selective_scan`."""
    _reference_calls[name] += 1


def call_counts() -> dict[str, int]:
    """Calls so far as `{"selective_scan.cpu.forward": 12, …}`.

    The cpu numbers are counted inside the extension, at the entry of each kernel; the reference is counted forward only
    (its backward is plain autograd).
    """
    counts = {f"{op}.reference.forward": _reference_calls[op] for op in OPERATORS}
    module = _attempt()[0]
    if module is not None:
        counts.update(module.call_counts())
    return dict(sorted(counts.items()))


def reset_call_counts() -> None:
    """Sets every call count to zero."""
    _reference_calls.clear()
    module = _attempt()[0]
    if module is not None:
        module.reset_call_counts()
