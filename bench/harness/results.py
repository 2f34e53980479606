"""Rows on disk: one CSV per machine under bench/results/, appended and never edited; the newest rows of each case."""

from __future__ import annotations

import csv
import datetime
import os
import platform
import re
import subprocess
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path

import torch

import bdam_fast
from bdam_fast import _native
from training.utils.machine import cpu_name

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "bench" / "results"
FACTS = ("date", "commit", "machine", "threads", "isa", "torch", "python", "bdam_fast", "malloc", "load", "mode")
CASE = ("op", "shape", "order", "dtype", "direction")
MEASURED = (
    "variant kind rounds median_ms p20_ms p80_ms times_ours error speed_per_element speed_per_state "
    "share_of_bandwidth share_of_limit peak_mib note"
).split()
COLUMNS = (*FACTS, *CASE, *MEASURED)
# Further columns of rows measured on a GPU: card, driver, copy bandwidth and clock at the time; microseconds in which the host
# queues a call.
GPU_FACTS = ("gpu", "gpu_memory_gib", "driver", "cuda", "triton", "copy_gb_s", "clock_mhz", "host_us")
TUNABLES = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_")
# Ops of bench.pipeline, measured under the environment's own malloc setting: they do not decide which setting a page shows.
PIPELINE_OPS = ("training", "loading")
Row = dict[str, str]


def malloc_setting(environment: Mapping[str, str] = os.environ) -> str:
    """Setting of glibc's malloc; by default it returns freed memory at once, and a fresh output costs 2 us per page touched."""
    found = [f"{name}={environment[name]}" for name in TUNABLES if environment.get(name)]
    return " ".join(found) or "default"


def commit() -> str:
    """Short hash of the checkout, with `-dirty` if a tracked file differs, files written by the benchmark excepted.

    BDAM_FAST_COMMIT replaces it on a machine to which the files alone were copied; `unknown` where git is not installed or this
    is no checkout of its own.
    """
    if given := os.environ.get("BDAM_FAST_COMMIT"):
        return given

    def git(*arguments: str) -> str:
        try:
            return subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True).stdout.strip()
        except FileNotFoundError:
            return ""

    excluded = [":!bench/results", ":!docs/benchmarks.md", ":!docs/speed.png"]
    changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", *excluded)
    return (git("rev-parse", "--short", "HEAD") or "unknown") + ("-dirty" if changed else "")


@lru_cache(maxsize=1)
def facts() -> Row:
    """Columns that identify the conditions of a row. One date per process: the rows of a run belong together."""
    isa = _native.extension().isa() if _native.available() else ""
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "commit": commit(),
        "machine": cpu_name(),
        "threads": str(torch.get_num_threads()),
        "isa": isa,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "bdam_fast": bdam_fast.__version__,
        "malloc": malloc_setting(),
        # Runnable processes over the last minute: above 0.5 at the start, other work was measured too.
        "load": f"{os.getloadavg()[0]:.2f}",
        "mode": "full",
    }


def machine_file(common: Row, folder: Path = RESULTS) -> Path:
    """CSV of a machine, named by its GPU if the rows were measured on one, else by processor and number of threads."""
    gpu = common.get("gpu", "")
    name = re.sub(r"\W+", "-", re.sub(r"\((R|TM)\)", "", gpu or common["machine"]).lower()).strip("-")
    return folder / (f"{name}.csv" if gpu else f"{name}-{common['threads']}t.csv")


def append(made: Iterable[Row], folder: Path = RESULTS, **changes: str) -> Path:
    """Appends rows, completed with `facts()` and `changes`, to this machine's CSV and returns its path.

    Raises:
        ValueError: a row has a column that is not one of COLUMNS (or GPU_FACTS, where there is a `gpu`).
        RuntimeError: the file has other columns, from an older version of the harness.
    """
    common = {**facts(), **changes}
    columns = (*COLUMNS, *GPU_FACTS) if common.get("gpu") else COLUMNS
    path = machine_file(common, folder)
    folder.mkdir(parents=True, exist_ok=True)
    new = not path.exists()
    if not new:
        with path.open(newline="") as file:
            header = tuple(next(csv.reader(file), ()))
        if header != columns:
            raise RuntimeError(f"bench: {path} has other columns than this version writes; rename it, it is kept as is")
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=columns, restval="", extrasaction="raise", lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerows({**common, **row} for row in made)
    return path


def read(path: Path) -> list[Row]:
    """All rows of a CSV, oldest first."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def newest(rows: Iterable[Row], malloc: str = "") -> list[list[Row]]:
    """Rows of each case from its newest full run (from its newest quick run when there is no full one).

    Rows of one case in one run were measured side by side, so only those are compared, and only runs under one malloc
    setting: `malloc`, or that of the newest full run of an operator. Cases keep the order of their first appearance.
    """
    rows = list(rows)
    if not rows:
        return []
    operators = [row for row in rows if row["op"] not in PIPELINE_OPS]
    chosen = malloc or max(operators or rows, key=_age)["malloc"]
    runs: dict[tuple[str, ...], dict[tuple[bool, str], list[Row]]] = {}
    for row in rows:
        if row["malloc"] == chosen:
            runs.setdefault(tuple(row[key] for key in CASE), {}).setdefault(_age(row), []).append(row)
    return [case[max(case)] for case in runs.values()]


def _age(row: Row) -> tuple[bool, str]:
    return row["mode"] == "full", row["date"]


def ours(case: Iterable[Row]) -> Row | None:
    """Row of our variant, None where it was not timed."""
    return next((row for row in case if row["kind"] == "ours" and row["median_ms"]), None)


def fastest(case: Iterable[Row], *kinds: str) -> Row | None:
    """The fastest timed row of these kinds (`eager`, `compiled`)."""
    timed = [row for row in case if row["kind"] in kinds and row["median_ms"]]
    return min(timed, key=lambda row: float(row["median_ms"]), default=None)


def ratio(case: Iterable[Row], *kinds: str) -> float | None:
    """Ratio of the fastest time of these kinds to ours; None where one of the two is missing."""
    case = list(case)
    own, peer = ours(case), fastest(case, *kinds)
    return None if own is None or peer is None else float(peer["median_ms"]) / float(own["median_ms"])


def milliseconds(text: str) -> str:
    """Formats milliseconds with a unit: microseconds below 0.1 ms, seconds from 1 s on."""
    value = float(text)
    if value < 0.1:
        return f"{value * 1e3:.1f} µs"
    return f"{value:.3g} ms" if value < 1000 else f"{value / 1e3:.3g} s"
