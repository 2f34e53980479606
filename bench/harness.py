"""Side-by-side measurement: the variants of a case in one process, interleaved, medians, one row each."""

from __future__ import annotations

import csv
import datetime
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

import bdam_fast

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).resolve().parent / "results"
# A sample repeats its call until it has lasted this long, so that the clock's resolution and jitter do not matter.
SAMPLE_SECONDS = 0.01


@dataclass(frozen=True)
class Case:
    """One shape of one operator; the first variant is ours, the others are compared with it."""

    op: str
    shape: str
    dtype: str
    direction: str
    variants: Mapping[str, Callable[[], object]]
    # Bytes that any implementation has to read and write once.
    bytes_moved: int


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one variant: median, 20th and 80th percentile over the rounds."""

    median: float
    p20: float
    p80: float


def require_tests(op: str) -> None:
    """Runs the operator's tests; a number for a wrong kernel is worth nothing. Raises RuntimeError when they fail."""
    tests = [str(p) for p in sorted((ROOT / "tests").glob(f"test_{op}*.py"))]
    if subprocess.run([sys.executable, "-m", "pytest", "-x", *tests], cwd=ROOT).returncode != 0:
        raise RuntimeError(f"bench: the tests of {op} fail, so it is not measured")


def measure(variants: Mapping[str, Callable[[], object]], rounds: int = 9) -> dict[str, Timing]:
    """Times every variant once per round, in turn, so that a slow phase of the machine hits all of them."""
    repeats = {}
    for name, call in variants.items():
        call()
        start = time.perf_counter()
        call()
        repeats[name] = max(1, round(SAMPLE_SECONDS / max(time.perf_counter() - start, 1e-7)))
    samples: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name, call in variants.items():
            start = time.perf_counter()
            for _ in range(repeats[name]):
                call()
            samples[name].append((time.perf_counter() - start) / repeats[name] * 1e3)
    return {name: _timing(values) for name, values in samples.items()}


def _timing(values: list[float]) -> Timing:
    ordered = sorted(values)
    last = len(ordered) - 1
    return Timing(statistics.median(ordered), ordered[round(last * 0.2)], ordered[round(last * 0.8)])


def copy_bandwidth(megabytes: int = 256) -> float:
    """Bytes per second, read plus written, of a large tensor copy on this machine."""
    source = torch.ones(megabytes * 2**20 // 4)
    target = torch.empty_like(source)
    timing = measure({"copy": lambda: target.copy_(source)}, rounds=5)["copy"]
    return 2 * source.numel() * 4 / (timing.median / 1e3)


def cpu_name() -> str:
    """The processor's name as the system gives it."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def facts() -> dict[str, str]:
    """What a row must carry to be believed: date, commit, machine, versions."""
    git = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    commit = subprocess.run(git, capture_output=True, text=True).stdout.strip() or "unknown"
    date = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%MZ")
    versions = {"torch": torch.__version__, "bdam_fast": bdam_fast.__version__, "python": platform.python_version()}
    return {"date": date, "commit": commit, "machine": cpu_name(), "threads": str(torch.get_num_threads()), **versions}


def rows(case: Case, bandwidth: float) -> list[dict[str, str]]:
    """Measures a case: one row per variant, with its ratio to ours and the share of the copy bandwidth it reaches."""
    timings = measure(case.variants)
    ours = next(iter(timings.values())).median
    made = []
    for name, timing in timings.items():
        share = case.bytes_moved / bandwidth / (timing.median / 1e3)
        numbers = {
            "median_ms": timing.median,
            "p20_ms": timing.p20,
            "p80_ms": timing.p80,
            "times_ours": timing.median / ours,
        }
        row = {"op": case.op, "shape": case.shape, "dtype": case.dtype, "direction": case.direction, "variant": name}
        row |= {key: f"{value:.4g}" for key, value in numbers.items()} | {"share_of_bandwidth": f"{share:.1%}"}
        made.append(row)
    return made


def append(made: list[dict[str, str]]) -> Path:
    """Appends rows to this machine's CSV under bench/results/ and returns its path."""
    common = facts()
    name = "".join(c if c.isalnum() else "-" for c in common["machine"].lower()).strip("-")
    path = RESULTS / f"{name}-{common['threads']}t.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=[*common, *made[0]])
        if new:
            writer.writeheader()
        writer.writerows({**common, **row} for row in made)
    return path
