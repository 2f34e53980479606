"""Time of every stage of a training step, with the operators of two backends in turn."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from bdam_fast import profiling
from training.config import Backend, Config
from training.data.datasets import Dataset, read_dataset
from training.data.loader import Batch, TrainLoader
from training.data.tokenizer import build_tokenizer
from training.engine import checkpoint
from training.engine.trainer import Trainer

BACKENDS: tuple[Backend, ...] = ("auto", "reference")
# Line of a budget -> its spans; the last line is the time outside of all spans.
STAGES: dict[str, tuple[str, ...]] = {
    "data": ("data",),
    "ViT": ("visual encoder",),
    "BERT": ("text encoder",),
    "BDAM": ("bdam",),
    "fusion": ("fusion",),
    "other heads": ("heads",),
    "losses": ("losses",),
    "GradNorm": ("gradnorm norms", "gradnorm update"),
    "heads' backward": ("backward heads",),
    "encoders' backward": ("backward encoders",),
    "optimiser": ("optimiser",),
    "between stages": ("training step", "encoders"),
}
NOT_MODEL = ("data", "optimiser", "GradNorm", "between stages")
# Steps of a backend in a row before the other has its turn, so that a slow phase of the machine affects both.
TURN = 5
WARM_UP = 5


@dataclass(frozen=True)
class Budget:
    """Milliseconds of each stage in the mean step: the median over the steps that have the stage, times their share."""

    milliseconds: dict[str, float]
    # Share of GradNorm in a step that measures norms.
    gradnorm_when_measured: float
    steps: int

    def total(self) -> float:
        """Milliseconds of the mean step, data included."""
        return sum(self.milliseconds.values())

    def model(self) -> float:
        """Milliseconds of forward and backward pass: without data, optimiser and GradNorm."""
        return sum(value for stage, value in self.milliseconds.items() if stage not in NOT_MODEL)

    def gradnorm(self) -> float:
        """GradNorm's share of the mean step."""
        return self.milliseconds["GradNorm"] / self.total()


def budget(steps: Sequence[Mapping[str, float]]) -> Budget:
    """Budget of recorded steps, each a mapping from span to its own seconds. Raises ValueError for a span of no stage."""
    unknown = {name for step in steps for name in step} - {name for names in STAGES.values() for name in names}
    if unknown:
        raise ValueError(f"spans {sorted(unknown)} belong to no stage of the budget")
    milliseconds, shares = {}, []
    for stage, names in STAGES.items():
        # A span without a pass in it (norms that are not measured in this step) takes microseconds.
        sums = [1e3 * sum(step.get(name, 0.0) for name in names) for step in steps]
        if stage == "GradNorm":
            measured = [i for i, step in enumerate(steps) if "gradnorm update" in step]
            shares = [sums[i] / (1e3 * sum(steps[i].values())) for i in measured]
            sums = [sums[i] for i in measured]
        milliseconds[stage] = median(sums) * len(sums) / len(steps) if sums else 0.0
    return Budget(milliseconds, median(shares) if shares else 0.0, len(steps))


def measure(config: Config, steps: int, show: bool = True) -> dict[Backend, Budget]:
    """Measures the budget of each backend, after WARM_UP steps; `steps` are rounded up to whole turns.

    Raises RuntimeError when the first losses of the backends are not the same up to rounding.
    """
    dataset = read_dataset(config.data)
    recorded: dict[Backend, list[dict[str, float]]] = {backend: [] for backend in BACKENDS}
    first: dict[Backend, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        trainers = {name: _trainer(config, name, dataset, Path(folder)) for name in BACKENDS}
        batches = {name: _endless(trainer.loader) for name, trainer in trainers.items()}
        turns = range(-(-(steps + WARM_UP) // TURN))
        for turn in track(turns, "steps", transient=True, disable=not show):
            for name, trainer in trainers.items():
                # The same dropout for both.
                torch.manual_seed(config.seed + turn)
                for _ in range(TURN):
                    seconds, loss = _step(trainer, batches[name])
                    first.setdefault(name, loss)
                    recorded[name].append(seconds)
    ours, theirs = (first[name] for name in BACKENDS)
    if abs(ours - theirs) > 1e-3 * abs(theirs):
        raise RuntimeError(f"bench: the backends disagree in the first loss: {BACKENDS[0]} {ours}, reference {theirs}")
    return {name: budget(kept[WARM_UP:]) for name, kept in recorded.items()}


def _trainer(config: Config, backend: Backend, dataset: Dataset, folder: Path) -> Trainer:
    config = replace(config, model=replace(config.model, backend=backend))
    torch.manual_seed(config.seed)
    tokenizer = build_tokenizer(config.model.text, dataset.train_texts())
    model = checkpoint.build_model(config, tokenizer).train()
    loader = TrainLoader(dataset, tokenizer, config.data, config.seed)
    # More epochs than any measurement takes: the schedule never ends.
    config = replace(config, optim=replace(config.optim, epochs=1000))
    return Trainer(config, model, loader, folder, lambda model: {}, inputs=checkpoint.Inputs(dataset.fingerprint))


def _endless(loader: TrainLoader) -> Iterator[Batch]:
    epoch = 0
    while True:
        loader.set_epoch(epoch)
        yield from loader
        epoch += 1


def _clock(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _step(trainer: Trainer, batches: Iterator[Batch]) -> tuple[dict[str, float], float]:
    with profiling.record(lambda: _clock(trainer.stepper.device)) as seconds:
        with profiling.span("data"):
            batch = next(batches)
        with profiling.span("training step"):
            step = trainer.train_step(batch)
    return seconds, step.loss


def make_table(budgets: Mapping[Backend, Budget]) -> Table:
    """Table with a row per stage, a column per backend, and the ratio of the reference's time to ours."""
    ours, theirs = (budgets[name] for name in BACKENDS)
    shown = Table(
        title=f"milliseconds of a training step, {ours.steps} steps of each, {torch.get_num_threads()} threads"
    )
    for column in ("stage", "auto", "of the step", "reference", "of the step", "reference / auto"):
        shown.add_column(column, justify="left" if column == "stage" else "right")
    for stage in STAGES:
        a, b = ours.milliseconds[stage], theirs.milliseconds[stage]
        shares = [f"{100 * x / budgets[name].total():.1f} %" for name, x in zip(BACKENDS, (a, b), strict=True)]
        shown.add_row(stage, f"{a:.2f}", shares[0], f"{b:.2f}", shares[1], f"{b / a:.2f}" if a else "")
    for text, a, b in (
        ("forward + backward", ours.model(), theirs.model()),
        ("whole step", ours.total(), theirs.total()),
    ):
        shown.add_row(text, f"{a:.2f}", "", f"{b:.2f}", "", f"{b / a:.2f}", style="bold")
    return shown


def run(config: Config, steps: int) -> None:
    """Measures and prints."""
    budgets = measure(config, steps)
    ours, theirs = (budgets[name] for name in BACKENDS)
    Console(width=110).print(make_table(budgets))
    print(
        f"GradNorm (norms in every {config.gradnorm.every}. step): {100 * ours.gradnorm():.1f} % of the mean step, ",
        end="",
    )
    print(f"{100 * ours.gradnorm_when_measured:.1f} % of a step that measures them")
    print(f"forward + backward: reference takes {theirs.model() / ours.model():.2f} times as long as auto")
