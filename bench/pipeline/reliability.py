"""Kills, flipped bits and full disks: `python -m bench.pipeline.reliability --count 20` does so many of each to every stage.

After a SIGKILL at a random moment the same command runs again, and its result is compared with that of an undisturbed run. A
file of a run with a flipped bit must be refused by name or give the same result. A training on a disk that gets full (a tmpfs of
random size, which needs root) must name the file, and continue to the same bits once there is room. The tables go to
docs/reliability.md.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import tyro

from bench.pipeline.reliability_stages import STAGES, Outcome, Stage, build
from training.utils.io import write_bytes

PAGE = Path("docs/reliability.md")
MARKERS = ("<!-- tables -->", "<!-- end of tables -->")
BY_NAME = {stage.name: stage for stage in STAGES}
# Files of a run, and the stage whose result depends on them; "DATA/" and "GALLERY/" stand before a file of the data set and of
# a gallery.
FILES = {
    "best.pt": "evaluate",
    "tokenizer/tokenizer.json": "evaluate",
    "tokenizer/tokenizer_config.json": "evaluate",
    "images.json": "evaluate",
    "calls.json": "evaluate",
    "resources.json": "evaluate",
    "last.pt": "train",
    "config.json": "train",
    "metrics.jsonl": "train",
    "eval.json": "report",
    "diagnosis.json": "report",
    "calibration.json": "search",
    "GALLERY/gallery.db": "gallery search",
    "GALLERY/table-0.f32": "gallery search",
    "DATA/reid_raw.json": "evaluate",
    "DATA/descriptions.jsonl": "evaluate",
    "DATA/an image": "evaluate",
}

# Refused by the digest of all of them: an error names the data set.
FINGERPRINTED = ("DATA/reid_raw.json", "DATA/descriptions.jsonl")


@dataclass(frozen=True)
class Arguments:
    """Arguments of the command."""

    # Kills of each stage, flips in each file, full disks.
    count: int = 20
    # Seed of the moments and bits.
    seed: int = 0
    # Stages that are killed; all by default.
    stages: tuple[str, ...] = ()
    # Parts to do.
    parts: tuple[str, ...] = ("kills", "flips", "disk")
    # Files whose bits are flipped; all by default.
    files: tuple[str, ...] = ()
    # Write the tables into docs/reliability.md.
    write: bool = False


def main() -> None:
    """Entry point. Raises SystemExit with status 1 where anything was lost or silently wrong."""
    arguments = tyro.cli(Arguments, description=__doc__)
    torch.set_num_threads(1)
    moment, tables, wrong = random.Random(arguments.seed), list[str](), 0
    parts: dict[str, Callable[[Path, int, random.Random], tuple[str, int]]] = {
        "kills": partial(kill_stages, names=arguments.stages or tuple(BY_NAME)),
        "flips": partial(flip_files, files=arguments.files or tuple(FILES)),
        "disk": fill_disk,
    }
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        build(base)
        for name in arguments.parts:
            table, failures = parts[name](base, arguments.count, moment)
            print(table, flush=True)
            tables.append(table)
            wrong += failures
    if arguments.write:
        before, _, rest = PAGE.read_text().partition(MARKERS[0])
        after = rest.partition(MARKERS[1])[2]
        page = f"{before}{MARKERS[0]}\n\n" + "\n\n".join(tables) + f"\n\n{MARKERS[1]}{after}"
        write_bytes(PAGE, page.encode())
    if wrong:
        raise SystemExit(1)


def kill_stages(base: Path, count: int, moment: random.Random, names: Sequence[str]) -> tuple[str, int]:
    """(table, number of wrong results) of `count` kills of each of these stages."""
    rows, wrong = list[str](), 0
    for stage in (BY_NAME[name] for name in names):
        work = base / "work"
        stage.prepare(base, work)
        whole = stage.run(base, work)
        expected = stage.result(work, whole.output)
        outcomes: Counter[str] = Counter()
        while outcomes["killed"] < count:
            stage.prepare(base, work)
            first = stage.run(base, work, moment.uniform(0, whole.seconds))
            outcomes["killed" if first.status < 0 else "done before"] += 1
            if first.status < 0:
                again = stage.run(base, work, again=True)
                same = _same(stage, work, again, expected)
                outcomes["same" if same else "wrong"] += 1
                if not same:
                    print(f"{stage.name}: {again.status} {again.output[-400:]}")
        wrong += outcomes["wrong"]
        left = [path.name for path in work.rglob(".*") if path.is_file()]
        rows.append(
            f"| {stage.name} | {whole.seconds:.1f} s | {count} | {outcomes['same']} | {outcomes['wrong']} | {len(left)} |"
        )
    head = "| stage | undisturbed | kills | same result after the same command | lost or wrong | files left behind |"
    return "\n".join([head, "|---|---|---|---|---|---|", *rows]), wrong


def flip_files(base: Path, count: int, moment: random.Random, files: Sequence[str]) -> tuple[str, int]:
    """(table, number of wrong results) of `count` flipped bits in each file of a run, one at a time."""
    rows, wrong = list[str](), 0
    for name in files:
        stage_name = FILES[name]
        stage, work = BY_NAME[stage_name], base / "work"
        expected = None
        outcomes: Counter[str] = Counter()
        for number in range(count + 1):
            _start_flip(stage, base, work)
            path = _file(name, base, work)
            # The first run is undisturbed.
            with _flip(path, moment) if number else _nothing():
                outcome = stage.run(base, work, again=True)
            if not number:
                expected = stage.result(work, outcome.output)
            elif outcome.status == 2 and (path.name in outcome.output or name in FINGERPRINTED):
                outcomes["refused"] += 1
            elif _same(stage, work, outcome, expected):
                outcomes["same"] += 1
            else:
                outcomes["wrong"] += 1
                print(f"{name}: {outcome.status} {outcome.output[-400:]}")
        wrong += outcomes["wrong"]
        rows.append(
            f"| {name} | {stage_name} | {count} | {outcomes['refused']} | {outcomes['same']} | {outcomes['wrong']} |"
        )
    head = "| file | read by | flips | refused by name | harmless: same result | silently wrong |"
    return "\n".join([head, "|---|---|---|---|---|---|", *rows]), wrong


def fill_disk(base: Path, count: int, moment: random.Random) -> tuple[str, int]:
    """(table, number of wrong results) of `count` trainings on a tmpfs of random size."""
    stage, work = BY_NAME["train"], base / "disk"
    stage.prepare(base, base / "work")
    expected = stage.result(base / "work", stage.run(base, base / "work").output)
    needed = sum(path.stat().st_size for path in (base / "work").rglob("*") if path.is_file())
    outcomes: Counter[str] = Counter()
    work.mkdir()
    for _ in range(count):
        with _tmpfs(work, moment.randrange(8192, needed)) as resize:
            first = stage.run(base, work)
            named = re.search(r"error: .* cannot be written: No space left on device; the disk of .* has", first.output)
            outcomes["finished" if not first.status else "named" if named else "not named"] += 1
            if first.status and not named:
                print(first.status, first.output[-400:])
            resize(10 * needed)
            again = stage.run(base, work, again=True)
            same = _same(stage, work, again, expected)
            outcomes["same" if same else "wrong"] += 1
            if not same:
                print(again.status, again.output[-400:])
    head = "| trainings | disk large enough | error names file and disk | other error | same result later | wrong |"
    row = " | ".join(str(outcomes[name]) for name in ("finished", "named", "not named", "same", "wrong"))
    return "\n".join([head, "|---|---|---|---|---|---|", f"| {count} | {row} |"]), outcomes["wrong"] + outcomes[
        "not named"
    ]


def _start_flip(stage: Stage, base: Path, work: Path) -> None:
    """A run to evaluate, to report, to search in, or to continue."""
    shutil.rmtree(work, ignore_errors=True)
    start = {"evaluate": "trained", "train": "trained", "gallery search": "filled"}
    shutil.copytree(base / start.get(stage.name, "evaluated"), work)


def _file(name: str, base: Path, work: Path) -> Path:
    if name == "DATA/an image":
        return next((base / "data/imgs").rglob("*.jpg"))
    if name.startswith("GALLERY/"):
        return work / name.replace("GALLERY", "gallery")
    return base / "data" / name[5:] if name.startswith("DATA/") else work / "run" / name


@contextmanager
def _flip(path: Path, moment: random.Random) -> Iterator[None]:
    before = path.read_bytes()
    place, bit = moment.randrange(len(before)), moment.randrange(8)
    times = path.stat()
    path.write_bytes(before[:place] + bytes([before[place] ^ 1 << bit]) + before[place + 1 :])
    try:
        yield
    finally:
        if path.exists():
            path.write_bytes(before)
            os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


@contextmanager
def _nothing() -> Iterator[None]:
    yield


@contextmanager
def _tmpfs(folder: Path, size: int) -> Iterator[Callable[[int], None]]:
    """A disk of so many bytes in memory, mounted at `folder`; yields a function that changes its size."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(folder)], check=True)
    try:
        yield lambda larger: subprocess.run(["mount", "-o", f"remount,size={larger}", str(folder)], check=True) and None
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def _same(stage: Stage, work: Path, outcome: Outcome, expected: Any) -> bool:
    try:
        return outcome.status == 0 and stage.result(work, outcome.output) == expected
    except (OSError, ValueError, KeyError) as error:
        print(f"the result cannot be read: {error}")
        return False


if __name__ == "__main__":
    main()
