"""Lines about the progress of a training for a log file, where no bar can be drawn."""

from __future__ import annotations

import time
from collections.abc import Callable

# Seconds below which a duration is given in seconds, and in minutes.
MINUTES, HOURS = 120, 7200


class ProgressLines:
    """Writes a line after the first step and then every `seconds` (0: none) with loss, rate, memory and time left.

    total: steps of the whole run; memory_mb: reads the peak memory of the process.
    """

    def __init__(
        self, write: Callable[[str], None], total: int, seconds: float, memory_mb: Callable[[], float]
    ) -> None:
        self.write, self.total, self.seconds, self.memory_mb = write, total, seconds, memory_mb
        self.started = self.last = time.monotonic()
        self.steps = self.images = 0

    def step(self, text: str, step: int, images: int) -> None:
        """Counts a step of so many images, the `step`-th of the run; `text` begins its line."""
        self.steps, self.images, now = self.steps + 1, self.images + images, time.monotonic()
        if not self.seconds or (self.steps > 1 and now - self.last < self.seconds):
            return
        elapsed = max(now - self.started, 1e-9)
        left = (self.total - step) * elapsed / self.steps
        self.write(
            f"{text}  step {step}/{self.total}  {self.images / elapsed:.1f} images/s  {self.memory_mb():,.0f} MB  "
            f"about {duration(left)} left"
        )
        self.last = now


def duration(seconds: float) -> str:
    """A duration in words: seconds below two minutes, hours above two hours."""
    if seconds < MINUTES:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < HOURS else f"{seconds / 3600:.1f} h"
