"""Training by several ranks beside one process: `python -m bench.pipeline.scale.same_numbers`.

Steps of the recipe `synthetic` with its model, on fewer images a step than it has and a miniature rendered set. torchrun starts
1 rank and several ones, by gloo, with one thread each; for every case the largest difference of each kind of number is printed,
relative to numbers above 1 and absolute below. In float32 a second run of one process, with two threads, shows the noise.
"""

from __future__ import annotations

import math
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import tyro

from bench.harness.gpu_table import markdown
from bench.pipeline.scale.kills import ROOT, finish, torchrun
from training.config import Config
from training.config.recipes import get_recipe
from training.data.datasets import read_dataset
from training.engine.device import CPU
from training.engine.distributed.group import joined
from training.engine.train_run import build_trainer
from training.utils.preemption import preemption

# Fields of a configuration, as STAGE.FIELD, that differ from those of the recipe in float64 on the references.
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "micro-batches": {"optim.accumulate": 2},
    "checkpointing": {"optim.checkpointing": True},
    "EMA": {"optim.ema": 0.9},
    "backend cpu": {"model.backend": "cpu"},
    "float32": {"model.backend": "cpu", "optim.precision": "fp32"},
    "bf16": {"model.backend": "cpu", "optim.precision": "bf16"},
    "fp16": {"model.backend": "cpu", "optim.precision": "fp16"},
}
SET = "--ids 24 --val-ids 2 --test-ids 4 --images-per-id 4 --height 160 --width 64".split()
GROUPS = ("losses", "norms", "weights")
# Biases before a batch normalisation, which takes them out again, and the running means that follow them: their gradient is
# rounding, of which Adam makes whole steps.
REMOVED = ("identity_projection.2.0.bias", "text_projection.0.bias", "fusion.projection.0.bias", "fusion.norm.bias")


@dataclass(frozen=True)
class Arguments:
    """Arguments of the command."""

    # Cases; none: all.
    cases: tuple[str, ...] = ()
    # Numbers of ranks beside one process.
    ranks: tuple[int, ...] = (2, 4)
    # Optimiser steps.
    steps: int = 50
    # Images of a step, two of each person.
    images: int = 16
    # Folder of the data and the results; empty: none are kept.
    out: str = ""
    # Threads of a process.
    threads: int = 1
    # File of a rank that torchrun has started.
    worker: str = ""


def configuration(case: str, images: int, root: str) -> Config:
    """Recipe `synthetic` in float64 on the references, changed as the case says."""
    config = get_recipe("synthetic")
    config = replace(config, data=replace(config.data, root=root, ids_per_batch=images // config.data.images_per_id))
    for key, value in {"model.backend": "reference", "optim.precision": "fp64", **CASES[case]}.items():
        stage, name = key.split(".")
        config = replace(config, **{stage: replace(getattr(config, stage), **{name: value})})
    return replace(config, gradnorm=replace(config.gradnorm, every=1))


def work(arguments: Arguments) -> None:
    """Steps of one rank; the first one writes the results."""
    torch.set_num_threads(arguments.threads)
    config = configuration(arguments.cases[0], arguments.images, f"{arguments.out}/data")
    with preemption() as signals, joined(lambda local_rank: CPU, signals) as (ranks, device):
        trainer, _ = build_trainer(
            config, read_dataset(config.data), Path(arguments.out), lambda *a, **k: {}, ranks=ranks, device=device
        )
        trainer.model.train()
        steps = list[dict[str, Any]]()
        while len(steps) < arguments.steps:
            trainer.loader.set_epoch(trainer.progress.epoch)
            for batch in trainer.loader:
                if len(steps) < arguments.steps:
                    steps.append(trainer.train_step(batch)._asdict())
            trainer.progress.epoch += 1
        state = dict(trainer.model.state_dict())
        if trainer.average:
            state |= {f"average.{name}": value for name, value in trainer.average.weights.items()}
        if ranks.first:
            torch.save({"steps": steps, "state": state}, arguments.worker)


def differences(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, float]:
    """Largest difference of each kind of number: losses, norms and task weights of all steps; weights, statistics of batch
    normalisations and what these take out of the model after them."""
    found = {
        group: max(_apart(_tensor(a[group]), _tensor(b[group])) for a, b in pairs)
        for group in GROUPS
        if (pairs := [*zip(ours["steps"], theirs["steps"], strict=True)])
    }
    kinds = {"model": 0.0, "statistics": 0.0, "removed": 0.0}
    for name, value in theirs["state"].items():
        plain = name.removeprefix("average.")
        running = plain.endswith(("running_mean", "running_var"))
        removed = plain in REMOVED or plain.endswith(".1.running_mean")
        kind = "removed" if removed else "statistics" if running else "model"
        kinds[kind] = max(kinds[kind], _apart(ours["state"][name].double(), value.double()))
    return found | kinds


def _tensor(values: dict[str, float]) -> torch.Tensor:
    return torch.tensor([*values.values()], dtype=torch.float64)


def _apart(a: torch.Tensor, b: torch.Tensor) -> float:
    """Largest difference; infinite where only one of two numbers is finite."""
    if not torch.equal(a.isfinite(), b.isfinite()):
        return math.inf
    apart = (a - b).abs() / b.abs().clamp_min(1.0)
    return float(apart.nan_to_num(0.0).max()) if len(apart.flatten()) else 0.0


def table(arguments: Arguments, folder: Path) -> Iterator[list[str]]:
    """Rows: case, ranks, and the largest difference of each kind of number."""
    for case in arguments.cases or CASES:
        one = _run(arguments, folder, case, 1, 1)
        others = {f"{ranks} ranks": (ranks, 1) for ranks in arguments.ranks}
        if configuration(case, arguments.images, "").optim.precision != "fp64":
            others = {"1, two threads": (1, 2)} | others
        for words, (ranks, threads) in others.items():
            found = differences(_run(arguments, folder, case, ranks, threads), one)
            yield [case, words, *(f"{value:.1e}" for value in found.values())]


def _run(arguments: Arguments, folder: Path, case: str, ranks: int, threads: int) -> dict[str, Any]:
    path = folder / f"{case.replace(' ', '-')}-{ranks}-{threads}.pt"
    if not path.exists():
        words = [
            "--standalone",
            "--nproc-per-node",
            str(ranks),
            "-m",
            "bench.pipeline.scale.same_numbers",
            "--cases",
            case,
        ]
        words += ["--steps", str(arguments.steps), "--images", str(arguments.images), "--threads", str(threads)]
        # No time is measured: threads that wait leave the cores to others.
        finish(torchrun(*words, "--out", str(folder), "--worker", str(path), OMP_WAIT_POLICY="PASSIVE"))
    return torch.load(path)


def main() -> None:
    """Entry point."""
    arguments = tyro.cli(Arguments, description=__doc__)
    if arguments.worker:
        work(arguments)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(arguments.out or temporary)
        if not (folder / "data").exists():
            words = ["training.prepare", "synthetic", str(folder / "data"), *SET]
            subprocess.run([sys.executable, "-m", *words], cwd=ROOT, check=True)
        kinds = [*GROUPS, "model", "statistics", "removed"]
        print(markdown(["case", "beside 1", *kinds], []))
        for row in table(arguments, folder):
            print("| " + " | ".join(row) + " |", flush=True)


if __name__ == "__main__":
    main()
