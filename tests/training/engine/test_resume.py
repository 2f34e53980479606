"""A run that is interrupted anywhere ends with the bits of one that was not: within an epoch, and killed at random."""

from __future__ import annotations

import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from tests.support import ROOT
from tests.support.commands import run_here
from tests.support.tiny_run import Interrupting, read_events, read_lines, same_state, tiny_config
from training.config import Config, to_dict
from training.config.ablations import FULL, Row
from training.data.datasets import at_root
from training.data.loader import TrainLoader
from training.engine import checkpoint
from training.experiment.jobs import Job, config_file
from training.experiment.scheduler import run_jobs
from training.experiment.summary import run_folder
from training.train import train
from training.utils.io import read_json, write_json


def check_same_run(ours: Path, theirs: Path) -> None:
    """Same files, same bits in them; TensorBoard shows the same points, each once."""
    assert sorted(p.name for p in ours.iterdir()) == sorted(p.name for p in theirs.iterdir())
    for name in ("last.pt", "best.pt"):
        assert same_state(checkpoint.load(ours / name), checkpoint.load(theirs / name)), name
    assert read_lines(ours) == read_lines(theirs)
    assert read_events(ours) == read_events(theirs)
    assert read_json(ours / "calls.json") == read_json(theirs / "calls.json")


def interrupt(config: Config, run_dir: Path, batches: int, monkeypatch: pytest.MonkeyPatch, resume: bool) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("training.engine.train_run.TrainLoader", lambda *a: Interrupting(TrainLoader(*a), batches))
        with pytest.raises(KeyboardInterrupt):
            train(config, run_dir, resume=resume)


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "fp16": {"precision": "fp16", "accumulate": 2},
    "adam": {"optimizer": "adam", "save_every_steps": 1},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_interrupted_within_an_epoch(
    options: dict[str, Any], root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(root)
    config = replace(config, optim=replace(config.optim, **({"save_every_steps": 3} | options)))
    config = replace(config, gradnorm=replace(config.gradnorm, warm_steps=2))
    train(config, tmp_path / "whole")
    # 4 batches an epoch: stopped in the 2nd epoch, and after going on in the 3rd.
    interrupt(config, tmp_path / "run", 7, monkeypatch, resume=False)
    saved = checkpoint.load(tmp_path / "run" / "last.pt")["progress"]
    assert (saved["epoch"], saved["batch"]) == (1, 3 if "adam" in options.values() else 2)
    torch.rand(5)
    interrupt(config, tmp_path / "run", 4, monkeypatch, resume=True)
    train(config, tmp_path / "run", resume=True)
    check_same_run(tmp_path / "run", tmp_path / "whole")


def test_interrupted_and_moved_with_its_data(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, after = tmp_path / "before", tmp_path / "after"
    shutil.copytree(root, before)
    texts = str(before / "descriptions.jsonl")
    config = replace(tiny_config(before), data=replace(tiny_config(before).data, descriptions=texts))
    train(config, tmp_path / "whole")
    interrupt(config, tmp_path / "run", 7, monkeypatch, resume=False)
    before.rename(after)
    moved = replace(config, data=at_root(config.data, after))
    train(moved, tmp_path / "run", resume=True)
    assert read_json(tmp_path / "run" / "config.json")["data"]["root"] == str(after)
    weights = [checkpoint.load(tmp_path / name / "last.pt")["model"] for name in ("run", "whole")]
    assert same_state(*weights) and read_lines(tmp_path / "run") == read_lines(tmp_path / "whole")
    # Elsewhere, but not the same.
    file = after / "reid_raw.json"
    file.write_text(file.read_text().replace("red", "blue"))
    kept = {path: path.read_bytes() for path in (tmp_path / "run").iterdir() if path.is_file()}
    with pytest.raises(ValueError, match="its fingerprint differs from that of this run"):
        train(moved, tmp_path / "run", resume=True)
    assert {path: path.read_bytes() for path in (tmp_path / "run").iterdir() if path.is_file()} == kept


def test_interrupted_in_the_validation_of_an_epoch(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_config(root)
    config = replace(config, optim=replace(config.optim, save_every_steps=2))
    train(config, tmp_path / "whole")

    def stop(*args: object, **kwargs: object) -> dict[str, float]:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("training.evaluation.dual.validate", stop)
        with pytest.raises(KeyboardInterrupt):
            train(config, tmp_path / "run")
    assert checkpoint.load(tmp_path / "run" / "last.pt")["progress"]["batch"] == 2
    train(config, tmp_path / "run", resume=True)
    check_same_run(tmp_path / "run", tmp_path / "whole")


def test_what_a_kill_left_behind_is_removed(root: Path, tmp_path: Path) -> None:
    run_dir, config = tmp_path / "run", tiny_config(root)
    run_dir.mkdir()
    (run_dir / ".config.json.x1.tmp").write_text("half")
    train(config, run_dir)
    (run_dir / ".last.pt.x2.tmp").write_text("half")
    (run_dir / ".tokenizer.x3").mkdir()
    train(config, run_dir, resume=True)
    assert not [p for p in run_dir.iterdir() if p.name.startswith(".")]


def test_experiment_starts_a_run_that_was_killed_before_its_first_file(root: Path, tmp_path: Path) -> None:
    config = tiny_config(root)
    row = Row("recipe", FULL, "mine", replace(config, optim=replace(config.optim, epochs=2)))
    folder = run_folder(tmp_path, row.key, 0)
    folder.mkdir(parents=True)
    (folder / ".config.json.x.tmp").write_text("half")
    write_json(config_file(folder.parent), to_dict(row.config))
    run_jobs([Job(row, 0, folder)], Console(file=StringIO()), run_here)
    assert (folder / "best.pt").exists()


# Loads torch once, then forks for every line: a start costs 0.3 s instead of 4, and all of it is training.
SERVER = """
import os, signal, sys, time
from pathlib import Path
import torch.utils.tensorboard, transformers
from tests.training.engine.test_resume import train_or_resume
print("ready", flush=True)
for line in sys.stdin:
    root, run_dir, seconds = line.split()
    process = os.fork()
    if not process:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        train_or_resume(Path(root), Path(run_dir))
        os._exit(0)
    if seconds != "inf":
        time.sleep(float(seconds))
        # Before waitpid, so that the process id is still its own even if it has ended.
        os.kill(process, signal.SIGKILL)
    print(os.waitpid(process, 0)[1], flush=True)
"""


def kill_config(root: Path) -> Config:
    """Saves at every step, so that many kills hit the writing of a checkpoint."""
    config = tiny_config(root)
    optim = replace(config.optim, epochs=4, save_every_steps=1)
    return replace(config, optim=optim, gradnorm=replace(config.gradnorm, warm_steps=2))


def train_or_resume(root: Path, run_dir: Path) -> None:
    """Trains or resumes, as `make demo` does."""
    torch.set_num_threads(1)
    train(kill_config(root), run_dir, resume=(run_dir / "config.json").exists())


@pytest.fixture
def server() -> Iterator[subprocess.Popen[str]]:
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "bufsize": 1}
    with subprocess.Popen([sys.executable, "-c", SERVER], env=environment, **pipes) as process:
        assert process.stdin is not None and process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
        process.stdin.close()


def attempt(server: subprocess.Popen[str], root: Path, run_dir: Path, seconds: float = math.inf) -> int:
    """Starts or continues a run and kills it after so many seconds; returns the wait status of the process."""
    assert server.stdin is not None and server.stdout is not None
    server.stdin.write(f"{root} {run_dir} {seconds}\n")
    return int(server.stdout.readline())


def check_whole_files(run_dir: Path) -> dict[str, Any]:
    """Checks that every file can be read; returns the progress of last.pt."""
    for path in run_dir.glob("*.json"):
        read_json(path)
    states = {path.name: checkpoint.load(path) for path in run_dir.glob("*.pt")}
    return states.get("last.pt", {"progress": {"step": 0, "batch": 0}})["progress"]


@pytest.mark.parametrize("kills", [5, pytest.param(30, marks=pytest.mark.slow)])
def test_killed_at_random_moments(kills: int, server: subprocess.Popen[str], root: Path, tmp_path: Path) -> None:
    moments, whole = random.Random(kills), tmp_path / "whole"
    started = time.perf_counter()
    assert attempt(server, root, whole) == 0
    duration = time.perf_counter() - started
    number, positions = 0, []
    while len(positions) < kills:
        run_dir = tmp_path / f"run{number}"
        status = attempt(server, root, run_dir, moments.uniform(0, duration / 2))
        if status == signal.SIGKILL:
            positions.append(check_whole_files(run_dir))
        else:
            # It was done before: compared, and the next one is killed instead.
            assert status == 0
            check_same_run(run_dir, whole)
            number += 1
    run_dir = tmp_path / f"run{number}"
    assert attempt(server, root, run_dir) == 0
    check_same_run(run_dir, whole)
    if kills == 30:
        # Not all before the first checkpoint, and not only between epochs.
        assert len({p["step"] for p in positions}) > 5 and any(p["batch"] for p in positions)
