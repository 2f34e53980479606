"""A configuration against the memory of the machine: refused with what would fit, or changed to it."""

from __future__ import annotations

from collections.abc import Callable

import torch

from training.config import Config
from training.data.loader import TrainLoader
from training.engine.memory_estimate import MemoryEstimate, estimate_memory, smaller_steps
from training.models.retrieval_model import RetrievalModel
from training.utils.machine import available_memory_mb, resident_memory_mb

# Share of the memory that a small model may need by a rough bound, below which no dry step is made.
NEGLIGIBLE = 0.02
# Bytes per image and text token of a step, in widths of an encoder layer: measured are 20 to 40.
WIDTHS_PER_LAYER = 100


def fitting_config(
    model: RetrievalModel, config: Config, loader: TrainLoader, write: Callable[[str], None], *, fit: bool
) -> Config:
    """`config`, or with `fit` the first of `smaller_steps` that fits; `write` gets a sentence about the estimate.

    Raises RuntimeError, with the options that would fit, when the estimate is above what the machine has.
    """
    device = next(model.parameters()).device
    process = resident_memory_mb()
    found = _cuda_memory(device) if device.type == "cuda" else available_memory_mb()
    if found is None or (device.type == "cpu" and _rough_mb(model, config) < NEGLIGIBLE * found[0]):
        return config
    available, limit = found
    estimate = estimate_memory(model, config, loader, process)
    # The process so far is in the estimate, and no longer available.
    has = available + (process if device.type == "cpu" else 0.0)
    text = f"memory: about {estimate}, available {has:,.0f} MB ({limit})"
    if estimate.total <= has:
        write(text)
        return config
    smaller = _first_fitting(model, config, loader, process, has)
    if smaller is None:
        raise RuntimeError(
            f"{text}; no number of micro-batches fits: take a smaller model, fewer images in a batch, or a larger machine"
        )
    changed, needed = smaller
    words = f"--optim.accumulate {changed.optim.accumulate}" + " --optim.checkpointing" * changed.optim.checkpointing
    if not fit:
        raise RuntimeError(f"{text}; {words} needs about {needed}: give these options, or --fit to take them")
    write(f"{text}; trained with {words} instead: about {needed}")
    return changed


def _first_fitting(
    model: RetrievalModel, config: Config, loader: TrainLoader, process: float, has: float
) -> tuple[Config, MemoryEstimate] | None:
    for changed in smaller_steps(config):
        estimate = estimate_memory(model, changed, loader, process)
        if estimate.total <= has:
            return changed, estimate
    return None


def _cuda_memory(device: torch.device) -> tuple[float, str]:
    free, _ = torch.cuda.mem_get_info(device)
    return (free + torch.cuda.memory_allocated(device)) / 2**20, f"free memory of {torch.cuda.get_device_name(device)}"


def _rough_mb(model: RetrievalModel, config: Config) -> float:
    """An upper bound of a training's memory, without a dry step: a dry step takes seconds, which a small model need not wait."""
    data = config.data
    batch = data.ids_per_batch * data.images_per_id if data.images_per_id else data.batch_size
    area = data.image_size[0] * data.image_size[1]
    layers = config.model.visual.layers + config.model.text.layers + config.model.bdam.self_layers
    tokens = batch * (area / config.model.visual.patch_size**2 + 4 * data.text_length)
    width = max(config.model.visual.width, config.model.text.width)
    pretrained = config.model.visual.pretrained or config.model.text.pretrained
    activations = 4.0 * tokens * width * layers * WIDTHS_PER_LAYER + 4.0 * batch * area * 100
    weights = 16.0 * sum(p.numel() for p in model.parameters())
    return float("inf") if pretrained else (weights + activations) / 2**20
