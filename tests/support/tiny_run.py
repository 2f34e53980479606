"""The smallest run that goes through every stage: encoders of width 16, three epochs in a second."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from training.config import (
    BdamConfig,
    Config,
    DataConfig,
    EncoderConfig,
    FusionConfig,
    GradNormConfig,
    ModelConfig,
    OptimConfig,
)
from training.config.recipes import get_recipe
from training.data.loader import Batch, TrainLoader

OPTIONS = {
    "data.image-size": "32 16",
    "data.text-length": "16",
    "data.pad": "4",
    "data.erase": "0.5",
    "data.flip": "0.5",
    "data.ids-per-batch": "3",
    "data.images-per-id": "2",
    "model.visual.width": "16",
    "model.visual.layers": "1",
    "model.visual.heads": "2",
    "model.visual.patch-size": "8",
    "model.visual.stem": "plain",
    "model.text.width": "16",
    "model.text.layers": "1",
    "model.text.heads": "2",
    "model.text.stem": "plain",
    "model.text.feed-forward": "4",
    "model.bdam.self-layers": "1",
    "model.bdam.heads": "2",
    "model.fusion.width": "8",
    "model.fusion.state": "4",
    "model.embedding": "8",
    "gradnorm.every": "1",
    "gradnorm.lr": "0.025",
    "gradnorm.warm-steps": "20",
    "optim.lr": "1e-3",
    "optim.epochs": "3",
    "optim.warmup-epochs": "1",
}


def tiny_options(root: Path) -> list[str]:
    """Command-line options that make the recipe `synthetic` tiny."""
    return [word for key, value in OPTIONS.items() for word in (f"--{key}", *value.split())] + [
        "--data.root",
        str(root),
    ]


def tiny_config(root: Path, **stages: Any) -> Config:
    """The configuration of `tiny_options` with the recipe `synthetic`; `stages` replace whole stages."""
    config = replace(
        get_recipe("synthetic"),
        data=DataConfig(root=str(root), image_size=(32, 16), text_length=16, ids_per_batch=3, images_per_id=2, pad=4),
        model=ModelConfig(
            visual=EncoderConfig(width=16, layers=1, heads=2, patch_size=8),
            text=EncoderConfig(width=16, layers=1, heads=2),
            bdam=BdamConfig(self_layers=1, cross_layers=1, heads=2),
            fusion=FusionConfig(width=8, layers=1, state=4),
            embedding=8,
        ),
        gradnorm=GradNormConfig(),
        optim=OptimConfig(lr=1e-3, epochs=3, warmup_epochs=1),
    )
    return replace(config, **stages)


def read_lines(run_dir: Path) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl without the measured times and the checksums, which cover them."""
    lines = [json.loads(text) for text in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in ("seconds", "crc32")} for line in lines]


def read_events(run_dir: Path) -> dict[str, list[tuple[int, float]]]:
    """(step, value) of every TensorBoard point of a run by name, without the measured times."""
    events = EventAccumulator(str(run_dir / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    names = [name for name in events.Tags()["scalars"] if "second" not in name]
    return {name: [(point.step, point.value) for point in events.Scalars(name)] for name in names}


def same_state(left: Any, right: Any) -> bool:
    """True if two checkpoints have the same bits."""
    if isinstance(left, dict):
        return (
            isinstance(right, dict) and left.keys() == right.keys() and all(same_state(left[k], right[k]) for k in left)
        )
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(map(same_state, left, right))
    return torch.equal(left, right) if isinstance(left, torch.Tensor) else left == right


def interrupt() -> None:
    raise KeyboardInterrupt


class Interrupting:
    """A loader that interrupts the process after a total number of batches, or does what else `act` does."""

    def __init__(self, loader: TrainLoader, batches: int, act: Callable[[], None] = interrupt) -> None:
        self.loader, self.left, self.act = loader, batches, act

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Batch]:
        for batch in self.loader:
            if not self.left:
                self.act()
            self.left -= 1
            yield batch
