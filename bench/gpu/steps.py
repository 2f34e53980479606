"""Steps of `bench.gpu`: commands run in parallel within a time limit, each with a log."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench.harness.results import ROOT

LOGS = ROOT / "build" / "gpu"
# Lines shown of a failed step's output.
TAIL = 25
# Seconds reserved for the end.
RESERVE = 15.0


@dataclass(frozen=True)
class Step:
    """A command with a name."""

    name: str
    command: Sequence[str]
    environment: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """Outcome of a step: exit code (None: out of time), seconds, and the file with its output."""

    name: str
    code: int | None
    seconds: float
    log: Path

    @property
    def passed(self) -> bool:
        """True for exit code 0."""
        return self.code == 0


def say(text: str) -> None:
    """Prints a line immediately."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def start(step: Step, folder: Path | None = None) -> subprocess.Popen[bytes]:
    """Starts a step in the project's folder with its output in `folder`/NAME.log, by default below build/gpu/."""
    folder = folder or LOGS
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{step.name}.log").open("wb") as log:
        return subprocess.Popen(
            step.command,
            cwd=ROOT,
            env={**os.environ, **step.environment},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def stop(process: subprocess.Popen[bytes]) -> None:
    """Kills a running step with all processes that it has started."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def execute(steps: Sequence[Step], seconds: float, folder: Path | None = None) -> list[Outcome]:
    """Runs steps in parallel, kills those that take longer than `seconds`, and reports the outcome of each."""
    started = time.perf_counter()
    running = {step.name: start(step, folder) for step in steps}
    outcomes: dict[str, Outcome] = {}
    try:
        while len(outcomes) < len(running):
            time.sleep(0.05)
            spent = time.perf_counter() - started
            for name, process in running.items():
                code = process.poll()
                if name not in outcomes and (code is not None or spent > seconds):
                    stop(process)
                    outcomes[name] = Outcome(name, code, spent, (folder or LOGS) / f"{name}.log")
                    report(outcomes[name])
    finally:
        for process in running.values():
            stop(process)
    return [outcomes[step.name] for step in steps]


def report(outcome: Outcome) -> None:
    """Prints a line about a step, and the end of its output if it failed."""
    ended = {0: "ok", None: "NOT FINISHED in time"}.get(outcome.code, f"FAILED (exit code {outcome.code})")
    say(f"[{outcome.seconds:6.1f} s] {outcome.name}: {ended}; {outcome.log}")
    text = outcome.log.read_text(errors="replace").rstrip().splitlines()
    for line in text[-1:] if outcome.passed else text[-TAIL:]:
        say(f"           {line[:200]}")


class Clock:
    """Remaining time of all steps."""

    def __init__(self, seconds: float):
        self._end = time.perf_counter() + seconds

    def left(self, at_most: float, reserve: float = RESERVE) -> float:
        """Seconds that the next step may take."""
        return max(0.0, min(at_most, self._end - time.perf_counter() - reserve))
