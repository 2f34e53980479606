"""Tiny models and batches for the tests of models, losses and GradNorm."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from training.config import BdamConfig, EncoderConfig, FusionConfig, GradNormConfig, LossConfig, ModelConfig
from training.models.model import Model

IMAGE_SIZE = (64, 32)
VOCABULARY = 40
TEXT_LENGTH = 12
TINY = EncoderConfig(width=16, layers=1, heads=2)


@dataclass(frozen=True)
class Texts:
    input_ids_BT: Tensor
    attention_mask_BT: Tensor


@dataclass(frozen=True)
class Batch:
    images_BCHW: Tensor
    captions: Texts
    identity: Texts
    clothing: Texts
    other: Texts
    ids_B: Tensor
    clothing_group_B: Tensor


def recommended() -> tuple[ModelConfig, LossConfig]:
    """The recommended readings on tiny sizes, without dropout."""
    model = ModelConfig(
        visual=TINY,
        text=replace(TINY, lr_scale=0.1),
        bdam=BdamConfig(self_layers=2, cross_layers=1, heads=2, dropout=0.0),
        fusion=FusionConfig(width=8, layers=1, state=4, dropout=0.0),
        embedding=12,
        backend="reference",
    )
    return model, LossConfig()


def paper() -> tuple[ModelConfig, LossConfig]:
    """The readings of the column `paper` on tiny sizes, without dropout."""
    model, _ = recommended()
    model = replace(
        model,
        text=replace(TINY, trainable=False),
        text_adapter_layers=1,
        bdam=replace(model.bdam, pre_norm=False),
        fusion=replace(model.fusion, form="pooled", branches="identity", pre_norm=False),
    )
    loss = LossConfig(
        info_nce_texts="identity",
        info_nce_symmetric=False,
        temperature=0.1,
        learn_temperature=False,
        clothing_matching=False,
        adversarial_mode="paper",
        decoupling_measure="hsic",
        hsic_normalise=False,
        final_info_nce=False,
        final_matching=False,
        final_wrong_pairs=False,
        final_triplet=True,
        triplet_smoothing=0.0,
    )
    return model, loss


PRESETS = {"recommended": recommended, "paper": paper}


def build(model: ModelConfig, loss: LossConfig, seed: int = 0) -> Model:
    """A model in evaluation mode: BERT's own dropout would make runs differ."""
    torch.manual_seed(seed)
    return Model(model, loss, IMAGE_SIZE, VOCABULARY, 0, TEXT_LENGTH).eval()


def texts(count: int, generator: torch.Generator) -> Texts:
    """Texts of 4 to TEXT_LENGTH tokens, padded with 0."""
    lengths = torch.randint(4, TEXT_LENGTH + 1, (count, 1), generator=generator)
    mask = (torch.arange(TEXT_LENGTH)[None] < lengths).long()
    return Texts(torch.randint(3, VOCABULARY, (count, TEXT_LENGTH), generator=generator) * mask, mask)


def batch(count: int = 8, images_per_id: int = 2, seed: int = 0) -> Batch:
    """`count` images, `images_per_id` of each identity; the last two share their clothing group."""
    g = torch.Generator().manual_seed(seed)
    ids = torch.arange(count) // images_per_id
    group = torch.arange(count).clamp_max(count - 2)
    images = torch.randn(count, 3, *IMAGE_SIZE, generator=g)
    return Batch(images, texts(count, g), texts(count, g), texts(count, g), texts(count, g), ids, group)


def unit(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Random rows of length 1 that require a gradient."""
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.nn.functional.normalize(x, dim=-1).to(dtype).requires_grad_()


def gradnorm_config(**changes: object) -> GradNormConfig:
    """GradNorm that starts balancing after one step of averaging, by plain steps, no task ahead of the others."""
    return replace(GradNormConfig(warm_steps=1, alpha=1.5, lead=1.0, optimizer="plain"), **changes)
