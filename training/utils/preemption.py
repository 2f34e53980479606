"""SIGTERM as a request to save and end: what a scheduler sends before it takes a machine away."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

# Exit status of a command that ended on SIGTERM and can be continued: EX_TEMPFAIL of sysexits.h, "try again later".
REQUEUE_STATUS = 75


class Preempted(Exception):
    """Raised where a SIGTERM ends the work; the same command with --resume continues it."""


class Preemption:
    """State of the signal: `requested` once it came. While `deferred` it is only noted; otherwise it raises Preempted."""

    def __init__(self) -> None:
        self.requested, self.deferred = False, False

    @contextmanager
    def deferring(self, deferred: bool = True) -> Iterator[None]:
        """Sets `deferred` for a block; at the start of a block that is not deferred, raises Preempted for an earlier signal."""
        before, self.deferred = self.deferred, deferred
        try:
            if self.requested and not deferred:
                raise Preempted
            yield
        finally:
            self.deferred = before

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Handler of the signal."""
        self.requested = True
        if not self.deferred:
            raise Preempted("stopped by SIGTERM")


@contextmanager
def preemption() -> Iterator[Preemption]:
    """Handles SIGTERM in a block; outside the main thread, where Python allows no handler, the signal stays as it is."""
    state = Preemption()
    if threading.current_thread() is not threading.main_thread():
        yield state
        return
    before = signal.signal(signal.SIGTERM, state.handle)
    try:
        yield state
    finally:
        signal.signal(signal.SIGTERM, before)
