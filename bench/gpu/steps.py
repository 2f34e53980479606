"""Steps of `bench.gpu`: commands that wait for others, run side by side, each with a share of the time and a log."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from bench.harness.results import ROOT

LOGS = ROOT / "build" / "gpu"
# Lines shown of a failed step's output.
TAIL = 25
PAUSE = 0.05


class Share(Protocol):
    """A step of the plan, as far as the run has to know it."""

    @property
    def name(self) -> str:
        """Name of the step, and of its log."""

    @property
    def after(self) -> tuple[str, ...]:
        """Names of the steps that end before it starts."""

    @property
    def share(self) -> float:
        """Seconds after its start at which it is stopped."""


@dataclass(frozen=True)
class Step:
    """A command with a name."""

    name: str
    command: Sequence[str]
    environment: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """Outcome of a step: exit code (None: its share was over), seconds, and the file with its output."""

    name: str
    code: int | None
    seconds: float
    log: Path

    @property
    def passed(self) -> bool:
        """True for exit code 0."""
        return self.code == 0


# Makes the step of a name once those before it have ended; a text is the reason why it is left out.
Maker = Callable[[str, Mapping[str, Outcome]], "Step | str"]


def say(text: str) -> None:
    """Prints a line immediately."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def start(step: Step, folder: Path) -> subprocess.Popen[bytes]:
    """Starts a step in the project's folder with its output in `folder`/NAME.log."""
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


class Run:
    """A run of a plan's steps: each starts when those before it have ended, well or not, and is stopped after its share.

    Args:
        planned: the steps in order.
        make: makes the step of a name, given the outcomes so far.
        folder: where the logs are written.
    """

    def __init__(self, planned: Sequence[Share], make: Maker, folder: Path):
        self.planned, self.make, self.folder = list(planned), make, folder
        self.outcomes: dict[str, Outcome] = {}
        self._ended: set[str] = set()
        self._running: dict[str, tuple[subprocess.Popen[bytes], float, float]] = {}

    def all(self) -> list[Outcome]:
        """Runs all steps; the outcomes in the order in which they ended."""
        try:
            while len(self._ended) < len(self.planned):
                self._start()
                self._collect()
                time.sleep(PAUSE if self._running else 0)
        finally:
            for process, _, _ in self._running.values():
                stop(process)
        return list(self.outcomes.values())

    def _start(self) -> None:
        for step in self.planned:
            if step.name in self._ended or step.name in self._running or not self._ended.issuperset(step.after):
                continue
            made = self.make(step.name, self.outcomes)
            if isinstance(made, str):
                self._ended.add(step.name)
                say(f"[left out] {step.name}: {made}")
            else:
                self._running[step.name] = (start(made, self.folder), time.perf_counter(), step.share)

    def _collect(self) -> None:
        now = time.perf_counter()
        for name, (process, since, share) in list(self._running.items()):
            code = process.poll()
            if code is None and now - since < share:
                continue
            stop(process)
            del self._running[name]
            self._ended.add(name)
            self.outcomes[name] = Outcome(name, code, now - since, self.folder / f"{name}.log")
            report(self.outcomes[name])


def report(outcome: Outcome) -> None:
    """Prints a line about a step, and the end of its output if it failed."""
    ended = {0: "ok", None: "STOPPED at the end of its share"}.get(outcome.code, f"FAILED (exit code {outcome.code})")
    say(f"[{outcome.seconds:6.1f} s] {outcome.name}: {ended}; {outcome.log}")
    text = outcome.log.read_text(errors="replace").rstrip().splitlines()
    for line in text[-1:] if outcome.passed else text[-TAIL:]:
        say(f"           {line[:200]}")
