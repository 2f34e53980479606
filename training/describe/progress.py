"""Progress of a generation: a bar on a terminal or a line a minute in a log, and a summary at the end."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from training.describe.generation import StatusCounts
from training.describe.llm.limits import UsageMeter

# Seconds between two lines where there is no terminal.
LOG_INTERVAL = 60.0


class ProgressReporter:
    """Counts records and shows the progress. Use as a context manager."""

    def __init__(
        self, total: int, meter: UsageMeter, counts: StatusCounts, console: Console, noun: str = "images"
    ) -> None:
        """total: items of this session, called `noun`; counts: records of earlier sessions, to which this one adds."""
        self.total, self.done, self.meter, self.counts, self.console = total, 0, meter, counts, console
        self.noun = noun
        self._started = self._logged = time.monotonic()
        columns = TextColumn(noun), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[status]}", markup=False)
        times = TimeElapsedColumn(), TimeRemainingColumn()
        self._bar = Progress(*columns, *times, console=console, transient=True, disable=not console.is_terminal)
        self._row = self._bar.add_task("", total=total, status="")

    def __enter__(self) -> ProgressReporter:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Frees the terminal for a question meanwhile."""
        self._bar.stop()
        yield
        self._bar.start()

    def record(self, row: dict[str, Any]) -> None:
        """Counts and shows a new record."""
        self.done += 1
        self.counts.add(row)
        now = time.monotonic()
        if self.console.is_terminal:
            self._bar.update(self._row, completed=self.done, status=self.status_line(now))
        elif now - self._logged >= LOG_INTERVAL:
            self._logged = now
            self.console.print(
                f"{self.done} of {self.total} {self.noun}, {self.status_line(now)}", highlight=False, soft_wrap=True
            )

    def status_line(self, now: float) -> str:
        """Rate, cost and the most frequent reasons of rejection; now: a monotonic time."""
        parts = [f"{self.done / max(1e-9, now - self._started):.1f} {self.noun}/s"]
        if self.meter.cost:
            parts.append(f"cost {self.meter.cost:.2f}")
        parts += [f"{count} {reason}" for reason, count in self.counts.reasons.most_common(3)]
        return ", ".join(parts)


def print_summary(counts: StatusCounts, meter: UsageMeter, remaining: int, console: Console) -> None:
    """Prints records by status and reason, requests, tokens and cost."""
    table = Table("images", "number", title="descriptions")
    for status in ("ok", "rejected", "failed"):
        table.add_row(status, str(counts.statuses[status]))
    for reason, count in counts.reasons.most_common():
        table.add_row(f"  {reason}", str(count))
    table.add_row("pending", str(remaining))
    table.add_row("requests of this run", str(meter.requests))
    table.add_row("stored answers", str(meter.answers))
    if meter.with_usage:
        table.add_row("input, output tokens", f"{meter.prompt_tokens}, {meter.completion_tokens}")
    if meter.cost:
        table.add_row("cost of the stored answers", f"{meter.cost:.4f}")
    console.print(table, markup=False, highlight=False)
