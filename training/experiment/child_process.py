"""Commands in processes of their own: memory and crashes of one run are not those of another."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from training.utils.cli import END_WITH_INPUT

# Seconds between two calls of tick().
INTERVAL = 0.5
# What is freed is kept for the next allocation, in huge pages, in place of being returned to Linux and zeroed again page by
# page: a step of the recipe synthetic on one thread takes 0.53 in place of 0.57 s, for 6 % more memory.
GLIBC_TUNABLES = ":".join(
    f"glibc.malloc.{name}" for name in ("hugetlb=1", "mmap_threshold=33554432", "trim_threshold=1073741824")
)


def run_command(
    words: Sequence[str], *, log: Path, tick: Callable[[], None] = lambda: None, threads: int | None = None
) -> None:
    """Runs `python -m WORDS`, whose main passes through `cli.run`; tick() is called in the meantime.

    log: gets the command line, to repeat it by hand, and the output, after its present content. threads: number of threads of
    torch; its own choice by default. glibc's malloc keeps what is freed, unless GLIBC_TUNABLES is set. The process does not
    outlive this one. Raises RuntimeError with the last line of its output when it fails, and with the signal when it was killed.
    """
    environment = {"GLIBC_TUNABLES": GLIBC_TUNABLES, **os.environ, END_WITH_INPUT: "1"}
    line = shlex.join(["python", "-m", *words])
    if threads is not None:
        environment["OMP_NUM_THREADS"] = str(threads)
        line = f"OMP_NUM_THREADS={threads} {line}"
    with open(log, "ab") as file:
        file.write(f"{line}\n".encode())
        file.flush()
        start = file.tell()
        command = [sys.executable, "-m", *words]
        # The input ends with this process, however that ends, and the command with its input.
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=file, stderr=subprocess.STDOUT, env=environment
        ) as process:
            try:
                status = _wait(process, tick)
            except BaseException:
                process.terminate()
                raise
    if status:
        raise RuntimeError(f"{_reason(status, log, start)}; what it printed is in {log}")


def _wait(process: subprocess.Popen[bytes], tick: Callable[[], None]) -> int:
    while True:
        try:
            return process.wait(INTERVAL)
        except subprocess.TimeoutExpired:
            tick()


def _reason(status: int, log: Path, start: int) -> str:
    if status < 0:
        return f"its process was ended by signal {-status} (out of memory?)"
    with open(log, "rb") as file:
        file.seek(start)
        lines = file.read().decode(errors="replace").split("\n")
    last = next((line for line in reversed(lines) if line.strip()), f"its process ended with status {status}")
    return last.removeprefix("error: ")
