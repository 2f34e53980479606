"""Detection and false alarm rates of the checks on generated texts: `python -m bench.pipeline.text_checks --data data/synthetic`.

The texts of a rendered data set are true and must pass; each kind of damage (bench/pipeline/corrupted_texts.py) is applied to a
sample of them. Also near-duplicates: planted pairs that are found, and time and memory for the number of texts that all data
sets have together.
"""

from __future__ import annotations

import json
import random
import resource
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console
from rich.table import Table

from bench.pipeline.corrupted_texts import DAMAGES, Good, recoloured
from training.config import DataConfig
from training.data.datasets import read_records
from training.describe.text.prompts import load_schema
from training.describe.text.records import read_text_records
from training.describe.text.text_checks import Limits, NearDuplicates, check_texts

ALL_IMAGES = 115_233


@dataclass(frozen=True)
class Arguments:
    """Data and sample size."""

    # Data folder in the CUHK-PEDES layout with its descriptions.jsonl.
    data: str = "data/synthetic"
    # Records that each kind of damage is applied to.
    sample: int = 2000
    # Seed of the sample and of the damage.
    seed: int = 0


def read_good(data: str) -> list[tuple[str, int, Good]]:
    """Reads (file path, person, texts) of every record of status ok. Raises what the readers raise."""
    splits = read_records(DataConfig(root=data))
    records = {record.file_path: record for split in splits.values() for record in split}
    texts = [text for text in read_text_records(Path(data) / "descriptions.jsonl") if text.status == "ok"]
    shift = len(texts) // 2
    good = []
    for i, text in enumerate(texts):
        record, other = records[text.file_path], texts[(i + shift) % len(texts)]
        pair = (other.identity, other.clothing)
        good.append((text.file_path, record.id, Good(text.identity, text.clothing, record.captions, pair)))
    return good


def detection(good: list[Good], seed: int) -> dict[str, tuple[str, float, float]]:
    """Maps each kind of damage to (check that should find it, share that it finds, share that any check finds)."""
    schema, limits, found = load_schema(), Limits(hedging=True), {}
    for name, (expected, damage) in DAMAGES.items():
        rng, by_expected, by_any = random.Random(seed), 0, 0
        for item in good:
            failed = [key for key, why in check_texts(*damage(item, rng), schema, limits).items() if why]
            by_expected += any(key.endswith(f".{expected}") for key in failed)
            by_any += bool(failed)
        found[name] = (expected, by_expected / len(good), by_any / len(good))
    return found


def false_alarms(good: list[Good]) -> Counter[str]:
    """Counts the true texts that fail each check."""
    schema, limits = load_schema(), Limits(hedging=True)
    failed: Counter[str] = Counter()
    for item in good:
        failed.update(key for key, why in check_texts(item.identity, item.clothing, schema, limits).items() if why)
    return failed


def duplicates(good: list[tuple[str, int, Good]], seed: int) -> dict[str, Any]:
    """Shares of true texts that are reported, and of planted near-duplicates (one colour exchanged) that are found."""
    index, rng = NearDuplicates(), random.Random(seed)
    alarms = sum(index.add(path, f"{item.identity} {item.clothing}", person) is not None for path, person, item in good)
    planted = [index.add(f"planted/{i}", recoloured(item, rng), -1 - i) for i, (_, _, item) in enumerate(good)]
    return {"false alarms": alarms / len(good), "found": sum(path is not None for path in planted) / len(planted)}


def volume(good: list[Good], seed: int) -> tuple[float, float, float]:
    """CPU seconds of `check_texts` and of `NearDuplicates` for ALL_IMAGES texts, and megabytes that the latter keeps."""
    rng, schema, limits = random.Random(seed), load_schema(), Limits()
    start = time.process_time()
    for item in good:
        check_texts(item.identity, item.clothing, schema, limits)
    checked = (time.process_time() - start) * ALL_IMAGES / len(good)
    index, before = NearDuplicates(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.process_time()
    for i in range(ALL_IMAGES):
        index.add(f"cam_a/{i:06d}.jpg", f"{rng.choice(good).identity} {rng.choice(good).clothing}", i)
    seconds = time.process_time() - start
    return checked, seconds, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def main(arguments: Arguments) -> None:
    """Prints the tables."""
    console, everything = Console(soft_wrap=True), read_good(arguments.data)
    good = [item for _, _, item in everything]
    alarms = false_alarms(good)
    console.print(f"{len(good)} true pairs of texts: {json.dumps(alarms) if alarms else 'none fails a check'}")
    table = Table("damage", "check", "found by it, %", "found by any, %")
    sample = random.Random(arguments.seed).sample(good, min(arguments.sample, len(good)))
    for name, (expected, share, by_any) in detection(sample, arguments.seed).items():
        table.add_row(name, expected, f"{100 * share:.1f}", f"{100 * by_any:.1f}")
    console.print(table)
    shares = duplicates(everything, arguments.seed)
    console.print("near-duplicates: " + ", ".join(f"{name} {100 * share:.2f} %" for name, share in shares.items()))
    checked, seconds, memory = volume(good, arguments.seed)
    console.print(
        f"{ALL_IMAGES:,} images: checks {checked:.0f} s of one core; near-duplicates {seconds:.0f} s, {memory:.0f} MB"
    )


if __name__ == "__main__":
    main(tyro.cli(Arguments))
