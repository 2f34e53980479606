"""Named configurations, each a function that returns a whole Config."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import replace

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


def cuhk_pedes() -> Config:
    """ViT-B/16 and BERT on CUHK-PEDES in the recommended readings: the defaults of every stage."""
    return Config(recipe="cuhk-pedes")


def cuhk_pedes_paper() -> Config:
    """ViT-B/16 and BERT on CUHK-PEDES in the readings of the paper."""
    return replace(paper_readings(cuhk_pedes()), recipe="cuhk-pedes-paper")


def synthetic() -> Config:
    """Rendered pedestrians, encoders small enough to train from nothing on two CPU cores in minutes."""
    return Config(
        recipe="synthetic",
        data=DataConfig(root="data/synthetic", image_size=(64, 32), text_length=48, pad=2, erase=0.0),
        model=ModelConfig(
            visual=EncoderConfig(width=96, layers=2, heads=4, patch_size=8),
            text=EncoderConfig(width=96, layers=2, heads=4),
            bdam=BdamConfig(self_layers=1, cross_layers=1, heads=4, dropout=0.0),
            fusion=FusionConfig(width=48, layers=1, dropout=0.0),
        ),
        gradnorm=GradNormConfig(every=5),
        optim=OptimConfig(lr=1.5e-3, epochs=5, warmup_epochs=1),
    )


def synthetic_paper() -> Config:
    """The rendered pedestrians in the readings of the paper, at the size and length of `synthetic`.

    What only fits pretrained encoders stays: BERT frozen under one layer (reading 11), the base rate and the epochs.
    """
    config = synthetic()
    paper = paper_readings(config)
    optim = replace(paper.optim, lr=config.optim.lr, epochs=config.optim.epochs)
    model = replace(paper.model, text=config.model.text, text_adapter_layers=0)
    data = replace(paper.data, image_size=config.data.image_size, pad=config.data.pad)
    return replace(paper, recipe="synthetic-paper", data=data, model=model, optim=optim)


def paper_readings(config: Config) -> Config:
    """`config` with every field that a reading of the method governs set to the reading of the paper."""
    model, loss, optim = config.model, config.loss, config.optim
    return replace(
        config,
        # Readings 21 and 22.
        data=replace(config.data, image_size=(224, 224), images_per_id=0, batch_size=64, erase=0.0),
        model=replace(
            model,
            # Readings 10 to 14.
            text=replace(model.text, trainable=False),
            text_adapter_layers=1,
            text_pooling="mean",
            batch_norm=False,
            bdam=replace(model.bdam, self_layers=6, cross_layers=3, heads=4, pre_norm=False, dropout=0.0),
            fusion=replace(model.fusion, form="pooled", pre_norm=False),
        ),
        # Readings 1 to 9 and 15.
        loss=replace(
            loss,
            info_nce_texts="identity",
            info_nce_symmetric=False,
            temperature=0.1,
            learn_temperature=False,
            margin=0.3,
            adversarial_mode="paper",
            hsic_normalise=False,
            hsic_kernel="linear",
            gate_weight=0.01,
            final_triplet=True,
            final_info_nce=False,
            final_matching=False,
        ),
        # Readings 16 and 18.
        gradnorm=replace(config.gradnorm, form="paper", alpha=1.5, lr=0.025),
        # Readings 22 and 25.
        optim=replace(optim, optimizer="adam", lr=1e-4, weight_decay=1e-3, epochs=80, warmup_epochs=0),
        # Reading 24.
        eval=replace(config.eval, betas=(0.0,)),
    )


RECIPES: dict[str, Callable[[], Config]] = {
    "synthetic": synthetic,
    "synthetic-paper": synthetic_paper,
    "cuhk-pedes": cuhk_pedes,
    "cuhk-pedes-paper": cuhk_pedes_paper,
}


def get_recipe(name: str) -> Config:
    """The Config of a recipe. Raises ValueError for an unknown name, with the known ones and the closest."""
    if name not in RECIPES:
        close = difflib.get_close_matches(name, RECIPES, n=1, cutoff=0.5)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise ValueError(f"unknown recipe {name!r}, expected one of {', '.join(RECIPES)}{hint}")
    return RECIPES[name]()
