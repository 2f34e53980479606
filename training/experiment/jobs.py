"""What the processes of an experiment do: train a run, evaluate it, or time a configuration."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from training.config import Config, from_dict
from training.data.datasets import Dataset, read_dataset
from training.data.loader import TrainLoader
from training.data.tokenizer import build_tokenizer
from training.engine import checkpoint
from training.engine.trainer import Trainer
from training.evaluation import dual
from training.evaluation.run_evaluation import evaluate
from training.train import train

# Steps that are timed after one that is not, and images of the pass through the evaluation that is timed.
STEPS, IMAGES = 4, 64


def train_run(values: dict[str, Any], folder: Path) -> None:
    """Trains the configuration `values` (config.to_dict) into `folder`, or what is left of it."""
    # config.json is the first file of a run.
    train(from_dict(values), folder, resume=(folder / "config.json").exists())


def evaluate_run(folder: Path) -> dict[str, Any]:
    """Contents of the eval.json of a trained run."""
    return evaluate(folder)[0]


def time_configurations(configurations: Sequence[dict[str, Any]]) -> list[dict[str, float]]:
    """Seconds that a run of each configuration would take: {"start", "training", "evaluation"}.

    Measured on a few steps and a few images: the first epoch's, which decode images that later epochs find decoded, so
    training is overestimated a little. Raises what reading the data and training raise.
    """
    datasets: dict[Any, Dataset] = {}
    results = []
    for values in configurations:
        started, config = time.perf_counter(), from_dict(values)
        dataset = datasets.get(config.data) or read_dataset(config.data)
        results.append(_time(config, dataset, time.perf_counter() - started))
        datasets[config.data] = dataset
    # Reading the data counts for every run; only the first configuration's measurement has it.
    start = max(result["start"] for result in results)
    return [result | {"start": start} for result in results]


def _time(config: Config, dataset: Dataset, read: float) -> dict[str, float]:
    started = time.perf_counter()
    torch.manual_seed(config.seed)
    texts = [text for r in dataset.splits["train"] for text in (*r.captions, r.identity, r.clothing)]
    tokenizer = build_tokenizer(config.model.text, texts)
    model = checkpoint.build_model(config, tokenizer)
    loader = TrainLoader(dataset, tokenizer, config.data, config.seed)
    loader.set_epoch(0)
    with tempfile.TemporaryDirectory() as folder:
        validate = partial(dual.validate, records=dataset.splits["val"], tokenizer=tokenizer, config=config)
        trainer = Trainer(config, model, loader, Path(folder), validate, fingerprint=dataset.fingerprint)
        start = read + time.perf_counter() - started
        model.train()
        stamps = []
        for batch, _ in zip(loader, range(STEPS + 1), strict=False):
            trainer.train_step(batch)
            stamps.append(time.perf_counter())
    step = (stamps[-1] - stamps[0]) / max(len(stamps) - 1, 1) if len(stamps) > 1 else stamps[0] - started
    image = _time_image(config, model, dataset, tokenizer)
    optim = config.optim
    validations = -(-optim.epochs // optim.validate_every)
    return {
        "start": start,
        "training": step * optim.epochs * len(loader),
        "evaluation": image * (validations * len(dataset.splits["val"]) + len(dataset.splits["test"])),
    }


def _time_image(config: Config, model: Any, dataset: Dataset, tokenizer: Any) -> float:
    """Seconds an image of a split, its captions and decoding included."""
    records = dataset.splits["test"][:IMAGES]
    started = time.perf_counter()
    dual.embed_dual(model, records, tokenizer, config)
    return (time.perf_counter() - started) / len(records)
