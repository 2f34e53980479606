"""Does the runs of an experiment, several at a time, each in processes of its own, and says how far it is."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from training.config import to_dict
from training.config.ablations import Row
from training.experiment import jobs as runner
from training.utils.io import read_json

# process.isolated, or what tests put in its place.
Launch = Callable[..., Any]


class Run(NamedTuple):
    """One configuration with one seed, and how long it will take."""

    row: Row
    seed: int
    folder: Path
    seconds: float = 0.0

    @property
    def label(self) -> str:
        """Words for the user: row and seed."""
        return f"{self.row.label}, seed {self.seed}"


class _Stopped(Exception):
    """Ends a run because another has failed or the user has interrupted."""


def run_all(runs: Sequence[Run], console: Console, launch: Launch, jobs: int = 1) -> None:
    """Trains and evaluates `runs`, `jobs` at a time, in their order: one line for each that is finished, and a bar over the
    estimated seconds where the console is a terminal.

    The first that fails, or an interruption, ends the others, which the next call continues. Raises RuntimeError naming
    the run that failed.
    """
    board, stop = _Board(runs, console, jobs), threading.Event()
    with board.bar, ThreadPoolExecutor(jobs) as pool:
        futures = {pool.submit(_run_one, run, launch, partial(board.tick, run, stop)): run for run in runs}
        try:
            for future in as_completed(futures):
                board.finish(futures[future], future.result())
        except BaseException:
            stop.set()
            for future in futures:
                future.cancel()
            raise


def _run_one(run: Run, launch: Launch, tick: Callable[[], None]) -> dict[str, Any]:
    """Trains and evaluates in two processes; returns eval.json."""
    folder = run.folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    config = replace(run.row.config, seed=run.seed)
    if (folder / "config.json").exists():
        # Another table may have begun it under the name of its own row.
        config = replace(config, recipe=read_json(folder / "config.json").get("recipe", config.recipe))
    log = folder.parent / f"{folder.name}.log"
    try:
        launch(runner.train_run, to_dict(config), folder, log=log, tick=tick)
        return launch(runner.evaluate_run, folder, log=log, tick=tick)
    except (ValueError, OSError, RuntimeError) as error:
        kept = "finished runs are kept, the same command continues"
        raise RuntimeError(f"{run.label} ({folder}) failed: {error}; {kept}") from error


class _Board:
    """What is shown while runs go on. `tick` is called by their threads."""

    def __init__(self, runs: Sequence[Run], console: Console, jobs: int) -> None:
        self.console, self.jobs, self.number = console, jobs, len(runs)
        self.total = sum(run.seconds for run in runs)
        self.begun, self.started = time.perf_counter(), dict[Run, float]()
        self.done, self.expected = 0, 0.0
        columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
        self.bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self.task = self.bar.add_task("", total=self.total)

    def tick(self, run: Run, stop: threading.Event) -> None:
        """Moves the bar on by what the runs under way have taken so far, each at most by what it was estimated to take."""
        if stop.is_set():
            raise _Stopped
        now = time.perf_counter()
        self.started.setdefault(run, now)
        under_way = sum(min(now - began, other.seconds) for other, began in [*self.started.items()])
        names = " | ".join(other.label for other in [*self.started])
        self.bar.update(self.task, completed=self.expected + under_way, description=f"{names}; {self._left()}")

    def finish(self, run: Run, evaluation: dict[str, Any]) -> None:
        """One line about a run that is finished."""
        taken = time.perf_counter() - self.started.pop(run, self.begun)
        self.done, self.expected = self.done + 1, self.expected + run.seconds
        metrics, memory = evaluation["metrics"], evaluation["training_memory_mb"]
        values = f"R-1 {metrics['R1']:.2f}  mAP {metrics['mAP']:.2f}  {taken:.0f} s  {memory:,.0f} MB"
        text = f"[{self.done}/{self.number}] {run.label}: {values}; {self._left()}"
        self.console.print(text, highlight=False, markup=False)

    def _left(self) -> str:
        """What is left of the estimate, at the pace of the runs so far."""
        if self.done == self.number:
            return "done"
        pace = (time.perf_counter() - self.begun) / self.expected if self.expected > 0 else 1 / self.jobs
        return f"about {minutes(pace * (self.total - self.expected))} left"


def minutes(seconds: float) -> str:
    """A duration in words: seconds below two minutes, hours above two hours."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
