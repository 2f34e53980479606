"""Options that the commands share: the data set and the thresholds of the checks."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import Progress

from training.config import DataConfig
from training.data.datasets import Record, read_records
from training.describe.text.prompts import load_schema
from training.describe.text.schema import Schema
from training.describe.text.text_checks import Limits

Item = TypeVar("Item")


def add_checks(target: argparse.ArgumentParser) -> None:
    """Options of the checks; `checks_of` reads them."""
    limits = Limits()
    target.add_argument("--schema", type=Path, metavar="FILE", help="attribute schema, in place of the package's own")
    target.add_argument(
        "--leave-out",
        nargs="+",
        default=[],
        metavar="NAME",
        help="sensitive attributes that no text may mention",
    )
    target.add_argument(
        "--words",
        nargs=2,
        type=int,
        default=limits.words,
        metavar=("MIN", "MAX"),
        help=f"least and largest number of words of a text; {limits.words[0]} {limits.words[1]} by default",
    )
    target.add_argument(
        "--attributes",
        type=int,
        default=limits.attributes,
        metavar="N",
        help=f"least number of attributes that a text covers; {limits.attributes} by default",
    )
    target.add_argument("--hedging", action="store_true", help="reject 'appears to be', 'possibly' and the like")


def checks_of(known: argparse.Namespace) -> tuple[Schema, Limits]:
    """What `add_checks` read. Raises what `load_schema`, `Schema.without` and `Limits` raise."""
    schema = load_schema(known.schema)
    limits = Limits((known.words[0], known.words[1]), known.attributes, known.hedging)
    return (schema.without(known.leave_out) if known.leave_out else schema), limits


def read_data(name: str, root: str) -> dict[str, Record]:
    """Reads the records of all splits of a data set, by file path. Raises what `read_records` raises."""
    fields: dict[str, Any] = {"dataset": name, "root": root}
    splits = read_records(DataConfig(**fields))
    return {record.file_path: record for record in itertools.chain.from_iterable(splits.values())}


def show_progress(items: Iterable[Item], noun: str) -> Iterator[Item]:
    """Passes the items through and counts them on a terminal."""
    console = Console(stderr=True)
    with Progress(
        *Progress.get_default_columns()[:1], console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task(noun, total=None)
        for count, item in enumerate(items, 1):
            yield item
            if count % 500 == 0:
                bar.update(task, description=f"{noun}: {count:,}")
