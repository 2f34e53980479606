"""NVTX ranges for Nsight Systems: every kernel call, forward and backward, and whatever `span` encloses.

Off unless the environment variable BDAM_FAST_NVTX is 1 when bdam_fast is imported; then the package nvtx is needed. Calls
inside a graph of `torch.compile` have no range of their own.
"""

import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import wraps
from typing import Any

_OFF: AbstractContextManager[Any] = nullcontext()


def _load() -> Any:
    asked = os.environ.get("BDAM_FAST_NVTX", "0")
    if asked not in ("0", "1"):
        raise RuntimeError(f"bdam_fast: BDAM_FAST_NVTX must be 0 or 1, got {asked!r}")
    if asked == "0":
        return None
    try:
        import nvtx
    except ImportError:
        raise RuntimeError(
            "bdam_fast: BDAM_FAST_NVTX=1 needs the package nvtx; install it with `pip install nvtx`"
        ) from None
    return nvtx


_nvtx = _load()
ENABLED = _nvtx is not None


def span(name: str) -> AbstractContextManager[Any]:
    """A range round the `with` block, in the domain `bdam_fast`; when ranges are off, a shared context that does nothing."""
    return _nvtx.annotate(name, domain="bdam_fast") if ENABLED else _OFF


def ranged(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` with a range round each call; when ranges are off, `function` itself."""
    if not ENABLED:
        return function

    @wraps(function)
    def call(*args: Any) -> Any:
        with span(name):
            return function(*args)

    return call
