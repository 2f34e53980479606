"""Training with the operators of two backends: loss curves side by side, and seconds.

`python -m bench.pipeline.training --data data/synthetic --epochs 2` trains the same run twice, with backend "cpu" and with
"reference", prints both curves and their largest difference, and appends one row each to bench/results/.
`--stages` prints the time of every stage of a step instead, `--full-size` runs one step with encoders of the published sizes.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from bench.harness import measure, results
from bench.pipeline import full_size_step, training_stages
from training.config import Backend
from training.config.recipes import get_recipe
from training.train import train

BACKENDS: tuple[Backend, ...] = ("cpu", "reference")


@dataclass(frozen=True)
class Arguments:
    """Recipe, data, and the kind of measurement."""

    # Data folder in the CUHK-PEDES layout.
    data: str = "data/synthetic"
    # Recipe that is trained.
    recipe: str = "synthetic"
    # Epochs of each backend.
    epochs: int = 2
    # Seed of both runs.
    seed: int = 0
    # Train in float64: in float32 the training amplifies a rounding error a hundredfold every 20 steps, so that after 45
    # steps two thread counts of the same backend differ by 1e-3 as well.
    float64: bool = False
    # Print only: do not append rows to bench/results/.
    dry: bool = False
    # Milliseconds of every stage of a training step, backends "auto" and "reference" in turn; prints only.
    stages: bool = False
    # Steps of each backend for --stages.
    steps: int = 40
    # ViT-B/16 and BERT-base with random weights: one training step, one evaluation batch, peak memory; prints only.
    full_size: bool = False
    # For --full-size: images of the batch.
    images: int = 64
    # For --full-size: micro-batches.
    accumulate: int = 16
    # For --full-size: recompute activations.
    checkpointing: bool = True
    # For --full-size: precision of the autocast.
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"


@contextmanager
def double_precision() -> Iterator[None]:
    """Makes new parameters float64 meanwhile, and every float32 tensor that enters a module."""

    def widen(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        wide = (x.double() if isinstance(x, Tensor) and x.dtype == torch.float32 else x for x in inputs)
        return tuple(wide)

    hook = nn.modules.module.register_module_forward_pre_hook(widen)
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)
        hook.remove()


def steps(arguments: Arguments, backend: Backend, folder: Path) -> list[dict[str, Any]]:
    """Trains with the operators of `backend` and returns the step lines of its metrics.jsonl.

    The schedule is the recipe's own with another number of epochs, so both backends see the same one.
    """
    config = get_recipe(arguments.recipe)
    optim = replace(
        config.optim, epochs=arguments.epochs, warmup_epochs=min(config.optim.warmup_epochs, arguments.epochs - 1)
    )
    data = replace(config.data, root=arguments.data)
    config = replace(config, seed=arguments.seed, optim=optim, data=data, model=replace(config.model, backend=backend))
    with double_precision() if arguments.float64 else nullcontext():
        train(config, folder)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == "step"]


def main() -> None:
    """Prints the budget of a step, the step at full size, or the comparison of two whole runs."""
    arguments = tyro.cli(Arguments, description=__doc__)
    if arguments.stages:
        config = get_recipe(arguments.recipe)
        config = replace(config, seed=arguments.seed, data=replace(config.data, root=arguments.data))
        training_stages.run(config, arguments.steps)
    elif arguments.full_size:
        a = arguments
        config = full_size_step.configuration(a.images, a.accumulate, a.checkpointing, a.precision)
        full_size_step.run(config, a.images)
    else:
        compare(arguments)


def compare(arguments: Arguments) -> None:
    """Trains with both backends and prints the comparison."""
    for op in ("selective_scan", "causal_conv1d", "hsic"):
        measure.require_tests(op)
    with tempfile.TemporaryDirectory() as folder:
        curves = {backend: steps(arguments, backend, Path(folder) / backend) for backend in BACKENDS}
    ours, theirs = (curves[backend] for backend in BACKENDS)
    shown = Table("step", *(f"loss, {backend}" for backend in BACKENDS), "difference")
    stride = max(1, len(ours) // 20)
    gaps = [abs(a["loss"] - b["loss"]) for a, b in zip(ours, theirs, strict=True)]
    for a, b, gap in list(zip(ours, theirs, gaps, strict=True))[::stride]:
        shown.add_row(str(a["step"]), f"{a['loss']:.6f}", f"{b['loss']:.6f}", f"{gap:.1e}")
    seconds = {backend: sum(line["seconds"] for line in curves[backend]) for backend in BACKENDS}
    Console().print(shown)
    print(f"largest difference over {len(gaps)} steps: {max(gaps):.2e}")
    print(", ".join(f"{backend} {seconds[backend]:.1f} s" for backend in BACKENDS), end="; ")
    print(f"reference takes {seconds['reference'] / seconds['cpu']:.2f} times as long")
    if not arguments.dry:
        print(results.append([_row(arguments, backend, curves[backend], seconds) for backend in BACKENDS]))


def _row(
    arguments: Arguments, backend: str, curve: list[dict[str, Any]], seconds: dict[Backend, float]
) -> dict[str, str]:
    milliseconds = [line["seconds"] * 1e3 for line in curve]
    times = measure.timing(milliseconds)
    return {
        "op": "training",
        "shape": f"{arguments.recipe}, {len(curve)} steps",
        "dtype": "float64" if arguments.float64 else "float32",
        "direction": "step",
        "variant": "bdam_fast" if backend == "cpu" else "reference loop",
        "kind": "ours" if backend == "cpu" else "eager",
        **measure.numbers(times, times.median),
        "times_ours": f"{sum(milliseconds) / 1e3 / seconds['cpu']:.4g}",
        "note": "times_ours compares whole runs; the runs follow each other",
    }


if __name__ == "__main__":
    main()
