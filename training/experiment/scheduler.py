"""Runs the jobs of an experiment in parallel, each in processes of its own, and reports progress."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from training.config import Config
from training.config.ablations import Row
from training.evaluation.experiment_result import SUMMARY, Summary
from training.evaluation.result import Evaluation
from training.evaluation.run_folder import Run
from training.experiment.jobs import Job, Launch, minutes
from training.experiment.kept_runs import keep, read_twins
from training.experiment.summary import summarise
from training.utils.io import write_record


class _StopRequest(Exception):
    """Ends a job because another has failed or the user has interrupted."""


def run_experiment(
    jobs: Sequence[Job],
    rows: Sequence[Row],
    titles: dict[str, str],
    seeds: Sequence[int],
    out: Path,
    base: Config,
    console: Console,
    *,
    launch: Launch,
    parallel: int = 1,
    command: str = "",
    results: Path | None = None,
) -> Summary:
    """Runs the jobs and returns the contents of OUT/summary.json. results: folder that keeps each finished run (`kept_runs`).

    The summary is written too when a job fails, over what is finished. Raises RuntimeError naming the run that failed.
    """
    try:
        run_jobs(jobs, console, launch, parallel, results)
    finally:
        out.mkdir(parents=True, exist_ok=True)
        twins = read_twins(rows, seeds, out, results) if results else None
        summary = summarise(rows, titles, seeds, out, base, command, twins)
        write_record(out / SUMMARY, summary)
    return summary


def run_jobs(
    jobs: Sequence[Job], console: Console, launch: Launch, parallel: int = 1, results: Path | None = None
) -> None:
    """Trains and evaluates the runs of `jobs`, `parallel` at a time, in their order: one line for each that is finished, and
    a bar over the estimated seconds where the console is a terminal.

    The first that fails, or an interruption, ends the others, which the next call continues. Raises RuntimeError naming
    the run that failed.
    """
    board, stop = _Board(jobs, console, parallel), threading.Event()
    with board.bar, ThreadPoolExecutor(parallel) as pool:
        futures = {pool.submit(_run_job, job, launch, partial(board.tick, job, stop)): job for job in jobs}
        try:
            for future in as_completed(futures):
                job = futures[future]
                board.finish(job, future.result())
                if results is not None:
                    keep(job.folder, job.row.key, job.seed, results)
        except BaseException:
            stop.set()
            for future in futures:
                future.cancel()
            raise


def _run_job(job: Job, launch: Launch, tick: Callable[[], None]) -> Evaluation:
    """Trains and evaluates in processes of their own; returns eval.json."""
    folder = job.folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    log = folder.with_name(f"{folder.name}.log")
    try:
        launch(job.command, log=log, tick=tick)
        for command in job.measurements:
            launch(command, log=log, tick=tick)
        return Run(folder).evaluation
    except (ValueError, OSError, RuntimeError) as error:
        remedy = "finished runs are kept, the same command continues"
        raise RuntimeError(f"{job.label} ({folder}) failed: {error}; {remedy}") from error


class _Board:
    """Progress of the jobs. `tick` is called by their threads."""

    def __init__(self, jobs: Sequence[Job], console: Console, parallel: int) -> None:
        self.console, self.parallel, self.number = console, parallel, len(jobs)
        self.total = sum(job.seconds for job in jobs)
        self.start, self.starts = time.perf_counter(), dict[Job, float]()
        self.done, self.expected = 0, 0.0
        columns = (TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn())
        self.bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self.task = self.bar.add_task("", total=self.total)

    def tick(self, job: Job, stop: threading.Event) -> None:
        """Moves the bar on by the time of the running jobs, each at most by its estimate. Raises _StopRequest after `stop`."""
        if stop.is_set():
            raise _StopRequest
        now = time.perf_counter()
        self.starts.setdefault(job, now)
        running = sum(min(now - start, other.seconds) for other, start in [*self.starts.items()])
        names = " | ".join(other.label for other in [*self.starts])
        self.bar.update(self.task, completed=self.expected + running, description=f"{names}; {self._remaining()}")

    def finish(self, job: Job, evaluation: Evaluation) -> None:
        """Prints one line about a finished job."""
        seconds = time.perf_counter() - self.starts.pop(job, self.start)
        self.done, self.expected = self.done + 1, self.expected + job.seconds
        metrics, memory = evaluation.metrics, evaluation.training_memory_mb
        values = f"R-1 {metrics['R1']:.2f}  mAP {metrics['mAP']:.2f}  {seconds:.0f} s"
        values += "" if memory is None else f"  {memory:,.0f} MB"
        text = f"[{self.done}/{self.number}] {job.label}: {values}; {self._remaining()}"
        self.console.print(text, highlight=False, markup=False)

    def _remaining(self) -> str:
        """The rest of the estimate, at the pace of the jobs so far."""
        if self.done == self.number:
            return "done"
        pace = (time.perf_counter() - self.start) / self.expected if self.expected > 0 else 1 / self.parallel
        return f"about {minutes(pace * (self.total - self.expected))} left"
