"""Runs side by side, each in processes of its own, and what is said about them."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from tests.support import ROOT, child_processes
from tests.support.pedes_dataset import make_pedes
from tests.support.tiny_run import tiny_config
from training.config import Config
from training.config.ablations import FULL, Row
from training.experiment import isolated, jobs, scheduler
from training.experiment.__main__ import missing_runs, plan
from training.experiment.summary import run_folder


@pytest.fixture
def base(tmp_path: Path) -> Config:
    return tiny_config(make_pedes(tmp_path / "pedes"))


def test_runs_go_on_side_by_side(base: Config, tmp_path: Path) -> None:
    together, meeting = [], threading.Barrier(2, timeout=60)

    def launch(function: Callable[..., Any], *arguments: Any, log: Path, tick: Callable[[], None] = print) -> Any:
        if function is jobs.time_configurations:
            return [{"start": 30.0, "training": 40.0, "evaluation": 20.0}]
        tick()
        if function is jobs.train_run:
            # Passes only when the other run has come as far.
            meeting.wait()
            together.append(arguments[0]["seed"])
        return {"metrics": {"R1": 1.0, "mAP": 2.0}, "training_memory_mb": 3.0}

    console = Console(file=StringIO(), width=150, soft_wrap=True)
    runs = missing_runs(plan("synthetic", base)[1], (0, 1, 2, 3), tmp_path, console, launch, 2)
    scheduler.run_all(runs, console, launch, 2)
    text = console.file.getvalue()
    assert "about 3 min in all: 100 s each, at most 100 s (synthetic), 2 at a time;" in text
    assert sorted(together) == [0, 1, 2, 3] and "[4/4]" in text and "; done" in text


def test_the_first_run_that_fails_ends_those_beside_it(base: Config, tmp_path: Path) -> None:
    beside, ended = threading.Event(), []

    def launch(function: Callable[..., Any], *arguments: Any, log: Path, tick: Callable[[], None] = print) -> Any:
        tick()
        if arguments[0]["seed"] == 0:
            assert beside.wait(60)
            raise RuntimeError("no memory")
        beside.set()
        try:
            for _ in range(600):
                time.sleep(0.1)
                tick()
        except Exception as error:
            ended.append(type(error).__name__)
            raise

    row = Row("table1", FULL, "Full", base)
    runs = [scheduler.Run(row, seed, run_folder(tmp_path, row.key, seed), 10.0) for seed in (0, 1, 2)]
    with pytest.raises(RuntimeError, match="Full, seed 0 .* failed: no memory"):
        scheduler.run_all(runs, Console(file=StringIO()), launch, 2)
    # The third has not begun, or has been ended too.
    assert set(ended) == {"_Stopped"}


def test_durations_in_words() -> None:
    assert [scheduler.minutes(x) for x in (59.6, 150, 7199, 9000)] == ["60 s", "2 min", "120 min", "2.5 h"]


def test_a_process_of_its_own_hands_over_results_errors_and_its_end(tmp_path: Path) -> None:
    log, ticks = tmp_path / "log", []
    assert isolated.isolated(statistics.fmean, [1, 2, 6], log=log) == 3
    assert isolated.isolated(torch.get_num_threads, log=log, threads=3) == 3
    assert isolated.isolated(time.sleep, 0.6, log=log, tick=lambda: ticks.append(1)) is None and ticks
    with pytest.raises(RuntimeError, match=f"two words; what it printed is in {log}"):
        isolated.isolated(child_processes.fail, "two\n words", log=log)
    assert "on the way" in log.read_text() and "ValueError: two" in log.read_text()
    with pytest.raises(RuntimeError, match=r"its process was ended by signal 9 \(out of memory\?\); what it printed"):
        isolated.isolated(child_processes.vanish, log=log)


@pytest.mark.timeout(120)
def test_a_process_does_not_outlive_the_one_that_started_it(tmp_path: Path) -> None:
    pipe, log = tmp_path / "pipe", tmp_path / "log"
    os.mkfifo(pipe)
    script = tmp_path / "script.py"
    script.write_text(
        "from pathlib import Path\nfrom tests.support import child_processes\nfrom training.experiment import isolated\n"
        "if __name__ == '__main__': "
        f"isolated.isolated(child_processes.stay, Path({str(pipe)!r}), log=Path({str(log)!r}))"
    )
    parent = subprocess.Popen([sys.executable, str(script)], env=os.environ | {"PYTHONPATH": str(ROOT)})
    with open(pipe) as file:
        assert file.readline() == "here\n"
        started = time.monotonic()
        parent.kill()
        parent.wait()
        # The end of the pipe comes when nobody holds it open any more.
        assert file.read() == "" and time.monotonic() - started < 50
