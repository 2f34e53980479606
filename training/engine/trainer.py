"""The training loop: schedule, validation selection, checkpoints, exact resume.

Files in a run folder: metrics.jsonl and tensorboard/ (every step and every validation), last.pt after every epoch and every
`save_every_steps` steps, best.pt when validation improves, calls.json (operator calls per backend), and nonfinite.json
when training stops because a loss or a gradient is not finite.
"""

from __future__ import annotations

import copy
import json
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from rich.console import Console

import bdam_fast
from bdam_fast.profiling import span
from training.config import Config, complete, to_dict, without_places
from training.data.loader import Batch, TrainLoader
from training.engine import checkpoint, metrics_log
from training.engine.checkpoint import RunProgress
from training.engine.device import card_memory, prefetch_batches, profiled_batches
from training.engine.distributed.ranks import ONE_RANK, Ranks
from training.engine.memory import peak_memory_mb
from training.engine.metrics_log import Log, MetricsLog, NoLog
from training.engine.progress_lines import ProgressLines
from training.engine.train_step import (
    NonFiniteError,
    Stepper,
    StepResult,
    learning_rate_factor,
    random_state,
    set_random_state,
)
from training.engine.weight_average import WeightAverage
from training.models.retrieval_model import RetrievalModel
from training.utils.io import write_json
from training.utils.preemption import Preempted, Preemption
from training.utils.terminal import make_console, make_progress

Validate = Callable[[RetrievalModel], dict[str, float]]


class Trainer:
    """Trains `model` on `loader` and writes the files to the existing folder `run_dir`.

    validate(model) returns the metrics of the validation split with the chosen "beta"; the metric
    `config.eval.select_by` selects the checkpoint. inputs: of the data, so that no later stage uses different data.
    tokenizer_files: digests of RUN/tokenizer, stored in the checkpoints; set by the caller once they are written.
    Files are written atomically: on a CPU, a run killed at any moment continues with `resume` to the same numbers as an
    uninterrupted one. log_seconds: seconds between two lines about the progress where `console` is no terminal; 0: none.
    ranks: processes that share every batch; the first one validates and writes the files.
    """

    def __init__(
        self,
        config: Config,
        model: RetrievalModel,
        loader: TrainLoader,
        run_dir: Path,
        validate: Validate,
        *,
        inputs: checkpoint.Inputs,
        console: Console | None = None,
        log_seconds: float = 0.0,
        preemption: Preemption | None = None,
        ranks: Ranks = ONE_RANK,
    ) -> None:
        self.config, self.model, self.loader, self.run_dir, self.validate = config, model, loader, run_dir, validate
        self.inputs, self.tokenizer_files = inputs, dict[str, str]()
        self.console, self.log_seconds = console or make_console(), log_seconds
        self.preemption, self.ranks = preemption or Preemption(), ranks
        self.stepper = Stepper(config, model, ranks)
        self.average = WeightAverage(model, config.optim.ema) if config.optim.ema and ranks.first else None
        self.progress = RunProgress()
        self.calls: Counter[str] = Counter()
        # Operator calls already included in `calls`.
        self._counted: Counter[str] = Counter()

    def resume(self, *, extend: bool = False, require_images: Callable[[str], None] = lambda digest: None) -> int:
        """Continues from last.pt; from the start if the run was killed before last.pt was first written. Returns the epochs that
        the run had when last.pt was written.

        extend: last.pt may have been written for fewer epochs. require_images: raises ValueError for a digest of other images;
        "" in last.pt of early versions. Raises ValueError when last.pt or metrics.jsonl is damaged, or
        last.pt has a different configuration or data fingerprint, before anything is changed.
        """
        path, epochs = self.run_dir / "last.pt", self.config.optim.epochs
        if path.exists():
            state = checkpoint.load(path)
            self._require_same(path, state, extend)
            require_images(state.get("images", ""))
            if self.ranks.first:
                metrics_log.kept_lines(self.run_dir, state["step"])
            self.model.load_state_dict(state["model"])
            self.stepper.load_state_dict(state)
            if self.average:
                self.average.load_state_dict(state["ema"])
            self.progress = RunProgress(**state["progress"])
            self.calls, self.tokenizer_files = Counter(state["calls"]), state.get("tokenizer", {})
            epochs = state["config"]["optim"]["epochs"]
            set_random_state(state["rng"], self.stepper.device)
        # Others may still read what the first one is about to change.
        self.ranks.wait_for_all()
        if self.ranks.first:
            checkpoint.remove_leftovers(self.run_dir)
            (self.run_dir / metrics_log.NONFINITE).unlink(missing_ok=True)
            metrics_log.truncate(self.run_dir, self.progress.step)
        return epochs

    def fit(self) -> RunProgress:
        """Trains the remaining epochs.

        Raises RuntimeError when a loss or a gradient is no longer finite, Preempted after a SIGTERM, with last.pt written.
        """
        epochs = self.config.optim.epochs
        if self.progress.epoch >= epochs:
            return self.progress
        self._counted = Counter(bdam_fast.call_counts())
        self.ranks.share_weights(self.model)
        bar, total = make_progress(self.console), epochs * len(self.loader)
        opened: Log = MetricsLog(self.run_dir, self.progress.step) if self.ranks.first else NoLog()
        with self.preemption.deferring(), opened as log, bar:
            task = bar.add_task("training", total=total, completed=self.progress.step)
            seconds = 0.0 if self.console.is_terminal else self.log_seconds
            lines = ProgressLines(self.console.print, total, seconds, lambda: peak_memory_mb(self.stepper.device))

            def show(text: str, images: int) -> None:
                bar.update(task, completed=self.progress.step, description=text)
                lines.step(text, self.progress.step, images)

            while self.progress.epoch < epochs:
                self._epoch(log, show)
        return self.progress

    def train_step(self, batch: Batch) -> StepResult:
        """One optimiser step. Raises RuntimeError, and writes nonfinite.json, when a loss or a gradient is not finite."""
        balance, progress = self.config.gradnorm, self.progress
        self.stepper.set_learning_rate(self._rate_factor())
        self.ranks.seed_step(self.config.seed, progress.step)
        try:
            step = self.stepper.run(batch, measure=balance.enabled and progress.step % balance.every == 0)
        except NonFiniteError as error:
            number, names = progress.step + 1, batch.labels.paths
            files, path = (
                ", ".join(names[:4]) + (", ..." if len(names) > 4 else ""),
                self.run_dir / metrics_log.NONFINITE,
            )
            if self.ranks.first:
                metrics_log.write_nonfinite(self.run_dir, number, progress.epoch + 1, error.values, names)
            raise RuntimeError(
                f"training is no longer finite at step {number}: {error}; batch: {files} (all in {path})"
            ) from error
        progress.step += 1
        if self.average:
            self.average.update(progress.step)
        return step

    def _require_same(self, path: Path, state: dict[str, Any], extend: bool) -> None:
        """Raises ValueError unless last.pt is of this configuration (extend: or of fewer epochs) and data."""
        stored, ours = state["config"], without_places(to_dict(self.config))
        if extend:
            stored = {**stored, "optim": {**stored["optim"], "epochs": ours["optim"]["epochs"]}}
        pairs = {
            "config": (without_places(complete(stored)), ours),
            "fingerprint": (state["fingerprint"], self.inputs.fingerprint),
        }
        for name, (theirs, expected) in pairs.items():
            if json.dumps(theirs) != json.dumps(expected):
                raise ValueError(f"cannot resume from {path}: its {name} differs from that of this run")

    def _epoch(self, log: Log, show: Callable[[str, int], None]) -> None:
        """Runs the rest of the current epoch, its validation, and writes its files."""
        progress, optim = self.progress, self.config.optim
        number, started = progress.epoch + 1, time.perf_counter()
        self.loader.set_epoch(number - 1, progress.batch)
        self.model.train()
        step_started = started
        for batch in profiled_batches(prefetch_batches(self.loader, self.stepper.device)):
            rate = self._rate_factor() * optim.lr
            with span("training step"):
                step = self.train_step(batch)
            progress.batch += 1
            progress.loss_sum += step.loss
            seconds, step_started = time.perf_counter() - step_started, time.perf_counter()
            images = len(batch.labels.paths)
            line = {"step": progress.step, "epoch": number, **step._asdict(), "lr": rate, "images": images}
            log.step(line | self.ranks.largest({"seconds": seconds} | card_memory(self.stepper.device)))
            show(f"epoch {number}/{optim.epochs}  loss {step.loss:.3f}", images)
            # After the last batch the checkpoint of the epoch follows; one here would lack the validation at the same step.
            due = optim.save_every_steps and progress.step % optim.save_every_steps == 0
            if self.ranks.any(self.preemption.requested):
                self._stop(log)
            if due and progress.batch < len(self.loader):
                self._save(log)
        text = f"loss {progress.loss_sum / progress.batch:.3f}  {time.perf_counter() - started:.1f} s"
        improved = None
        if self._validates(number):
            improved, self.progress = self.ranks.share(lambda: (self._validate(log, number), self.progress))
            progress = self.progress
        progress.epoch, progress.batch, progress.loss_sum = number, 0, 0.0
        if improved is not None:
            text += f"  {improved[1]}"
            if improved[0] and self.ranks.first:
                checkpoint.save(self.run_dir / "best.pt", self._state(whole=False))
        self._save(log)
        self.console.print(f"epoch {number:>3}/{optim.epochs}  {text}")
        if self.ranks.any(self.preemption.requested) and number < optim.epochs:
            self._stop(log)

    def _stop(self, log: Log) -> NoReturn:
        """Saves after a SIGTERM and raises Preempted."""
        self._save(log)
        raise Preempted(
            f"stopped by SIGTERM after step {self.progress.step}: {self.run_dir / 'last.pt'} is written, and the same command "
            "with --resume continues"
        )

    def _save(self, log: Log) -> None:
        """Writes calls.json and last.pt, after the metrics log is on disk."""
        if not self.ranks.first:
            return
        counts = Counter(bdam_fast.call_counts())
        self.calls += counts - self._counted
        self._counted = counts
        log.flush()
        write_json(self.run_dir / "calls.json", dict(self.calls), seal=True)
        checkpoint.save(self.run_dir / "last.pt", self._state(whole=True))

    def _validates(self, epoch: int) -> bool:
        return epoch % self.config.optim.validate_every == 0 or epoch == self.config.optim.epochs

    def _validate(self, log: Log, epoch: int) -> tuple[bool, str]:
        """(True if this epoch is the best so far, text for the console)."""
        started, name = time.perf_counter(), self.config.eval.select_by
        metrics, averaged = self._measure(log)
        seconds = time.perf_counter() - started
        beside = {f"ema_{key}": value for key, value in averaged.items()}
        log.validation({"epoch": epoch, "step": self.progress.step, **metrics, **beside, "seconds": seconds})
        better = bool(averaged) and averaged[name] > metrics[name]
        chosen = averaged if better else metrics
        improved = chosen[name] > self.progress.best
        if improved:
            self.progress.best, self.progress.best_epoch = chosen[name], epoch
            self.progress.beta, self.progress.averaged = chosen["beta"], better
        text = f"R-1 {metrics['R1']:.2f}  mAP {metrics['mAP']:.2f}  beta {metrics['beta']:g}  {seconds:.1f} s"
        if averaged:
            text += f"  averaged: R-1 {averaged['R1']:.2f}  mAP {averaged['mAP']:.2f}"
        return improved, text + ("  best" + " (averaged)" * better if improved else "")

    def _measure(self, log: Log) -> tuple[dict[str, float], dict[str, float]]:
        """Validation metrics of the weights, and of the averaged ones ({} without optim.ema). A SIGTERM ends it at once: saved
        is the state before it."""
        state = random_state(self.stepper.device)
        try:
            with self.preemption.deferring(False):
                metrics = self.validate(self._in_float32())
                if self.average is None:
                    return metrics, {}
                with self.average.applied():
                    return metrics, self.validate(self._in_float32())
        except Preempted:
            set_random_state(state, self.stepper.device)
            self._stop(log)

    def _in_float32(self) -> RetrievalModel:
        """The model as every evaluation reads it."""
        return copy.deepcopy(self.model).float() if self.stepper.precision == "fp64" else self.model

    def _state(self, whole: bool) -> dict[str, Any]:
        """Contents of best.pt; with `whole` also the state for resuming (last.pt)."""
        averaged = self.average is not None and self.progress.averaged and not whole
        state: dict[str, Any] = {
            "model": self.average.weights if averaged and self.average else self.model.state_dict(),
            "config": to_dict(self.config),
            "towers": self.model.towers(),
            **vars(self.inputs),
            "tokenizer": self.tokenizer_files,
            "progress": dict(vars(self.progress)),
        }
        state |= {name: state["progress"][name] for name in ("epoch", "step", "best", "beta")}
        if whole:
            state |= self.stepper.state_dict()
            state |= {"rng": random_state(self.stepper.device), "calls": dict(self.calls)}
            state |= {"ema": self.average.weights} if self.average else {}
        return state

    def _rate_factor(self) -> float:
        steps, optim = len(self.loader), self.config.optim
        return learning_rate_factor(self.progress.step, optim.warmup_epochs * steps, optim.epochs * steps)
