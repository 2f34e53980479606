"""Ranks of a training that die at random moments: `python -m bench.pipeline.scale.kills --count 20`.

torchrun trains a miniature model on a miniature set, once undisturbed and then with SIGKILLs to a random rank: some while the
ranks start, the others after a random step. torchrun starts all ranks again each time, and they continue from last.pt. The log,
the metrics and both checkpoints in the end are compared with those of the undisturbed job, to the bit.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from bench.pipeline.reliability_stages import SET, TINY, plain
from training.engine import checkpoint

ROOT = Path(__file__).parents[3]
# Left out of the comparison of two logs: measured, or a digest of what is measured.
MEASURED = ("seconds", "memory_mb", "crc32")
# A kill that finds no ranks within so many seconds is an error: the job has ended or hangs.
PATIENCE = 1200.0


@dataclass(frozen=True)
class Arguments:
    """Arguments of the command."""

    # Kills in all.
    count: int = 20
    # Kills in one job at most.
    per_job: int = 5
    # Processes of a job.
    ranks: int = 2
    # Epochs of a job.
    epochs: int = 8
    # Seed of ranks and moments.
    seed: int = 0


def main() -> None:
    """Entry point. Raises SystemExit with status 1 where a result differs."""
    arguments = tyro.cli(Arguments, description=__doc__)
    draw, left, wrong, number = random.Random(arguments.seed), arguments.count, 0, 0
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        subprocess.run(
            [sys.executable, "-m", "training.prepare", "synthetic", str(base / "data"), *SET], cwd=ROOT, check=True
        )
        finish(torchrun(*job_words(arguments, base, "whole", 0)))
        expected, steps = result(base / "whole"), steps_in(base / "whole")
        print("| job | kills | after steps | ranks killed | same log, metrics and weights |\n|---|---|---|---|---|")
        while left:
            number, kills = number + 1, min(left, arguments.per_job)
            left -= kills
            run = f"run{number}"
            process = torchrun(*job_words(arguments, base, run, kills))
            # The first while nothing is written yet, the last well before the end; two after one step: the second as ranks start.
            moments = [0, *sorted(draw.randrange(1, 3 * steps // 4) for _ in range(kills - 1))]
            killed = [kill_after(process, base / run, step, arguments.ranks, draw) for step in moments]
            finish(process)
            same = result(base / run) == expected
            wrong += not same
            cells = (", ".join(map(str, moments)), ", ".join(map(str, killed)), "yes" if same else "NO")
            print(f"| {number} | {kills} | {' | '.join(cells)} |", flush=True)
    print(f"{arguments.count} kills, {number} jobs of {steps} steps, {number - wrong} of them with the same result")
    if wrong:
        raise SystemExit(1)


def job_words(arguments: Arguments, base: Path, run: str, restarts: int) -> list[str]:
    """Words of torchrun for a training in `base`/`run`."""
    words = ["--standalone", "--nproc-per-node", str(arguments.ranks), "--max-restarts", str(restarts)]
    words += ["-m", "training.train", "synthetic", "--out", str(base / run), "--resume", "--no-check-memory"]
    return [*words, "--data.root", str(base / "data"), *TINY, "--optim.epochs", str(arguments.epochs)]


def torchrun(*words: str, prefix: Sequence[str] = (), **environment: str) -> subprocess.Popen[str]:
    """torchrun in a session of its own, with one thread for each process."""
    command = [*prefix, sys.executable, "-m", "torch.distributed.run", *words]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    own = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)} | environment
    return subprocess.Popen(command, env=own, cwd=ROOT, start_new_session=True, **pipes)


def finish(process: subprocess.Popen[str], seconds: float = 1800.0) -> str:
    """Output of an agent of torchrun, whose ranks end with it. Raises RuntimeError where it fails."""
    try:
        output, _ = process.communicate(timeout=seconds)
    finally:
        end(process)
    if process.returncode:
        raise RuntimeError(f"a job failed with status {process.returncode}: {output[-2000:]}")
    return output


def end(process: subprocess.Popen[str]) -> None:
    """Kills an agent of torchrun that still runs, and its ranks, which have sessions of their own."""
    if process.poll() is None:
        for pid in (process.pid, *ranks_of(process.pid)):
            os.kill(pid, signal.SIGKILL)


def ranks_of(agent: int) -> list[int]:
    """Processes that an agent of torchrun has started and that train, by /proc."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            words = (path / "cmdline").read_bytes().split(b"\0")
        except (OSError, ValueError):
            continue
        if parent == agent and b"training.train" in words:
            found.append(int(path.name))
    return sorted(found)


def steps_in(run_dir: Path) -> int:
    """Number of steps in the log of a run."""
    path = run_dir / "metrics.jsonl"
    return path.read_text().count('"losses"') if path.exists() else 0


def kill_after(process: subprocess.Popen[str], run_dir: Path, step: int, size: int, draw: random.Random) -> int:
    """Kills a random one of `size` ranks within half a second of a step, once all are there, and returns its place among them.

    Raises RuntimeError where the job ends before.
    """
    latest = time.monotonic() + PATIENCE
    while steps_in(run_dir) < step or len(ranks := ranks_of(process.pid)) < size:
        if process.poll() is not None or time.monotonic() > latest:
            end(process)
            raise RuntimeError(f"no ranks to kill after step {step}: {process.communicate()[0][-2000:]}")
        time.sleep(0.02)
    time.sleep(draw.uniform(0, 0.5))
    chosen = draw.randrange(size)
    os.kill(ranks[chosen], signal.SIGKILL)
    # The other ranks end too, and new ones take their place.
    while set(ranks_of(process.pid)) & set(ranks) and time.monotonic() < latest:
        time.sleep(0.02)
    return chosen


def result(run_dir: Path) -> Any:
    """Log without what is measured, and both checkpoints as values that can be compared."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    kept = [{key: value for key, value in line.items() if key not in MEASURED} for line in lines]
    return kept, [plain(checkpoint.load(run_dir / name)) for name in ("best.pt", "last.pt")]


if __name__ == "__main__":
    main()
