"""Losses of a model on a fixed sample, and the norms of their gradients on the visual tokens."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from training.config import Config, DataConfig
from training.data.datasets import Dataset, Record
from training.data.loader import TrainLoader, build_sampler
from training.engine.gradnorm import backward_tasks
from training.engine.losses import fixed_losses, task_losses
from training.models.retrieval_model import RetrievalModel

# Training batches of the sample whose losses and norms are averaged.
BATCHES = 3


def fill_batches(records: Sequence[Record], config: Config) -> bool:
    """True if the records are enough people for a training batch."""
    try:
        build_sampler([record.id for record in records], _data(records, config), config.seed)
    except ValueError:
        return False
    return True


def batches(dataset: Dataset, records: Sequence[Record], tokenizer: Any, config: Config) -> list[Any]:
    """The first BATCHES training batches that the records, which have generated texts, make."""
    # One epoch of these images; val is only read where a cache is packed.
    sample = replace(dataset, splits={"train": list(records), "val": [], "test": []})
    loader = TrainLoader(sample, tokenizer, _data(records, config), config.seed)
    loader.set_epoch(0)
    return [batch for batch, _ in zip(loader, range(BATCHES), strict=False)]


def _data(records: Sequence[Record], config: Config) -> DataConfig:
    """Batches no larger than the records allow."""
    people, data = len({record.id for record in records}), config.data
    return replace(
        data, workers=0, ids_per_batch=min(data.ids_per_batch, people), batch_size=min(data.batch_size, len(records))
    )


def loss_gradients(model: RetrievalModel, sample: Sequence[Any], config: Config) -> dict[str, tuple[float, float]]:
    """(value, norm) of every loss, unweighted but for the fixed weight of the gate's, mean over the batches. Training mode with
    fixed random numbers; the model and torch's generators are left as they are."""
    device, sums = next(model.parameters()).device, dict[str, list[float]]()
    model = copy.deepcopy(model).train()
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        for batch in sample:
            batch = batch.to(device)
            leaves = model.encode(batch).leaves()
            features = model.heads(leaves).to_float32()
            labels = batch.ids_B, batch.clothing_group_B
            losses = task_losses(features, *labels, config.loss, config.model.backend, batch.has_other_B)
            losses |= fixed_losses(features, config.loss)
            norms = backward_tasks(losses, dict.fromkeys(losses, 1.0), {}, leaves.tensors(), [])
            for name, loss in losses.items():
                value, norm = sums.setdefault(name, [0.0, 0.0])
                sums[name] = [value + float(loss.detach()) / len(sample), norm + norms[name] / len(sample)]
    return {name: (value, norm) for name, (value, norm) in sums.items()}


def new_model(config: Config, tokenizer: Any, build: Any) -> RetrievalModel:
    """The model as training began with it; torch's generators are left as they are."""
    with torch.random.fork_rng([]):
        # Not torch.manual_seed, which seeds the cards too.
        torch.default_generator.manual_seed(config.seed)
        model: RetrievalModel = build(config, tokenizer)
    return model
