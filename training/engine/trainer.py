"""The training loop: schedule, validation selection, checkpoints, exact resume.

Files in a run folder: metrics.jsonl and tensorboard/ (every step and every validation), last.pt after every epoch and every
`save_every_steps` steps, best.pt when validation improves, calls.json (operator calls per backend), and nonfinite.json
when training stops because a loss or a gradient is not finite.
"""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

import bdam_fast
from bdam_fast.profiling import span
from training.config import Config, to_dict
from training.data.loader import Batch, TrainLoader
from training.engine import checkpoint, metrics_log
from training.engine.device import card_memory, prefetch_batches
from training.engine.metrics_log import MetricsLog
from training.engine.train_step import (
    NonFiniteError,
    Stepper,
    StepResult,
    learning_rate_factor,
    random_state,
    set_random_state,
)
from training.models.retrieval_model import RetrievalModel
from training.utils.io import write_json

Validate = Callable[[RetrievalModel], dict[str, float]]


@dataclass
class RunProgress:
    """Progress of a run, stored in every checkpoint."""

    # Finished epochs and steps.
    epoch: int = 0
    step: int = 0
    # Finished batches of the current epoch, and the sum of their losses.
    batch: int = 0
    loss_sum: float = 0.0
    # Best validation value so far, its epoch, and the clothing weight beta chosen there.
    best: float = -math.inf
    best_epoch: int = 0
    beta: float = 0.0


class Trainer:
    """Trains `model` on `loader` and writes the files to the existing folder `run_dir`.

    validate(model) returns the metrics of the validation split with the chosen "beta"; the metric
    `config.eval.select_by` selects the checkpoint. fingerprint: of the data, so that no later stage uses different data.
    Files are written atomically: on a CPU, a run killed at any moment continues with `resume` to the same numbers as an
    uninterrupted one.
    """

    def __init__(
        self,
        config: Config,
        model: RetrievalModel,
        loader: TrainLoader,
        run_dir: Path,
        validate: Validate,
        *,
        fingerprint: str,
        console: Console | None = None,
    ) -> None:
        self.config, self.model, self.loader, self.run_dir, self.validate = config, model, loader, run_dir, validate
        self.fingerprint = fingerprint
        self.console = console or Console()
        self.stepper = Stepper(config, model)
        self.progress = RunProgress()
        self.calls: Counter[str] = Counter()
        # Operator calls already included in `calls`.
        self._counted: Counter[str] = Counter()

    def resume(self) -> None:
        """Continues from last.pt; from the start if the run was killed before last.pt was first written.

        Raises ValueError when last.pt has a different configuration or data fingerprint, before anything is changed.
        """
        path = self.run_dir / "last.pt"
        if path.exists():
            state = checkpoint.load(path)
            for name, ours in (("config", to_dict(self.config)), ("fingerprint", self.fingerprint)):
                if json.dumps(state[name]) != json.dumps(ours):
                    raise ValueError(f"cannot resume from {path}: its {name} differs from that of this run")
            self.model.load_state_dict(state["model"])
            self.stepper.load_state_dict(state)
            self.progress = RunProgress(**state["progress"])
            self.calls = Counter(state["calls"])
            set_random_state(state["rng"], self.stepper.device)
        checkpoint.remove_leftovers(self.run_dir)
        (self.run_dir / metrics_log.NONFINITE).unlink(missing_ok=True)
        metrics_log.truncate(self.run_dir, self.progress.step)

    def fit(self) -> RunProgress:
        """Trains the remaining epochs. Raises RuntimeError when a loss or a gradient is no longer finite."""
        epochs = self.config.optim.epochs
        if self.progress.epoch >= epochs:
            return self.progress
        self._counted = Counter(bdam_fast.call_counts())
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        bar = Progress(
            *columns, TimeRemainingColumn(), console=self.console, transient=True, disable=not self.console.is_terminal
        )
        with MetricsLog(self.run_dir, self.progress.step) as log, bar:
            task = bar.add_task("training", total=epochs * len(self.loader), completed=self.progress.step)
            while self.progress.epoch < epochs:
                self._epoch(log, lambda text: bar.update(task, completed=self.progress.step, description=text))
        return self.progress

    def train_step(self, batch: Batch) -> StepResult:
        """One optimiser step. Raises RuntimeError, and writes nonfinite.json, when a loss or a gradient is not finite."""
        balance, progress = self.config.gradnorm, self.progress
        self.stepper.set_learning_rate(self._rate_factor())
        try:
            step = self.stepper.run(batch, measure=balance.enabled and progress.step % balance.every == 0)
        except NonFiniteError as error:
            number, files = progress.step + 1, ", ".join(batch.paths[:4]) + (", ..." if len(batch.paths) > 4 else "")
            path = metrics_log.write_nonfinite(self.run_dir, number, progress.epoch + 1, error.values, batch.paths)
            raise RuntimeError(
                f"training is no longer finite at step {number}: {error}; batch: {files} (all in {path})"
            ) from error
        progress.step += 1
        return step

    def _epoch(self, log: MetricsLog, show: Callable[[str], None]) -> None:
        """Runs the rest of the current epoch, its validation, and writes its files."""
        progress, optim = self.progress, self.config.optim
        number, started = progress.epoch + 1, time.perf_counter()
        self.loader.set_epoch(number - 1, progress.batch)
        self.model.train()
        step_started = started
        for batch in _profiled_batches(prefetch_batches(self.loader, self.stepper.device)):
            rate = self._rate_factor() * optim.lr
            with span("training step"):
                step = self.train_step(batch)
            progress.batch += 1
            progress.loss_sum += step.loss
            seconds, step_started = time.perf_counter() - step_started, time.perf_counter()
            line = {"step": progress.step, "epoch": number, **step._asdict(), "lr": rate, "images": len(batch.paths)}
            log.step(line | {"seconds": seconds} | card_memory(self.stepper.device))
            show(f"epoch {number}/{optim.epochs} loss {step.loss:.3f}")
            # After the last batch the checkpoint of the epoch follows; one here would lack the validation at the same step.
            due = optim.save_every_steps and progress.step % optim.save_every_steps == 0
            if due and progress.batch < len(self.loader):
                self._save(log)
        text = f"loss {progress.loss_sum / progress.batch:.3f}  {time.perf_counter() - started:.1f} s"
        improved = self._validate(log, number) if self._validates(number) else None
        progress.epoch, progress.batch, progress.loss_sum = number, 0, 0.0
        if improved is not None:
            text += f"  {improved[1]}"
            if improved[0]:
                checkpoint.save(self.run_dir / "best.pt", self._state(whole=False))
        self._save(log)
        self.console.print(f"epoch {number:>3}/{optim.epochs}  {text}", highlight=False)

    def _save(self, log: MetricsLog) -> None:
        """Writes calls.json and last.pt, after the metrics log is on disk."""
        counts = Counter(bdam_fast.call_counts())
        self.calls += counts - self._counted
        self._counted = counts
        log.flush()
        write_json(self.run_dir / "calls.json", dict(self.calls))
        checkpoint.save(self.run_dir / "last.pt", self._state(whole=True))

    def _validates(self, epoch: int) -> bool:
        return epoch % self.config.optim.validate_every == 0 or epoch == self.config.optim.epochs

    def _validate(self, log: MetricsLog, epoch: int) -> tuple[bool, str]:
        """(True if this epoch is the best so far, text for the console)."""
        started = time.perf_counter()
        metrics = self.validate(self.model)
        seconds = time.perf_counter() - started
        log.validation({"epoch": epoch, "step": self.progress.step, **metrics, "seconds": seconds})
        value = metrics[self.config.eval.select_by]
        improved = value > self.progress.best
        if improved:
            self.progress.best, self.progress.best_epoch, self.progress.beta = value, epoch, metrics["beta"]
        text = f"R-1 {metrics['R1']:.2f}  mAP {metrics['mAP']:.2f}  beta {metrics['beta']:g}  {seconds:.1f} s"
        return improved, text + ("  best" if improved else "")

    def _state(self, whole: bool) -> dict[str, Any]:
        """Contents of best.pt; with `whole` also the state for resuming (last.pt)."""
        state: dict[str, Any] = {
            "model": self.model.state_dict(),
            "config": to_dict(self.config),
            "fingerprint": self.fingerprint,
            "progress": dict(vars(self.progress)),
        }
        state |= {name: state["progress"][name] for name in ("epoch", "step", "best", "beta")}
        if whole:
            state |= self.stepper.state_dict()
            state |= {"rng": random_state(self.stepper.device), "calls": dict(self.calls)}
        return state

    def _rate_factor(self) -> float:
        steps, optim = len(self.loader), self.config.optim
        return learning_rate_factor(self.progress.step, optim.warmup_epochs * steps, optim.epochs * steps)


def _profiled_batches(loader: Iterable[Batch]) -> Iterator[Batch]:
    """The batches of the loader, with a profiler range around the wait for each."""
    batches = iter(loader)
    while True:
        with span("data"):
            batch = next(batches, None)
        if batch is None:
            return
        yield batch
