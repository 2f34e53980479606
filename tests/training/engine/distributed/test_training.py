"""A whole training on two ranks: files, selection, options, resume on another number of ranks."""

from __future__ import annotations

import math
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.distributed.ranks import Job, Outcome, Ranks, run_command
from tests.support.tiny_run import read_lines, same_state, tiny_config
from tests.training.engine.distributed.test_same_numbers import exact
from training.config import Config
from training.engine import checkpoint
from training.utils.preemption import REQUEUE_STATUS


def train_on(ranks: Ranks, size: int, config: Config, run_dir: Path, **options: Any) -> Outcome:
    out = run_dir.parent / f"{run_dir.name}-{len([*run_dir.parent.iterdir()])}"
    return ranks.run(Job(_command, (config, run_dir, options), size, out))


def _command(config: Config, run_dir: Path, options: dict[str, Any]) -> None:
    run_command(config, run_dir, **options)


def check_trained(outcome: Outcome) -> None:
    assert set(outcome.statuses) == {0}, "\n".join(outcome.outputs)


def check_same_metrics(ours: Path, theirs: Path, tolerance: float) -> None:
    mine, others = read_lines(ours), read_lines(theirs)
    assert len(mine) == len(others)
    for left, right in zip(mine, others, strict=True):
        assert left.keys() == right.keys()
        for key, value in right.items():
            exact = isinstance(value, (str, bool))
            assert left[key] == (value if exact else pytest.approx(value, rel=tolerance, abs=tolerance)), key


def test_two_ranks_leave_the_files_of_one(ranks: Ranks, root: Path, tmp_path: Path) -> None:
    config = exact(root, optim__ema=0.9, optim__epochs=2)
    check_trained(train_on(ranks, 1, config, tmp_path / "one"))
    outcome = train_on(ranks, 2, config, tmp_path / "two")
    check_trained(outcome)
    one, two = tmp_path / "one", tmp_path / "two"
    assert sorted(p.name for p in two.iterdir()) == sorted(p.name for p in one.iterdir())
    check_same_metrics(two, one, 1e-11)
    assert "2 ranks share every batch (gloo)" in outcome.outputs[0] and outcome.outputs[1] == ""
    ours, theirs = checkpoint.load(two / "best.pt"), checkpoint.load(one / "best.pt")
    assert ours["config"] == theirs["config"] and ours["progress"]["best_epoch"] == theirs["progress"]["best_epoch"]


@pytest.mark.parametrize("sizes", [(1, 2), (2, 1), pytest.param((2, 4), marks=pytest.mark.slow)], ids=str)
def test_a_run_goes_on_on_another_number_of_ranks(
    sizes: tuple[int, int], ranks: Ranks, root: Path, tmp_path: Path
) -> None:
    config, whole = exact(root, optim__epochs=2), exact(root, optim__epochs=3)
    check_trained(train_on(ranks, 1, whole, tmp_path / "whole"))
    # Trained for two of three epochs: the schedule is that of three from the start.
    run_dir = tmp_path / "run"
    stopped = ranks.run(Job(_stop_after, (whole, run_dir, 5), sizes[0], tmp_path / "stopped"))
    assert set(stopped.statuses) == {REQUEUE_STATUS}, "\n".join(stopped.outputs)
    assert config.optim.epochs < whole.optim.epochs and checkpoint.load(run_dir / "last.pt")["step"] == 5
    check_trained(train_on(ranks, sizes[1], whole, run_dir, resume=True))
    check_same_metrics(run_dir, tmp_path / "whole", 1e-11)


def _stop_after(config: Config, run_dir: Path, steps: int) -> None:
    """Trains; the last rank gets a SIGTERM in the step of this number, and all stop after it."""
    import os

    from training.engine.trainer import Trainer

    step = Trainer.train_step

    def stepping(self: Trainer, batch: Any) -> Any:
        if self.progress.step + 1 == steps and self.ranks.rank == self.ranks.size - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, batch)

    Trainer.train_step = stepping  # type: ignore[method-assign]
    run_command(config, run_dir)


def test_two_ranks_go_on_to_the_same_bits(ranks: Ranks, root: Path, tmp_path: Path) -> None:
    """With dropout, in float32: the random numbers of a step depend on its number and the rank alone."""
    config = tiny_config(root)
    config = replace(config, optim=replace(config.optim, epochs=2, warmup_epochs=0))
    check_trained(train_on(ranks, 2, config, tmp_path / "whole"))
    stopped = ranks.run(Job(_stop_after, (config, tmp_path / "run", 6), 2, tmp_path / "stopped"))
    assert set(stopped.statuses) == {REQUEUE_STATUS}, "\n".join(stopped.outputs)
    assert "stopped by SIGTERM after step 6" in stopped.outputs[0] and stopped.outputs[1] == ""
    check_trained(train_on(ranks, 2, config, tmp_path / "run", resume=True))
    assert read_lines(tmp_path / "run") == read_lines(tmp_path / "whole")
    ours, theirs = (checkpoint.load(tmp_path / name / "last.pt") for name in ("run", "whole"))
    assert all(same_state(ours[name], theirs[name]) for name in ("model", "optimizer", "gradnorm", "progress"))


@pytest.mark.parametrize("options", [{"precision": "bf16"}, {"precision": "fp16", "accumulate": 2}], ids=str)
def test_half_precision_follows_one_process(options: dict[str, Any], ranks: Ranks, root: Path, tmp_path: Path) -> None:
    config = exact(root, optim__epochs=1)
    config = replace(config, optim=replace(config.optim, **options))
    for size in (1, 2):
        check_trained(train_on(ranks, size, config, tmp_path / f"on{size}"))
    one, two = (read_lines(tmp_path / f"on{size}") for size in (1, 2))
    first = one[0]["losses"]
    assert two[0]["losses"] == pytest.approx(first, rel=0.03, abs=0.03) and math.isfinite(two[-1]["mAP"])


def test_the_noise_of_a_batch_that_is_shared_stays_float32(ranks: Ranks, root: Path, tmp_path: Path) -> None:
    config = exact(root, optim__precision="fp32", optim__epochs=1)
    for size in (1, 2):
        check_trained(train_on(ranks, size, config, tmp_path / f"on{size}"))
    one, two = (read_lines(tmp_path / f"on{size}") for size in (1, 2))
    assert two[0]["losses"] == pytest.approx(one[0]["losses"], rel=1e-5, abs=1e-5)


def test_starts_from_another_run_on_all_ranks(trained: Path, ranks: Ranks, root: Path, tmp_path: Path) -> None:
    config = tiny_config(root)
    config = replace(config, optim=replace(config.optim, epochs=1, warmup_epochs=0))
    outcome = train_on(ranks, 2, config, tmp_path / "run", init=trained)
    check_trained(outcome)
    assert "tensors from" in outcome.outputs[0]


REFUSED = {
    "fit": ({}, {"fit": True}, "--fit cannot be used by several ranks"),
    "one card": ({}, {"device": "cuda:0"}, "device 'cuda:0' is one card for all ranks"),
    "small batch": ({"optim__accumulate": 4}, {}, "a batch of 6 images cannot be shared by 2 ranks in 4 micro-batches"),
}


@pytest.mark.parametrize(("changes", "options", "message"), REFUSED.values(), ids=REFUSED)
def test_what_ranks_cannot_do_is_refused(
    changes: dict[str, Any], options: dict[str, Any], message: str, ranks: Ranks, root: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    outcome = train_on(ranks, 2, exact(root, **changes), run_dir, **options)
    assert outcome.statuses == [2, 2] and not run_dir.exists()
    assert outcome.outputs[0].count("error:") == 1 and message in outcome.outputs[0], outcome.outputs
    assert outcome.outputs[1] == ""


def test_a_used_folder_is_refused_by_all(trained: Path, ranks: Ranks, root: Path, tmp_path: Path) -> None:
    run_dir = Path(shutil.copytree(trained, tmp_path / "run"))
    before = torch.load(run_dir / "last.pt", weights_only=True)["step"]
    outcome = train_on(ranks, 2, tiny_config(root), run_dir)
    assert outcome.statuses == [2, 2] and "is already used" in outcome.outputs[0] and outcome.outputs[1] == ""
    assert torch.load(run_dir / "last.pt", weights_only=True)["step"] == before
