"""Micro-batches of the encoders against the undivided step: gradients, dropout, batch statistics, images with one caption."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.engine.test_train_step import (
    add_dropout_to_the_encoders,
    distance,
    gradients,
    in_double,
    plain_config,
    using,
)
from tests.training.engine.test_trainer import build, first_batch
from training.config import Config
from training.config.recipes import get_recipe
from training.engine.losses import fixed_losses, task_losses
from training.engine.train_step import micro_batch_warnings, random_state
from training.train import train


@pytest.fixture
def config(root: Path) -> Config:
    return plain_config(root)


@pytest.mark.parametrize("accumulate", [2, 4, 6, 100])
def test_micro_batches_give_the_gradient_of_the_whole_batch(accumulate: int, config: Config, tmp_path: Path) -> None:
    whole, split = build(config, tmp_path), build(using(config, accumulate=accumulate), tmp_path)
    expected = whole.train_step(in_double(whole))
    seen: list[int] = []
    split.model.visual.register_forward_hook(lambda module, args, out: seen.append(len(out)))
    step = split.train_step(in_double(split))
    assert step.losses == pytest.approx(expected.losses, rel=1e-9)
    assert step.norms == pytest.approx(expected.norms, rel=1e-8) and min(expected.norms.values()) >= 0
    assert distance(gradients(split), gradients(whole)) < 1e-9
    count = min(accumulate, 6)
    assert seen == [6 // count + (1 if count == 4 and i % 2 else 0) for i in range(count)] * 2 and sum(seen) == 12


def test_micro_batches_draw_the_same_dropout_twice(config: Config, tmp_path: Path) -> None:
    """Against one graph through the same micro-batches: encoded once, with their graph kept."""
    config = replace(config, model=replace(config.model, bdam=replace(config.model.bdam, dropout=0.1)))
    split, plain = build(using(config, accumulate=3), tmp_path), build(config, tmp_path)
    for trainer in (split, plain):
        add_dropout_to_the_encoders(trainer)
        trainer.model.train()
    torch.manual_seed(7)
    split.train_step(in_double(split))
    after = random_state(torch.device("cpu"))

    batch, model = in_double(plain), plain.model
    torch.manual_seed(7)
    parts = [model.encode(batch.part(slice(i, i + 2))) for i in (0, 2, 4)]
    image = torch.cat([part.image_tokens_BPC for part in parts])
    text = torch.cat([part.text_tokens_VBTC for part in parts], dim=1)
    mask = torch.cat([part.text_mask_VBT for part in parts], dim=1)
    joined = replace(parts[0], image_tokens_BPC=image, text_tokens_VBTC=text, text_mask_VBT=mask, ids_B=batch.ids_B)
    features = model.heads(joined)
    losses = task_losses(features, batch.ids_B, batch.clothing_group_B, config.loss, "auto")
    (sum(losses.values()) + sum(fixed_losses(features, config.loss).values())).backward()
    assert distance(gradients(split), gradients(plain)) < 1e-9
    assert torch.equal(after[0], torch.get_rng_state())


def test_micro_batches_of_frozen_encoders_are_encoded_once(config: Config, tmp_path: Path) -> None:
    model = config.model
    frozen = replace(model, visual=replace(model.visual, trainable=False), text=replace(model.text, trainable=False))
    trainer = build(using(replace(config, model=frozen), accumulate=2), tmp_path)
    seen: list[int] = []
    trainer.model.visual.register_forward_hook(lambda module, args, out: seen.append(len(out)))
    trainer.train_step(first_batch(trainer))
    assert seen == [3, 3]


def with_batch_norm(config: Config, kind: str) -> Config:
    """A visual encoder with batch statistics: the stem of the recipe `synthetic`, or the encoder of the floor."""
    if kind == "stem":
        return replace(config, model=replace(config.model, visual=replace(config.model.visual, stem="deep")))
    baseline = get_recipe("synthetic-baseline")
    return replace(baseline, data=replace(config.data, images_per_id=0, batch_size=6))


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("kind", ["stem", "floor"])
def test_running_statistics_follow_every_micro_batch_once(
    kind: str, checkpointing: bool, config: Config, tmp_path: Path
) -> None:
    config = with_batch_norm(config, kind)
    checkpointing = checkpointing and kind == "stem"
    split, plain = build(using(config, accumulate=3, checkpointing=checkpointing), tmp_path), build(config, tmp_path)
    split.train_step(first_batch(split))
    batch = first_batch(plain)
    with torch.no_grad():
        for part in (slice(0, 2), slice(2, 4), slice(4, 6)):
            plain.model.visual(batch.part(part).images_BCHW)
    ours, theirs = (dict(trainer.model.visual.named_buffers()) for trainer in (split, plain))
    counts = [int(value) for name, value in ours.items() if name.endswith("num_batches_tracked")]
    assert counts and set(counts) == {3}
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())
    norms = [m for m in split.model.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    assert all(norm.track_running_stats for norm in norms), "the next step goes on with them"


def test_statistics_of_micro_batches_are_told_before_the_first_step(
    config: Config, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def warnings(config: Config, **optim: Any) -> list[str]:
        config = using(config, **optim)
        return micro_batch_warnings(build(config, tmp_path).model, config.optim)

    stem, floor = (with_batch_norm(config, kind) for kind in ("stem", "floor"))
    for normalised in (stem, floor):
        assert warnings(normalised) == []
        assert ["optim.accumulate 2" in warning for warning in warnings(normalised, accumulate=2)] == [True]
    assert warnings(config, accumulate=2) == [], "batch statistics of the heads are those of the whole batch"
    frozen = replace(stem.model, visual=replace(stem.model.visual, trainable=False))
    assert warnings(replace(stem, model=frozen), accumulate=2) == [], "a frozen encoder has fixed statistics"
    train(using(stem, accumulate=2, epochs=1, warmup_epochs=0), tmp_path / "run")
    told = " ".join(capfd.readouterr().out.split())
    assert told.count("statistics of each micro-batch") == 1


@pytest.mark.parametrize("accumulate", [1, 3])
def test_an_image_with_one_caption_has_no_second_one_in_the_loss(
    accumulate: int, config: Config, tmp_path: Path
) -> None:
    def loss(**changes: Any) -> float:
        changed = replace(using(config, accumulate=accumulate), loss=replace(config.loss, **changes))
        trainer = build(changed, tmp_path)
        trainer.loader.records = [replace(r, captions=r.captions[:1]) for r in trainer.loader.records]
        return trainer.train_step(first_batch(trainer)).losses["info_nce"]

    assert loss(both_captions=True) == loss(both_captions=False)
