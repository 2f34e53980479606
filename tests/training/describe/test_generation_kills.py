"""Generation against a server that fails in every way while its own process is killed: nothing lost, nothing paid twice."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from bench.pipeline.fake_openai import LOST, PAID
from tests.support import ROOT
from tests.support.pedes_dataset import make_pedes
from training.describe.text.schema import load_schema
from training.describe.text.text_checks import Limits, check_texts

SCHEMA = load_schema()
KEY = "sk-secret-0123456789abcdef"


@dataclass
class Fault:
    """A server in a process of its own that fails a quarter of the requests."""

    port: int
    log: Path

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.read_bytes().splitlines()]


@pytest.fixture
def faulty(tmp_path) -> Iterator[Fault]:
    log = tmp_path / "server.jsonl"
    log.touch()
    command = [sys.executable, "-m", "bench.pipeline.fake_openai", "--faults", "0.25", "--log", str(log)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield Fault(int(process.stdout.readline()), log)
        process.kill()


def stored_keys(out: Path) -> set[str]:
    path = out / "answers.jsonl"
    whole = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    return {json.loads(line)["key"] for line in whole if line.endswith(b"\n")}


CONCURRENCY = 16
COMMAND = [sys.executable, "-m", "training.describe", "generate", "cuhk-pedes"]
OPTIONS = "--model fake --key-variable FAKE_KEY --yes --attempts 2 --retries 2 --failures 1000 --refusals 1000".split()
# Longer than a busy machine holds up an answer: one that comes too late is lost, and paid for again.
OPTIONS += "--first-wait 0.02 --longest-wait 0.1 --read-timeout 2 --total-timeout 3".split()
OPTIONS += ["--concurrency", str(CONCURRENCY)]


def survive(tmp_path: Path, faulty: Fault, images: int, kills: int) -> dict[str, dict[str, Any]]:
    """Generates for so many images, killed so often; checks what must hold and returns the records."""
    root = make_pedes(tmp_path / "pedes", {"train": images // 5, "val": 1, "test": 1}, 5)
    out, output = tmp_path / "out", tmp_path / "output.txt"
    command = [*COMMAND, str(root), "--out", str(out), "--base-url", f"http://127.0.0.1:{faulty.port}/v1", *OPTIONS]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "FAKE_KEY": KEY}
    out.mkdir()
    (left := out / ".generation.json.0a1b2c3d.tmp").touch()
    rng = random.Random(images)
    marks: list[tuple[int, set[str]]] = []
    for number in range(kills + 1):
        with output.open("a") as file, subprocess.Popen(command, env=environment, stdout=file, stderr=file) as process:
            aim = len(stored_keys(out)) + rng.randrange(2 * images // (kills + 1))
            while number < kills and process.poll() is None and len(stored_keys(out)) < aim:
                time.sleep(0.01)
            if number < kills:
                time.sleep(rng.uniform(0, 0.1))
                process.send_signal(signal.SIGKILL)
        marks.append((len(faulty.lines()), stored_keys(out)))
    assert process.returncode == 0, output.read_text()[-2000:]
    assert not left.exists(), "files that a kill left unfinished are removed"
    check_payments(faulty.lines(), marks, stored_keys(out), kills)
    written = [path.read_text() for path in out.iterdir()] + [output.read_text()]
    # The server tells the key back in its errors; it must be nowhere.
    assert not any(KEY in text for text in written)
    return check_records(root, out)


def check_payments(
    lines: list[dict[str, Any]], marks: list[tuple[int, set[str]]], stored: set[str], kills: int
) -> None:
    """No request for a key after its answer was stored; an answer is lost only with the process that waited for it."""
    for place, keys in marks:
        asked_later = {line["key"] for line in lines[place:]}
        assert not asked_later & keys
    paid = Counter(line["key"] for line in lines if line["what"] in PAID)
    assert set(paid) == stored
    assert sum(paid.values()) - len(paid) <= kills * CONCURRENCY
    # A key stands for one call, and the other way round.
    assert len({line["key"] for line in lines}) == len({line["call"] for line in lines})
    assert len({(line["key"], line["call"]) for line in lines}) == len({line["key"] for line in lines})


def check_records(root: Path, out: Path) -> dict[str, dict[str, Any]]:
    """Exactly one record per training image: valid texts, or a reason."""
    lines = (out / "descriptions.jsonl").read_bytes().split(b"\n")
    assert lines.pop() == b""
    rows = [json.loads(line) for line in lines]
    records = {row["file_path"]: row for row in rows}
    wanted = {r["file_path"] for r in json.loads((root / "reid_raw.json").read_text()) if r["split"] == "train"}
    assert len(rows) == len(records) and set(records) == wanted
    for row in rows:
        if row["status"] == "ok":
            assert not any(check_texts(row["identity"], row["clothing"], SCHEMA, Limits()).values())
        else:
            assert row["status"] in ("rejected", "failed") and row["reason"]
    return records


def test_killed_at_random_and_failed_by_the_server(tmp_path, faulty):
    records = survive(tmp_path, faulty, images=90, kills=2)
    assert Counter(row["status"] for row in records.values())["ok"] > 70


@pytest.mark.slow
def test_two_thousand_images_killed_twelve_times(tmp_path, faulty):
    records = survive(tmp_path, faulty, images=2000, kills=12)
    counts = Counter(row["status"] for row in records.values())
    done = Counter(line["what"] for line in faulty.lines())
    print(f"\n{dict(counts)} of 2000 images; requests by what was done: {dict(done)}")
    assert any("[key]" in row.get("reason", "") for row in records.values())
    assert counts["ok"] > 1800 and counts["rejected"] > 0 and counts["failed"] > 0
    assert set(done) == {*PAID, *LOST}
