"""torchrun itself: restarts after kills at random moments, two machines, and commands as a user starts them."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from bench.pipeline.scale.kills import finish, kill_after, torchrun
from tests.support.tiny_run import read_lines, tiny_config
from tests.training.engine.distributed.test_same_numbers import exact
from training.config import Config, to_dict

KILLS = 3


def train_words(config: Config, run_dir: Path) -> list[str]:
    path = run_dir.with_name(f"{run_dir.name}.json")
    path.write_text(json.dumps(to_dict(config)))
    return ["-m", "training.train", "--config", str(path), "--out", str(run_dir), "--resume", "--no-check-memory"]


@pytest.mark.slow
def test_a_job_that_loses_ranks_ends_with_the_numbers_of_one_that_does_not(root: Path, tmp_path: Path) -> None:
    """In float32 and with dropout: the same ranks make the same bits."""
    config = tiny_config(root)
    config = replace(config, optim=replace(config.optim, epochs=6, save_every_steps=2))
    whole = ["--standalone", "--nproc-per-node", "2", *train_words(config, tmp_path / "whole")]
    finish(torchrun(*whole))
    run_dir, draw = tmp_path / "run", random.Random(0)
    restarting = ["--standalone", "--nproc-per-node", "2", "--max-restarts", str(KILLS)]
    process = torchrun(*restarting, *train_words(config, run_dir))
    # The first while nothing is written yet, the others at random steps.
    for step in [0, *sorted(draw.sample(range(1, 10), KILLS - 1))]:
        kill_after(process, run_dir, step, 2, draw)
    output = finish(process)
    assert output.count("ended without a word") + output.count("has ended, and its store with it") >= 1, output
    assert read_lines(run_dir) == read_lines(tmp_path / "whole")


@contextmanager
def two_machines() -> Iterator[tuple[str, str]]:
    """Names of two network namespaces that a cable joins, 10.203.0.1 and 10.203.0.2; skips where none can be made."""
    names = f"bdam-a-{os.getpid()}", f"bdam-b-{os.getpid()}"
    with ExitStack() as undo:
        try:
            for name in names:
                _ip("netns", "add", name)
                undo.callback(_ip, "netns", "del", name)
            ends = f"va{os.getpid()}", f"vb{os.getpid()}"
            _ip("link", "add", ends[0], "netns", names[0], "type", "veth", "peer", ends[1], "netns", names[1])
            for number, (name, end) in enumerate(zip(names, ends, strict=True), 1):
                _ip("-n", name, "link", "set", end, "name", "cable")
                _ip("-n", name, "addr", "add", f"10.203.0.{number}/24", "dev", "cable")
                for device in ("lo", "cable"):
                    _ip("-n", name, "link", "set", device, "up")
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"no network namespaces here: {getattr(error, 'stderr', error)}")
        yield names


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


@pytest.mark.slow
def test_two_machines_train_to_the_numbers_of_one_process(root: Path, tmp_path: Path) -> None:
    """Two network namespaces of this machine with two ranks each, which reach each other through one address each."""
    if shutil.which("ip") is None:
        pytest.skip("there is no `ip` to make network namespaces")
    config = exact(root, optim__epochs=1)
    one = torchrun("--standalone", "--nproc-per-node", "1", *train_words(config, tmp_path / "one"))
    finish(one)
    with two_machines() as machines:
        words = train_words(config, tmp_path / "two")
        jobs = []
        for number, name in enumerate(machines, 1):
            meeting = ["--rdzv-backend", "c10d", "--rdzv-endpoint", "10.203.0.1:29400", "--rdzv-id", "job"]
            here = ["--nnodes", "2", "--nproc-per-node", "2", "--local-addr", f"10.203.0.{number}"]
            here += ["--rdzv-conf", f"is_host={int(number == 1)}"]
            prefix = ("ip", "netns", "exec", name)
            jobs.append(torchrun(*here, *meeting, *words, prefix=prefix, GLOO_SOCKET_IFNAME="cable"))
        outputs = [finish(job) for job in jobs]
    assert sum("4 ranks share every batch (gloo)" in output for output in outputs) == 1, outputs
    ours, theirs = read_lines(tmp_path / "two"), read_lines(tmp_path / "one")
    assert len(ours) == len(theirs) > 0
    for mine, other in zip(ours, theirs, strict=True):
        for key in ("loss", "losses", "norms", "weights", "R1", "mAP"):
            if key in other:
                assert mine[key] == pytest.approx(other[key], rel=1e-11, abs=1e-11), key


@pytest.mark.slow
def test_commands_that_share_no_work_end_with_one_line_each(tmp_path: Path) -> None:
    process = torchrun("--standalone", "--nproc-per-node", "2", "-m", "training.report", str(tmp_path))
    output, _ = process.communicate(timeout=300)
    assert process.returncode != 0 and "training.report is the work of one process, not of 2" in output, output
    assert [*tmp_path.iterdir()] == []
