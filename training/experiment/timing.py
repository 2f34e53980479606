"""Measures how long runs would take: `python -m training.experiment.timing CONFIG.json ... [--out FILE]`.

Prints or writes the seconds of each configuration as JSON: {FILE: {"start", "training", "evaluation"}}.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from training.config import Config
from training.config.command_line import read_config
from training.utils import cli
from training.utils.cli import Device
from training.utils.io import write_json

if TYPE_CHECKING:
    import torch

    from training.data.datasets import Dataset

# Steps that are timed after one that is not, and images of the pass through the evaluation that is timed.
STEPS, IMAGES = 4, 64


@dataclass(frozen=True)
class Arguments:
    """Arguments of the command."""

    # Files such as the config.json of a run.
    configs: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="CONFIG ...")]
    # File to write; by default the seconds are printed.
    out: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    device: Device = "auto"


def main(argv: Sequence[str]) -> None:
    """Entry point; raises what `read_config` and `time_configurations` raise."""
    arguments = cli.parse(Arguments, argv, "training.experiment.timing", __doc__)
    configs = [read_config(path) for path in arguments.configs]
    times = time_configurations(configs, arguments.device)
    seconds = dict(zip(map(str, arguments.configs), times, strict=True))
    if arguments.out is None:
        print(json.dumps(seconds, indent=1))
    else:
        write_json(arguments.out, seconds)


def time_configurations(configs: Sequence[Config], device: str = "auto") -> list[dict[str, float]]:
    """Seconds that a run of each configuration would take: {"start", "training", "evaluation"}.

    device: as in `select_device`. Measured on a few steps and a few images: those of the first epoch, which decode images that
    later epochs find decoded, so training is overestimated a little. Raises what reading the data and training raise.
    """
    from training.data.datasets import read_dataset
    from training.engine.device import select_device

    datasets: dict[Any, Dataset] = {}
    place = select_device(device)
    results = []
    for config in configs:
        started = time.perf_counter()
        dataset = datasets.get(config.data) or read_dataset(config.data)
        results.append(_time(config, dataset, time.perf_counter() - started, place))
        datasets[config.data] = dataset
    # Reading the data counts for every run; only the first configuration's measurement has it.
    start = max((result["start"] for result in results), default=0.0)
    return [result | {"start": start} for result in results]


def _time(config: Config, dataset: Dataset, read: float, device: torch.device) -> dict[str, float]:
    from training.engine.train_run import build_trainer
    from training.evaluation import dual

    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        trainer, tokenizer = build_trainer(config, dataset, Path(folder), dual.validate, device=device)
        trainer.loader.set_epoch(0)
        start = read + time.perf_counter() - started
        trainer.model.train()
        stamps = []
        for batch, _ in zip(trainer.loader, range(STEPS + 1), strict=False):
            trainer.train_step(batch)
            stamps.append(time.perf_counter())
    step = (stamps[-1] - stamps[0]) / max(len(stamps) - 1, 1) if len(stamps) > 1 else stamps[0] - started
    # Seconds an image of a split, its captions and decoding included.
    records, started = dataset.splits["test"][:IMAGES], time.perf_counter()
    dual.embed_dual(trainer.model, records, tokenizer, config)
    image = (time.perf_counter() - started) / len(records)
    optim = config.optim
    validations = -(-optim.epochs // optim.validate_every)
    return {
        "start": start,
        "training": step * optim.epochs * len(trainer.loader),
        "evaluation": image * (validations * len(dataset.splits["val"]) + len(dataset.splits["test"])),
    }


if __name__ == "__main__":
    sys.exit(cli.run(main))
