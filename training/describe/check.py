"""Checks a file of generated texts: `python -m training.describe check DESCRIPTIONS [--data NAME ROOT]`.

Prints for each check how many records of status "ok" fail it, with an example, and exits with status 1 if any does. With
--data, it also counts near-duplicate texts of different people; since a few people do look alike, these are no failure.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from training.describe.options import CheckOptions, read_data, show_progress
from training.utils import cli


@dataclass(frozen=True)
class Arguments:
    """Arguments of the command."""

    # JSONL file of generated texts.
    descriptions: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DESCRIPTIONS")]
    # Data set: says which images show one person.
    data: Annotated[tuple[str, str] | None, tyro.conf.arg(metavar="NAME ROOT")] = None
    # Requirements on the texts.
    checks: CheckOptions = field(default_factory=CheckOptions)


def main(argv: Sequence[str]) -> None:
    """Entry point. Raises SystemExit(1) when an "ok" record fails a check, ValueError or FileNotFoundError for bad input."""
    arguments = cli.parse(Arguments, argv, "training.describe check", __doc__)
    # Not at the top: --help need not wait for them.
    from training.describe.text.records import read_text_records
    from training.describe.text.text_checks import NearDuplicates, check_texts

    schema, limits = arguments.checks.load()
    records = read_data(*arguments.data) if arguments.data else {}
    index, duplicates = NearDuplicates(), list[tuple[str, str]]()
    status: Counter[str] = Counter()
    failures: dict[str, list[tuple[str, str]]] = {}
    failing = 0
    for text in show_progress(read_text_records(arguments.descriptions), "texts"):
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
        raise ValueError(f"{arguments.descriptions} holds no record of status ok to check")
    _print(status, failures, failing)
    if arguments.data:
        example = f", for instance {duplicates[0][0]} and {duplicates[0][1]}" if duplicates else ""
        print(f"{len(duplicates)} of {status['ok']} are near-duplicates of a text of another person{example}")
    if failing:
        raise SystemExit(1)


def _print(status: Counter[str], failures: dict[str, list[tuple[str, str]]], failing: int) -> None:
    from rich.table import Table

    from training.utils.terminal import make_console

    counted = ", ".join(f"{count} {name}" for name, count in status.most_common())
    print(f"{status.total()} records: {counted}")
    table = Table("check", "failed", "%")
    for name, count in (*((name, len(found)) for name, found in failures.items()), ("any", failing)):
        table.add_row(name, str(count), f"{100 * count / status['ok']:.2f}")
    make_console(soft_wrap=False).print(table)
    for name, found in failures.items():
        if found:
            print(f"{name}, for instance {found[0][0]}: {found[0][1]}")


if __name__ == "__main__":
    sys.exit(cli.run(main))
