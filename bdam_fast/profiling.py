"""NVTX ranges for Nsight Systems: every kernel call, forward and backward, and whatever `span` encloses; and their times.

Ranges are off unless the environment variable BDAM_FAST_NVTX is 1 when bdam_fast is imported; then the package nvtx is
needed. Calls inside a graph of `torch.compile` have no range of their own. `record` measures spans without NVTX.
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
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


class _Recorder:
    """Own seconds of spans: without those of the spans within them, so that all of them add up to the time that passed."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.seconds: dict[str, float] = {}
        # Seconds of the spans inside of each open one.
        self.inner: list[float] = []

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        self.inner.append(0.0)
        start = self.clock()
        try:
            yield
        finally:
            passed = self.clock() - start
            own = passed - self.inner.pop()
            self.seconds[name] = self.seconds.get(name, 0.0) + own
            if self.inner:
                self.inner[-1] += passed


_recorder: _Recorder | None = None


@contextmanager
def record(clock: Callable[[], float] = time.perf_counter) -> Iterator[dict[str, float]]:
    """Own seconds, by name, of the spans that end inside the `with` block; spans of one name are added up.

    clock: on a GPU one that waits for it first. Spans become NVTX ranges again afterwards; one recording at a time.
    """
    global _recorder
    before, _recorder = _recorder, _Recorder(clock)
    try:
        yield _recorder.seconds
    finally:
        _recorder = before


def span(name: str) -> AbstractContextManager[Any]:
    """A range round the `with` block, in the domain `bdam_fast`; when ranges are off, a shared context that does nothing."""
    if _recorder is not None:
        return _recorder.span(name)
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
