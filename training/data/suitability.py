"""Checks of valid data against the configuration that is trained on them: what it cannot learn from is refused, or said."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from training.config import Config
from training.data.datasets import Dataset
from training.data.sampler import PKSampler

if TYPE_CHECKING:
    from training.data.loader import TrainLoader

# Option of a run without the fusion.
NO_FUSION = "--model.fusion.no-enabled"


def asks_for_other(config: Config) -> bool:
    """True if InfoNCE asks f_final for a caption, and another text of its image is fused (reading 15)."""
    loss = config.loss
    asked = config.model.fusion.enabled and loss.info_nce and loss.final_info_nce
    return asked and loss.final_text == "other" and loss.info_nce_texts != "identity"


def without_other(texts: Iterable[tuple[Sequence[str], str]]) -> int:
    """Number of images that have one text only, given the captions and the identity text ("": none) of each."""
    return sum(len({text.strip() for text in (*captions, identity)} - {""}) < 2 for captions, identity in texts)


def require_other_texts(config: Config, dataset: Dataset) -> None:
    """Raises ValueError where every training image has one text only, which would be fused and asked for: f_final would learn to
    copy it."""
    images = len(dataset.splits["train"])
    if asks_for_other(config) and _alone(dataset) == images:
        raise ValueError(
            f"loss.final_info_nce needs a second text of the training images of {dataset.root}, got one caption of each of "
            f"{images:,} and no identity text: f_final would be asked for the caption that it is fused with; train with "
            f"{NO_FUSION}, or with --loss.no-final-info-nce, or generate texts (`python -m training.describe generate`)"
        )


def training_warnings(config: Config, dataset: Dataset, loader: TrainLoader) -> list[str]:
    """Sentences about data that can be trained on, but not in full."""
    warnings, images = [], len(dataset.splits["train"])
    if cut := loader.table.cut:
        limit = config.data.text_length
        warnings.append(f"{cut:,} training texts are longer than data.text_length ({limit} tokens) and are cut")
    if asks_for_other(config) and (alone := _alone(dataset)):
        warnings.append(
            f"{alone:,} of {images:,} training images have one text only, which f_final is fused with and asked for: it learns "
            f"nothing from these ({NO_FUSION} trains without it)"
        )
    if isinstance(loader.sampler, PKSampler) and (shortage := loader.sampler.shortage()):
        warnings.append(shortage)
    return warnings


def _alone(dataset: Dataset) -> int:
    return without_other((record.captions, record.identity) for record in dataset.splits["train"])
