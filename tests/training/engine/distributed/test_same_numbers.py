"""Two and four ranks train to the numbers of one process, in float64."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.distributed.ranks import Job, Ranks, run_steps
from tests.support.tiny_run import tiny_config
from training.config import Config
from training.engine import train_step

SIZES = [1, 2, pytest.param(4, marks=pytest.mark.slow)]
STEPS = 6
# Biases that a batch normalisation takes out again: their gradient is rounding, of which Adam makes steps of lr 1e-16 / eps; the
# running means follow them.
REMOVED = ("identity_projection.2.0.bias", "text_projection.0.bias", "fusion.projection.0.bias", "fusion.norm.bias")


def exact(root: Path, **changes: Any) -> Config:
    """The tiny configuration in float64 on the references, without dropout; keys are STAGE__FIELD."""
    tiny = tiny_config(root)
    model = replace(
        tiny.model,
        backend="reference",
        bdam=replace(tiny.model.bdam, dropout=0.0),
        fusion=replace(tiny.model.fusion, dropout=0.0),
        visual=replace(tiny.model.visual, stem="deep"),
        text=replace(tiny.model.text, stem="deep"),
    )
    config = replace(tiny, model=model, gradnorm=replace(tiny.gradnorm, warm_steps=2))
    config = replace(config, optim=replace(config.optim, precision="fp64", warmup_epochs=0))
    for key, value in changes.items():
        stage, name = key.split("__")
        config = replace(config, **{stage: replace(getattr(config, stage), **{name: value})})
    return config


def check_same(ours: dict[str, Any], theirs: dict[str, Any], tolerance: float) -> None:
    for mine, other in zip(ours["steps"], theirs["steps"], strict=True):
        assert mine.keys() == other.keys() and mine["images"] == other["images"]
        for group in ("losses", "norms", "weights"):
            assert mine[group] == pytest.approx(other[group], rel=tolerance, abs=tolerance), group
        assert mine["loss"] == pytest.approx(other["loss"], rel=tolerance)
    for group in ("gradients", "model"):
        assert ours[group].keys() == theirs[group].keys()
        for name, value in theirs[group].items():
            loose = group == "model" and (name in REMOVED or name.endswith(".1.running_mean"))
            allowed = max(tolerance, 1e-8) if loose else tolerance
            torch.testing.assert_close(ours[group][name], value, rtol=allowed, atol=allowed, msg=f"{group} {name}")


OPTIONS: dict[str, dict[str, Any]] = {
    "recommended": {},
    # Every rank needs an image of each micro-batch.
    "micro-batches": {"optim__accumulate": 2, "data__ids_per_batch": 6},
    "checkpointing": {"optim__checkpointing": True},
    "next negatives": {"loss__final_negatives": "next"},
    "critic": {"loss__adversarial_mode": "critic"},
    "minimax": {"loss__adversarial_mode": "minimax", "loss__triplet_smoothing": 0.0},
    "printed": {"loss__adversarial_mode": "paper", "loss__decoupling_measure": "hsic", "model__batch_norm": False},
}


@pytest.mark.parametrize("size", SIZES[1:])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_several_ranks_train_to_the_numbers_of_one(
    options: dict[str, Any], size: int, ranks: Ranks, root: Path, tmp_path: Path
) -> None:
    config = exact(root, **options)
    one = ranks.run(Job(run_steps, (config, tmp_path, STEPS), 1, tmp_path / "one"))
    several = ranks.run(Job(run_steps, (config, tmp_path, STEPS), size, tmp_path / "several"))
    assert one.statuses == [0] and several.statuses == [0] * size, "\n".join([*one.outputs, *several.outputs])
    for result in several.results:
        check_same(result, one.results[0], 1e-11)
        # Each gradient is sent once: the least that a rank can send.
        assert result["sent"]["gradients"] == 8 * len(result["steps"]) * sum(
            g.numel() for g in result["gradients"].values()
        )
    states = [result["model"] for result in several.results]
    assert all(torch.equal(state[name], states[0][name]) for state in states for name in state)


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 4])
def test_the_kernels_of_a_cpu_train_to_the_numbers_of_one_too(
    size: int, ranks: Ranks, root: Path, tmp_path: Path
) -> None:
    """The kernels add in an order of their own: 1e-9 in place of 1e-11."""
    config = exact(root, model__backend="cpu")
    one = ranks.run(Job(run_steps, (config, tmp_path, STEPS), 1, tmp_path / "one"))
    several = ranks.run(Job(run_steps, (config, tmp_path, STEPS), size, tmp_path / "several"))
    assert one.statuses == [0] and several.statuses == [0] * size, "\n".join([*one.outputs, *several.outputs])
    for result in several.results:
        check_same(result, one.results[0], 1e-9)


def compiled_steps(config: Config, run_dir: Path, steps: int) -> dict[str, Any]:
    """`run_steps` with a compiler that traces and leaves the operators as they are."""
    train_step.configure_model = partial(train_step.configure_model, compiler="aot_eager")
    return run_steps(config, run_dir, steps)


@pytest.mark.slow
def test_compiled_ranks_train_to_the_numbers_of_one(ranks: Ranks, root: Path, tmp_path: Path) -> None:
    config = exact(root, optim__compile=True)
    one = ranks.run(Job(compiled_steps, (config, tmp_path, 2), 1, tmp_path / "one"))
    several = ranks.run(Job(compiled_steps, (config, tmp_path, 2), 2, tmp_path / "several"))
    assert one.statuses == [0] and several.statuses == [0, 0], "\n".join([*one.outputs, *several.outputs])
    for result in several.results:
        check_same(result, one.results[0], 1e-11)
