"""Checks a file of generated texts: `python -m training.describe check DESCRIPTIONS [--data NAME ROOT]`.

Prints for each check how many records of status "ok" fail it, with an example, and exits with status 1 if any does. With
--data, it also counts near-duplicate texts of different people; since a few people do look alike, these are no failure.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from training.describe.options import add_checks, checks_of, read_data, show_progress
from training.describe.text.records import read_text_records
from training.describe.text.text_checks import NearDuplicates, check_texts
from training.utils import cli


def main(argv: Sequence[str]) -> None:
    """Entry point. Raises SystemExit(1) when an "ok" record fails a check, ValueError or FileNotFoundError for bad input."""
    parser = argparse.ArgumentParser("python -m training.describe check", description=__doc__, allow_abbrev=False)
    parser.add_argument("descriptions", type=Path, metavar="DESCRIPTIONS", help="JSONL file of generated texts")
    parser.add_argument("--data", nargs=2, metavar=("NAME", "ROOT"), help="data set: says which images show one person")
    add_checks(parser)
    known = parser.parse_args(argv)
    schema, limits = checks_of(known)
    records = read_data(*known.data) if known.data else {}
    index, duplicates = NearDuplicates(), list[tuple[str, str]]()
    status: Counter[str] = Counter()
    failures: dict[str, list[tuple[str, str]]] = {}
    failing = 0
    for text in show_progress(read_text_records(known.descriptions), "texts"):
        status[text.status] += 1
        if text.status != "ok":
            continue
        checks = check_texts(text.identity, text.clothing, schema, limits)
        failing += any(checks.values())
        for name, reason in checks.items():
            failures.setdefault(name, []).extend([(text.file_path, reason)] if reason else [])
        if text.file_path in records:
            person = records[text.file_path].id
            earlier = index.add(text.file_path, f"{text.identity} {text.clothing}", person)
            duplicates += [(text.file_path, earlier)] if earlier else []
    if not status["ok"]:
        raise ValueError(f"{known.descriptions} holds no record of status ok to check")
    _print(status, failures, failing)
    if known.data:
        example = f", for instance {duplicates[0][0]} and {duplicates[0][1]}" if duplicates else ""
        print(f"{len(duplicates)} of {status['ok']} are near-duplicates of a text of another person{example}")
    if failing:
        raise SystemExit(1)


def _print(status: Counter[str], failures: dict[str, list[tuple[str, str]]], failing: int) -> None:
    counted = ", ".join(f"{count} {name}" for name, count in status.most_common())
    print(f"{status.total()} records: {counted}")
    table = Table("check", "failed", "%")
    for name, count in (*((name, len(found)) for name, found in failures.items()), ("any", failing)):
        table.add_row(name, str(count), f"{100 * count / status['ok']:.2f}")
    Console().print(table)
    for name, found in failures.items():
        if found:
            print(f"{name}, for instance {found[0][0]}: {found[0][1]}")


if __name__ == "__main__":
    sys.exit(cli.run(main))
