"""Times the training step of the recipe `synthetic` on this GPU: as it is, compiled, and compiled with CUDA graphs.

`python -m bench.pipeline.compiled_step`; `make gpu` runs it last. It says which is fastest, and so what `--optim.compile` is
worth here; CUDA graphs have no option in `training` before they are known to pay. A way that fails is reported, and the others
are measured. Then the step of `cuhk-pedes` with encoders of the published sizes, as it is.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from bench.harness.results import ROOT
from bench.pipeline import full_size_step
from bench.pipeline.full_size_step import random_batch
from training.config import Config
from training.config.recipes import get_recipe
from training.data.loader import Batch
from training.engine.device import select_device
from training.engine.train_step import Stepper, configure_model
from training.models.model import Model

# Of the rendered pedestrians, about.
VOCABULARY = 600
# Steps before those that count: they compile, allocate, and record the graphs.
WARM_UP, STEPS = 4, 16
# Largest difference of a loss to that of the plain step after WARM_UP steps, relative: bfloat16 and the order of sums.
ALLOWED = 2e-2


@dataclass(frozen=True)
class Way:
    """A way to run the step; without a compiler the modules stay as they are."""

    name: str
    compiler: str = ""
    mode: str | None = None


WAYS = (
    Way("eager"),
    Way("compiled", "inductor"),
    Way("compiled with CUDA graphs", "inductor", "reduce-overhead"),
)


def make_stepper(config: Config, device: torch.device, way: Way, vocabulary: int = VOCABULARY) -> Stepper:
    """A fresh model, the same for every way, and its step."""
    torch.manual_seed(0)
    torch.compiler.reset()
    model = Model(config.model, config.loss, config.data.image_size, vocabulary, 0, config.data.text_length)
    stepper = Stepper(config, model.to(device).train())
    if way.compiler:
        configure_model(model, replace(config.optim, compile=True), way.compiler, way.mode)
    return stepper


def measure(
    config: Config, batch: Batch, device: torch.device, way: Way, steps: int = STEPS, vocabulary: int = VOCABULARY
) -> tuple[list[float], list[float]]:
    """Returns (milliseconds of each of `steps` steps, losses of the steps before them); every step waits for its losses."""
    stepper, seconds, losses = make_stepper(config, device, way, vocabulary), [], []
    for number in range(WARM_UP + steps):
        torch.compiler.cudagraph_mark_step_begin()
        started = time.perf_counter()
        result = stepper.run(batch, measure=number % config.gradnorm.every == 0)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if number < WARM_UP:
            losses.append(result.loss)
        else:
            seconds.append((time.perf_counter() - started) * 1e3)
    return seconds, losses


def compare(
    ways: Sequence[Way], measure_way: Callable[[Way], tuple[list[float], list[float]]]
) -> tuple[dict[str, float], list[str]]:
    """Returns (median milliseconds of the ways that work, by name; why the others do not); the first way has the right losses."""
    medians: dict[str, float] = {}
    problems: list[str] = []
    expected: list[float] = []
    for way in ways:
        try:
            milliseconds, losses = measure_way(way)
        except Exception as problem:  # whatever the compiler raises: the other ways are still of interest
            words = str(problem).splitlines() or [""]
            problems.append(f"{way.name}: {type(problem).__name__}: {words[0][:200]}")
            print(f"FAILED {problems[-1]}", flush=True)
            continue
        expected = expected or losses
        error = max(abs(a - b) / max(abs(b), 1e-6) for a, b in zip(losses, expected, strict=True))
        if error > ALLOWED:
            problems.append(f"{way.name}: its losses differ by {error:.1e}")
            print(f"FAILED {problems[-1]}", flush=True)
            continue
        medians[way.name] = statistics.median(milliseconds)
        print(
            f"{way.name}: {medians[way.name]:.2f} ms a step, {min(milliseconds):.2f} to {max(milliseconds):.2f}",
            flush=True,
        )
    if medians:
        fastest = min(medians, key=lambda name: medians[name])
        print(
            f"fastest: {fastest}, {medians[fastest] / medians.get('eager', medians[fastest]):.2f} of eager", flush=True
        )
    return medians, problems


def measure_published(device: torch.device, config: Config | None = None, vocabulary: int | None = None) -> str:
    """Speed and memory of the step with ViT-B/16 and BERT-base, random weights, and the recipe's batch, as text."""
    config = config or full_size_step.configuration(get_recipe("cuhk-pedes").data.batch_size, 1, False, "auto")
    vocabulary, images = vocabulary or full_size_step.VOCABULARY, config.data.ids_per_batch * config.data.images_per_id
    batch = random_batch(config, vocabulary, images)
    milliseconds, _ = measure(config, batch, device, WAYS[0], STEPS // 2, vocabulary)
    median = statistics.median(milliseconds)
    speed = f"{median:.1f} ms a step, {images / median * 1e3:.0f} images a second"
    peak = torch.cuda.max_memory_allocated(device) / 2**20 if device.type == "cuda" else 0.0
    return f"published sizes, {images} images: {speed}, {peak:.0f} MiB"


def compile_ways() -> int:
    """Runs every way with a compiler once, each in a process of its own; the largest of their exit codes."""
    command = [sys.executable, "-m", "bench.pipeline.compiled_step", "--compile", "--way"]
    processes = [subprocess.Popen([*command, str(number)], cwd=ROOT) for number in range(1, len(WAYS))]
    return max(process.wait() for process in processes)


def main() -> None:
    """Measures all ways; exits with code 1 if one of them failed."""
    parser = argparse.ArgumentParser(prog="python -m bench.pipeline.compiled_step", description=__doc__)
    parser.add_argument(
        "--compile",
        action="store_true",
        help="run the ways once, side by side, so that the compiler's caches are filled",
    )
    parser.add_argument("--way", type=int, choices=range(1, len(WAYS)), help="with --compile: this way only")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("training: there is no GPU that this PyTorch can use")
    if options.compile and options.way is None:
        sys.exit(compile_ways())
    config, device = get_recipe("synthetic"), select_device("cuda")
    batch = random_batch(config, VOCABULARY, config.data.ids_per_batch * config.data.images_per_id)
    steps = 1 if options.compile else STEPS
    ways = WAYS if options.way is None else WAYS[options.way :][:1]
    _, problems = compare(ways, lambda way: measure(config, batch, device, way, steps))
    if not options.compile:
        print(measure_published(device), flush=True)
    sys.exit("\n".join(problems) if problems else 0)


if __name__ == "__main__":
    main()
