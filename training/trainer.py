"""The training loop: optimiser, schedule, task weights, validation selection, checkpoints, exact resume.

A run folder gets metrics.jsonl (one line per step and per validation), last.pt after every epoch, best.pt when
validation improves, and calls.json (operator calls per backend).
"""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor, nn

import bdam_fast
from bdam_fast.profiling import span
from training import checkpoint
from training.config import Config, OptimConfig, to_dict
from training.data.loader import Batch, TrainLoader
from training.gradnorm import GradNorm, backward_tasks
from training.losses import fixed_losses, task_losses, task_names
from training.models.model import Model

Validate = Callable[[Model], dict[str, float]]


@dataclass
class Progressed:
    """How far a run is; stored in every checkpoint."""

    # Finished epochs and steps.
    epoch: int = 0
    step: int = 0
    # Largest validation value so far, its epoch, and the clothing weight chosen there.
    best: float = -math.inf
    best_epoch: int = 0
    beta: float = 0.0


class Step(NamedTuple):
    """Values of one optimiser step; `losses` and `norms` unweighted, the gate regularisation among the losses."""

    loss: float
    losses: dict[str, float]
    weights: dict[str, float]
    norms: dict[str, float]


def learning_rate_factor(step: int, warmup: int, total: int) -> float:
    """Linear warm-up over `warmup` steps, then a cosine from 1 towards 0 at `total`; `step` counts from 0."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1.0 + math.cos(math.pi * (step - warmup) / (total - warmup)))


def build_optimizer(model: Model, config: OptimConfig) -> torch.optim.Optimizer:
    """Adam or AdamW over the model's parameter groups."""
    kind = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
    return kind(model.parameter_groups(config.lr), lr=config.lr, weight_decay=config.weight_decay)


class Trainer:
    """Trains `model` on `loader` and writes the files of `run_dir`, which exists.

    validate(model) returns the metrics of the validation split with the chosen "beta"; the value named
    `config.eval.select_by` selects the checkpoint. fingerprint: that of the data, so that no later stage continues on
    other data. Files are written whole or not at all: a run that is killed at any moment continues with `resume` to
    the same numbers as one that was not, on a CPU.
    """

    def __init__(
        self,
        config: Config,
        model: Model,
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
        self.device = next(model.parameters()).device
        self.optimizer = build_optimizer(model, config.optim)
        self.base_rates = [group["lr"] for group in self.optimizer.param_groups]
        self.gradnorm = GradNorm(task_names(config.loss, config.model.fusion.enabled), config.gradnorm)
        self.head_parameters = model.head_parameters()
        self.parameters = [*model.encoder_parameters(), *self.head_parameters]
        self.progress = Progressed()
        self.calls: Counter[str] = Counter()

    def resume(self) -> None:
        """Continues from last.pt; from the start where the run was killed before its first epoch ended.

        Raises ValueError when last.pt is of another configuration or of other data, before anything is changed.
        """
        path = self.run_dir / "last.pt"
        if path.exists():
            state = checkpoint.load(path)
            for name, ours in (("config", to_dict(self.config)), ("fingerprint", self.fingerprint)):
                if json.dumps(state[name]) != json.dumps(ours):
                    raise ValueError(f"cannot resume from {path}: its {name} is not the one of this run")
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.gradnorm.load_state_dict(state["gradnorm"])
            self.progress = Progressed(**state["progress"])
            self.calls = Counter(state["calls"])
            torch.set_rng_state(state["rng"])
        _keep_epochs(self.run_dir / "metrics.jsonl", self.progress.epoch)

    def fit(self) -> Progressed:
        """Trains the epochs that are left. Raises RuntimeError when a loss or a gradient is no longer finite."""
        epochs, steps = self.config.optim.epochs, len(self.loader)
        total = epochs * steps
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        bar = Progress(
            *columns, TimeRemainingColumn(), console=self.console, transient=True, disable=not self.console.is_terminal
        )
        with open(self.run_dir / "metrics.jsonl", "a", encoding="utf-8") as log, bar:
            task = bar.add_task("training", total=total, completed=self.progress.step)
            while self.progress.epoch < epochs:
                self._epoch(log, lambda text: bar.update(task, completed=self.progress.step, description=text))
        return self.progress

    def train_step(self, batch: Batch) -> Step:
        """One optimiser step: K passes through the heads at most, one through the encoders."""
        self._set_rate()
        self.optimizer.zero_grad(set_to_none=True)
        batch = batch.to(self.device)
        with span("encoders"):
            encoded = self.model.encode(batch)
        leaves = encoded.leaves()
        with span("heads"):
            features = self.model.heads(leaves)
        loss, backend = self.config.loss, self.config.model.backend
        with span("losses"):
            tasks = task_losses(features, batch.ids_B, batch.clothing_group_B, loss, backend)
            fixed, weights = fixed_losses(features, loss), self.gradnorm.weights()
            values, regular = _numbers(tasks), _numbers(fixed)
        self._require_finite(values | regular, batch)
        balance = self.config.gradnorm
        measure = balance.enabled and self.progress.step % balance.every == 0
        with span("backward heads"):
            norms = backward_tasks(tasks, weights, fixed, leaves.tensors(), self.head_parameters, measure=measure)
        with span("backward encoders"):
            encoded.backward(leaves)
        with span("optimiser"):
            # A bound of infinity measures without clipping.
            norm = nn.utils.clip_grad_norm_(self.parameters, self.config.optim.clip_norm or math.inf)
            self._require_finite({"gradient norm": float(norm)}, batch)
            self.optimizer.step()
        if measure:
            with span("gradnorm"):
                self.gradnorm.update(values, norms)
        self.progress.step += 1
        loss_sum = sum(weights[name] * value for name, value in values.items()) + sum(regular.values())
        return Step(loss_sum, values | regular, weights, norms)

    def _epoch(self, log: IO[str], show: Callable[[str], None]) -> None:
        number, started = self.progress.epoch + 1, time.perf_counter()
        before = Counter(bdam_fast.call_counts())
        self.loader.set_epoch(number - 1)
        self.model.train()
        losses = []
        step_started = started
        for batch in _ranged_batches(self.loader):
            with span("training step"):
                step = self.train_step(batch)
            losses.append(step.loss)
            seconds, step_started = time.perf_counter() - step_started, time.perf_counter()
            line = {"kind": "step", "step": self.progress.step, "epoch": number, **step._asdict(), "lr": self._rate()}
            _append(log, line | {"seconds": seconds})
            show(f"epoch {number}/{self.config.optim.epochs} loss {step.loss:.3f}")
        text = f"loss {sum(losses) / len(losses):.3f}  {time.perf_counter() - started:.1f} s"
        improved = self._validate(log, number) if self._validates(number) else None
        if improved is not None:
            text += f"  {improved[1]}"
        self.progress.epoch = number
        self.calls += Counter(bdam_fast.call_counts()) - before
        if improved is not None and improved[0]:
            checkpoint.save(self.run_dir / "best.pt", self._state(whole=False))
        checkpoint.write_json(self.run_dir / "calls.json", dict(self.calls))
        checkpoint.save(self.run_dir / "last.pt", self._state(whole=True))
        self.console.print(f"epoch {number:>3}/{self.config.optim.epochs}  {text}", highlight=False)

    def _validates(self, epoch: int) -> bool:
        return epoch % self.config.optim.validate_every == 0 or epoch == self.config.optim.epochs

    def _validate(self, log: IO[str], epoch: int) -> tuple[bool, str]:
        """Whether this epoch is the best so far, and what to show."""
        started = time.perf_counter()
        metrics = self.validate(self.model)
        seconds = time.perf_counter() - started
        _append(log, {"kind": "validation", "epoch": epoch, "step": self.progress.step, **metrics, "seconds": seconds})
        value = metrics[self.config.eval.select_by]
        improved = value > self.progress.best
        if improved:
            self.progress.best, self.progress.best_epoch, self.progress.beta = value, epoch, metrics["beta"]
        text = f"R-1 {metrics['R1']:.2f}  mAP {metrics['mAP']:.2f}  beta {metrics['beta']:g}  {seconds:.1f} s"
        return improved, text + ("  best" if improved else "")

    def _state(self, whole: bool) -> dict[str, Any]:
        """What best.pt holds; with `whole` also what only resuming needs."""
        state: dict[str, Any] = {
            "model": self.model.state_dict(),
            "config": to_dict(self.config),
            "fingerprint": self.fingerprint,
            "progress": dict(vars(self.progress)),
        }
        state |= {name: state["progress"][name] for name in ("epoch", "step", "best", "beta")}
        if whole:
            state |= {"optimizer": self.optimizer.state_dict(), "gradnorm": self.gradnorm.state_dict()}
            state |= {"rng": torch.get_rng_state(), "calls": dict(self.calls)}
        return state

    def _set_rate(self) -> None:
        steps, optim = len(self.loader), self.config.optim
        factor = learning_rate_factor(self.progress.step, optim.warmup_epochs * steps, optim.epochs * steps)
        for group, rate in zip(self.optimizer.param_groups, self.base_rates, strict=True):
            group["lr"] = factor * rate
        self.factor = factor

    def _rate(self) -> float:
        return self.factor * self.config.optim.lr

    def _require_finite(self, values: dict[str, float], batch: Batch) -> None:
        if not all(math.isfinite(value) for value in values.values()):
            shown = ", ".join(f"{name} {value:g}" for name, value in values.items())
            files = ", ".join(batch.paths[:4]) + (", ..." if len(batch.paths) > 4 else "")
            raise RuntimeError(
                f"training is no longer finite at step {self.progress.step + 1}: {shown}; batch: {files}"
            )


def _ranged_batches(loader: Iterable[Batch]) -> Iterator[Batch]:
    """The loader's batches, with a range round the wait for each."""
    batches = iter(loader)
    while True:
        with span("data"):
            batch = next(batches, None)
        if batch is None:
            return
        yield batch


def _numbers(losses: dict[str, Tensor]) -> dict[str, float]:
    return {name: float(value.detach()) for name, value in losses.items()}


def _append(log: IO[str], line: dict[str, Any]) -> None:
    log.write(json.dumps(line, allow_nan=False) + "\n")
    log.flush()


def _keep_epochs(path: Path, epochs: int) -> None:
    """Drops the lines after the last saved epoch, a line that a kill cut short included."""
    if not path.exists():
        return
    kept = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            break
        if line["epoch"] > epochs:
            break
        kept.append(text)
    with checkpoint.atomic(path) as file:
        file.write("".join(text + "\n" for text in kept).encode())
