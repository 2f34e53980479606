"""An oracle that shares a batch in another way: ranks encode their rows and gather tokens, each runs all heads on all rows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.distributed.ranks import Job, Ranks
from tests.training.engine.distributed.test_same_numbers import exact
from training.config import Config
from training.data.datasets import read_dataset
from training.data.loader import Batch
from training.engine.device import CPU
from training.engine.distributed.group import joined
from training.engine.gradnorm import backward_tasks
from training.engine.losses import fixed_losses, task_losses
from training.engine.train_run import build_trainer
from training.engine.trainer import Trainer
from training.models.batch_rows import ALL_ROWS
from training.utils.preemption import preemption


@contextmanager
def first_batch(config: Config, run_dir: Path) -> Iterator[tuple[Any, Trainer, Batch]]:
    with preemption() as signals, joined(lambda local_rank: CPU, signals) as (ranks, device):
        trainer, _ = build_trainer(
            config, read_dataset(config.data), run_dir, lambda *a, **k: {}, ranks=ranks, device=device
        )
        trainer.model.train()
        trainer.loader.set_epoch(0)
        yield ranks, trainer, trainer.stepper._on_device(next(iter(trainer.loader)))


def found(trainer: Trainer, losses: dict[str, float], norms: dict[str, float]) -> dict[str, Any]:
    gradients = {name: p.grad.clone() for name, p in trainer.model.named_parameters() if p.grad is not None}
    return {"losses": losses, "norms": norms, "gradients": gradients}


def as_trained(config: Config, run_dir: Path) -> dict[str, Any]:
    """A step of the training, with gradients as they are before the optimiser."""
    with first_batch(config, run_dir) as (ranks, trainer, batch):
        step = trainer.stepper.run(batch, measure=True)
        return found(trainer, step.losses, step.norms)


def with_whole_heads(config: Config, run_dir: Path) -> dict[str, Any]:
    with first_batch(config, run_dir) as (ranks, trainer, batch):
        model, stepper = trainer.model, trainer.stepper
        labels, rows = batch.labels, ranks.rows(len(batch.labels.paths), 1)
        encoded = model.encode(batch)
        with torch.no_grad():
            text, mask = (rows.gather(x.transpose(0, 1), "tokens").transpose(0, 1) for x in _text(encoded))
            whole = replace(
                encoded,
                image_tokens_BPC=rows.gather(encoded.image_tokens_BPC, "tokens"),
                text_tokens_VBTC=text,
                text_mask_VBT=mask,
            )
        whole = replace(whole.leaves(), ids_B=labels.ids_B, rows=ALL_ROWS)
        features = model.heads(whole).to_float32()
        tasks = task_losses(features, labels.ids_B, labels.clothing_group_B, config.loss, config.model.backend)
        fixed = fixed_losses(features, config.loss)
        weights = stepper.gradnorm.weights()
        norms = backward_tasks(tasks, weights, fixed, whole.tensors(), stepper.head_parameters)
        image, text = (leaf.grad for leaf in whole.tensors())
        assert image is not None and text is not None
        torch.autograd.backward(encoded.tensors(), [image[rows.positions], text[:, rows.positions]])
        # Those of the heads are complete on every rank.
        for parameter in stepper.encoder_parameters:
            ranks.all_reduce(parameter.grad, "gradients")
        return found(trainer, {name: float(loss) for name, loss in (tasks | fixed).items()}, norms)


def _text(encoded: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return encoded.text_tokens_VBTC, encoded.text_mask_VBT


@pytest.mark.parametrize("size", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_heads_on_the_whole_batch_make_the_same_step(size: int, ranks: Ranks, root: Path, tmp_path: Path) -> None:
    config = exact(root, optim__clip_norm=0.0)
    ours = ranks.run(Job(as_trained, (config, tmp_path), size, tmp_path / "rows"))
    oracle = ranks.run(Job(with_whole_heads, (config, tmp_path), size, tmp_path / "whole"))
    assert ours.statuses == oracle.statuses == [0] * size, "\n".join([*ours.outputs, *oracle.outputs])
    for mine, other in zip(ours.results, oracle.results, strict=True):
        for group in ("losses", "norms"):
            assert mine[group] == pytest.approx(other[group], rel=1e-12, abs=1e-12), group
        assert mine["gradients"].keys() == other["gradients"].keys()
        for name, value in other["gradients"].items():
            torch.testing.assert_close(mine["gradients"][name], value, rtol=1e-12, atol=1e-12, msg=name)
