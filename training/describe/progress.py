"""What a user sees of a generation: progress on a terminal or a line a minute in a log, and a table at the end."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from training.describe.generation import Tally
from training.describe.llm.limits import Meter

# Seconds between two lines where there is no terminal.
LOG_EVERY = 60.0


class Reporter:
    """Counts records and shows them. Use as a context manager."""

    def __init__(self, total: int, meter: Meter, tally: Tally, console: Console, what: str = "images") -> None:
        """total: items of this run, `what` they are; tally: what earlier runs recorded, and this one adds to."""
        self.total, self.done, self.meter, self.tally, self.console = total, 0, meter, tally, console
        self.what = what
        self._begun = self._logged = time.monotonic()
        columns = TextColumn(what), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[told]}")
        times = TimeElapsedColumn(), TimeRemainingColumn()
        self._bar = Progress(*columns, *times, console=console, transient=True, disable=not console.is_terminal)
        self._row = self._bar.add_task("", total=total, told="")

    def __enter__(self) -> Reporter:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """The terminal is free for a question meanwhile."""
        self._bar.stop()
        yield
        self._bar.start()

    def recorded(self, row: dict[str, Any]) -> None:
        """A new record."""
        self.done += 1
        self.tally.count(row)
        now = time.monotonic()
        if self.console.is_terminal:
            self._bar.update(self._row, completed=self.done, told=self.line(now))
        elif now - self._logged >= LOG_EVERY:
            self._logged = now
            self.console.print(
                f"{self.done} of {self.total} {self.what}, {self.line(now)}", highlight=False, soft_wrap=True
            )

    def line(self, now: float) -> str:
        """Rate, cost and what was rejected why, in a few words."""
        told = [f"{self.done / max(1e-9, now - self._begun):.1f} {self.what}/s"]
        if self.meter.cost:
            told.append(f"cost {self.meter.cost:.2f}")
        told += [f"{count} {reason}" for reason, count in self.tally.reasons.most_common(3)]
        return ", ".join(told)


def show_summary(tally: Tally, meter: Meter, left: int, console: Console) -> None:
    """Prints records by status and reason, requests, tokens and cost."""
    table = Table("images", "number", title="descriptions")
    for status in ("ok", "rejected", "failed"):
        table.add_row(status, str(tally.statuses[status]))
    for reason, count in tally.reasons.most_common():
        table.add_row(f"  {reason}", str(count))
    table.add_row("not done yet", str(left))
    table.add_row("requests of this run", str(meter.requests))
    table.add_row("stored answers", str(meter.answers))
    if meter.counted:
        table.add_row("tokens sent, answered", f"{meter.prompt_tokens}, {meter.completion_tokens}")
    if meter.cost:
        table.add_row("cost of the stored answers", f"{meter.cost:.4f}")
    console.print(table, markup=False, highlight=False)
