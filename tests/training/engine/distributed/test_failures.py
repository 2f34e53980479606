"""A rank that fails, dies or differs ends all of them in seconds, and the first one says which and why."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from tests.support import ROOT
from tests.support.distributed.ranks import Job, Outcome, Ranks, run_command
from tests.support.pedes_dataset import make_pedes
from tests.support.tiny_run import read_lines, tiny_config
from training.config import Config
from training.engine import checkpoint
from training.engine.distributed.agreement import differences
from training.engine.distributed.failures import RankLost, Register
from training.engine.trainer import Trainer
from training.utils.preemption import Preemption


def rank() -> int:
    return int(os.environ.get("RANK", "0"))


def check_named(outcome: Outcome, *texts: str) -> None:
    """All ranks failed, and the first one printed one line with the texts."""
    assert all(status not in (0, 1) for status in outcome.statuses), outcome.outputs
    assert outcome.outputs[0].count("error:") == 1, outcome.outputs
    for text in texts:
        assert text in outcome.outputs[0], outcome.outputs


def _differing(config: Config, other: Config, run_dir: Path) -> None:
    run_command(other if rank() == 1 else config, run_dir)


def _of_another_version(config: Config, run_dir: Path) -> None:
    import torch

    if rank() == 1:
        torch.__version__ = "1.0"
    run_command(config, run_dir)


def test_another_configuration_is_refused(ranks: Ranks, root: Path, tmp_path: Path) -> None:
    config = tiny_config(root)
    other = replace(config, loss=replace(config.loss, margin=0.5))
    outcome = ranks.run(Job(_differing, (config, other, tmp_path / "run"), 2, tmp_path / "out"))
    check_named(outcome, "rank 1 (", "differs from rank 0 (", "configuration.loss.margin (0.5 in place of 0.3)")
    assert not (tmp_path / "run").exists() and outcome.outputs[1] == ""


def test_another_version_is_refused(ranks: Ranks, root: Path, tmp_path: Path) -> None:
    outcome = ranks.run(Job(_of_another_version, (tiny_config(root), tmp_path / "run"), 2, tmp_path / "out"))
    check_named(outcome, "rank 1 (", "versions.version of torch ('1.0' in place of ")


def test_other_data_are_refused(ranks: Ranks, root: Path, tmp_path: Path) -> None:
    """The same path on two machines, with an image that differs: as if each had a disk of its own."""
    other = make_pedes(tmp_path / "other", {"train": 6, "val": 2, "test": 8})
    image = sorted((other / "imgs").rglob("*.png"))[0] if [*(other / "imgs").rglob("*.png")] else None
    image = image or sorted(p for p in (other / "imgs").rglob("*") if p.is_file())[0]
    from PIL import Image

    Image.new("RGB", (16, 32), (9, 9, 9)).save(image)
    outcome = ranks.run(Job(_with_data_of, (tiny_config(root), other, tmp_path / "run"), 2, tmp_path / "out"))
    check_named(outcome, "rank 1 (", "differs from rank 0 (", "data.images (")
    assert not (tmp_path / "run").exists()


def _with_data_of(config: Config, other: Path, run_dir: Path) -> None:
    from training.engine import train_run

    read = train_run.read_dataset
    if rank() == 1:
        train_run.read_dataset = lambda data: read(replace(data, root=str(other)))
    run_command(config, run_dir)


def _failing(config: Config, run_dir: Path, step: int, how: str) -> None:
    """Rank 1 fails in a step."""
    train_step = Trainer.train_step

    def stepping(self: Trainer, batch: Any) -> Any:
        if self.progress.step + 1 == step and self.ranks.rank == 1:
            if how == "error":
                raise ValueError("this disk is gone")
            if how == "defect":
                raise TypeError("a defect")
            if how == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            if how == "nan":
                batch = replace(batch, images_BCHW=batch.images_BCHW * float("nan"))
        return train_step(self, batch)

    Trainer.train_step = stepping  # type: ignore[method-assign]
    run_command(config, run_dir)


def test_an_error_on_a_rank_is_named_on_the_first(ranks: Ranks, root: Path, tmp_path: Path) -> None:
    started = time.monotonic()
    outcome = ranks.run(Job(_failing, (tiny_config(root), tmp_path / "run", 3, "error"), 2, tmp_path / "out"))
    check_named(outcome, "rank 1 (", "process ", "failed: this disk is gone")
    assert "error: this disk is gone" in outcome.outputs[1] and time.monotonic() - started < 60


def test_a_rank_that_dies_without_a_word_is_named(ranks: Ranks, root: Path, tmp_path: Path) -> None:
    outcome = ranks.run(Job(_failing, (tiny_config(root), tmp_path / "run", 6, "killed"), 2, tmp_path / "out"))
    assert outcome.statuses == [2, -signal.SIGKILL]
    check_named(outcome, "rank 1 (", "ended without a word")
    # The first epoch is saved, and the run goes on.
    assert checkpoint.load(tmp_path / "run" / "last.pt")["step"] == 4
    job = Job(_resuming, (tiny_config(root), tmp_path / "run"), 2, tmp_path / "again")
    assert ranks.run(job).statuses == [0, 0] and read_lines(tmp_path / "run")[-1]["epoch"] == 3


def _resuming(config: Config, run_dir: Path) -> None:
    run_command(config, run_dir, resume=True)


def test_values_that_are_not_finite_on_one_rank_stop_all(ranks: Ranks, root: Path, tmp_path: Path) -> None:
    outcome = ranks.run(Job(_failing, (tiny_config(root), tmp_path / "run", 3, "nan"), 2, tmp_path / "out"))
    assert outcome.statuses == [2, 2] and outcome.outputs[1] == ""
    check_named(outcome, "training is no longer finite at step 3", "batch: ")
    written = json.loads((tmp_path / "run" / "nonfinite.json").read_text())
    assert written["step"] == 3 and len(written["files"]) == 6


def test_waiting_ends_with_a_failure_or_in_time() -> None:
    store = dist.HashStore()
    register = Register(store, 0, 2, Preemption())
    with pytest.raises(RankLost, match="no answer in 0.1 s"):
        register.wait("never", 0.1)
    store.set("failed", "")
    with pytest.raises(RankLost, match="another rank has failed"):
        register.wait("never")


def test_the_slurm_script_is_valid_shell() -> None:
    page = (ROOT / "docs/scale.md").read_text()
    script = page.split("```bash\n")[1].split("```")[0]
    assert "#SBATCH" in script
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    assert subprocess.run(["bash", "-n"], input=script + "if", text=True, capture_output=True).returncode != 0


def test_differences_are_named_by_their_dotted_names() -> None:
    ours, theirs = {"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 1, "c": 4}, "d": 3, "e": 5}
    assert differences(ours, theirs) == ["a.c (4 in place of 2)", "e (5 in place of None)"]
