"""Interface of a model: what training, evaluation and search need of it, whatever its parts.

Shapes: B batch, E joint embedding.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from training.config import LossConfig
from training.models.fusion import Fusion, FusionOutput, LinearMatchingHead, MatchingHead
from training.models.model_outputs import EncoderOutput, ImageEmbedding, PairFeatures

if TYPE_CHECKING:
    from training.data.loader import Batch, TextBatch

# Bounds of the learned temperature (reading 3).
TEMPERATURE_RANGE = (0.01, 0.5)


class RetrievalModel(nn.Module, ABC):
    """Two encoders, `visual` and `text`, and heads on their outputs."""

    visual: nn.Module
    text: nn.Module
    # None without a fusion, and without a matching head on it.
    fusion: Fusion | None
    matching_head: MatchingHead | LinearMatchingHead | None

    def __init__(self, loss: LossConfig) -> None:
        super().__init__()
        self.loss = loss
        start = torch.tensor(math.log(loss.temperature))
        self.log_temperature = nn.Parameter(start, requires_grad=loss.learn_temperature)

    @abstractmethod
    def encode(self, batch: Batch) -> EncoderOutput:
        """Runs both encoders on the images and the texts of a step."""

    @abstractmethod
    def heads(self, encoded: EncoderOutput) -> PairFeatures:
        """Runs everything after the encoders."""

    @abstractmethod
    def embed_images(self, images_BCHW: Tensor) -> ImageEmbedding:
        """Gallery side: embeddings of float images (B, 3, H, W)."""

    @abstractmethod
    def embed_texts(self, texts: TextBatch) -> Tensor:
        """Query side: L2-normalised text embeddings (B, E)."""

    def forward(self, batch: Batch) -> PairFeatures:
        """Features of a batch: `heads(encode(batch))`."""
        return self.heads(self.encode(batch))

    def fuse(self, images_BCHW: Tensor, texts: TextBatch) -> FusionOutput:
        """f_final and modality weights of B image-text pairs. Raises ValueError when the model has no fusion."""
        raise ValueError("Model.fuse: the model was built with fusion.enabled=False and has no fusion module")

    def towers(self) -> dict[str, str]:
        """Descriptions of pretrained encoders; {} without any."""
        return {}

    def temperature(self) -> Tensor:
        """Scalar tau within TEMPERATURE_RANGE; the parameter itself is clamped, so that its gradient never vanishes outside."""
        with torch.no_grad():
            self.log_temperature.clamp_(math.log(TEMPERATURE_RANGE[0]), math.log(TEMPERATURE_RANGE[1]))
        return self.log_temperature.exp()

    def encoder_parameters(self) -> list[nn.Parameter]:
        """Trainable parameters of the encoders (text adapter included)."""
        return [p for part in (self.visual, self.text) for p in part.parameters() if p.requires_grad]

    def head_parameters(self) -> list[nn.Parameter]:
        """Trainable parameters of the heads."""
        encoder = {id(p) for part in (self.visual, self.text) for p in part.parameters()}
        return [p for p in self.parameters() if p.requires_grad and id(p) not in encoder]

    def backbone_scales(self) -> dict[str, tuple[nn.Module, float]]:
        """Parts with a learning rate of their own: name, module, factor of the base rate."""
        return {}

    def parameter_groups(self, base_lr: float) -> list[dict[str, Any]]:
        """Optimiser groups with `name`, `params` and `lr` (the backbone of an encoder at `lr_scale` times the base rate).

        Groups named "... without decay" hold biases, norms, the temperature and parameters marked `_no_weight_decay` (Mamba's
        A and D), with weight_decay 0; the others leave weight_decay to the optimiser.
        """
        scales = self.backbone_scales().items()
        owner = {id(p): (name, scale) for name, (part, scale) in scales for p in part.parameters()}
        groups: dict[str, dict[str, Any]] = {}
        for parameter in self.parameters():
            if not parameter.requires_grad:
                continue
            name, scale = owner.get(id(parameter), ("heads", 1.0))
            plain = parameter.ndim < 2 or getattr(parameter, "_no_weight_decay", False)
            name += " without decay" if plain else ""
            group = groups.setdefault(name, {"name": name, "params": [], "lr": base_lr * scale})
            if plain:
                group["weight_decay"] = 0.0
            group["params"].append(parameter)
        return list(groups.values())
