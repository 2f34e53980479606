"""Options and helpers that the commands share: thresholds of the checks, the data set, progress, confirmation."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from training.config.fields import Stage
from training.describe.text.check_limits import Limits

if TYPE_CHECKING:
    from training.data.datasets import Record
    from training.describe.text.schema import Schema

Item = TypeVar("Item")


@dataclass(frozen=True)
class CheckOptions(Stage):
    """Requirements on the texts: attributes, length."""

    # Attribute schema, in place of the package's own.
    schema: Path | None = None
    # Sensitive attributes that no text may mention.
    leave_out: tuple[str, ...] = ()
    # Smallest and largest number of words that a text may have.
    words: tuple[int, int] = Limits().words
    # Smallest number of attributes that a text must cover.
    attributes: int = Limits().attributes
    # Reject "appears to be", "possibly" and the like.
    hedging: bool = False

    def load(self) -> tuple[Schema, Limits]:
        """The schema and the thresholds. Raises what `load_schema`, `Schema.without` and `Limits` raise."""
        from training.describe.text.schema import load_schema

        schema = load_schema(self.schema)
        limits = Limits(self.words, self.attributes, self.hedging)
        return (schema.without(self.leave_out) if self.leave_out else schema), limits


def confirm(question: str) -> bool:
    """Asks for a confirmation on the terminal. Raises ValueError where there is none."""
    if not sys.stdin.isatty():
        raise ValueError(f"{question} There is no terminal to confirm on; --yes continues without confirmation")
    return input(f"{question} Continue? [y/N] ").strip().lower() in ("y", "yes")


def read_data(name: str, root: str) -> dict[str, Record]:
    """Reads the records of all splits of a data set, by file path. Raises what `read_records` raises."""
    # Not at the top: --help need not wait for them.
    from training.config import DataConfig
    from training.data.datasets import read_records

    fields: dict[str, Any] = {"dataset": name, "root": root}
    splits = read_records(DataConfig(**fields))
    return {record.file_path: record for record in itertools.chain.from_iterable(splits.values())}


def show_progress(items: Iterable[Item], noun: str) -> Iterator[Item]:
    """Passes the items through and counts them on a terminal."""
    from training.utils.terminal import make_console, make_progress

    with make_progress(make_console(stderr=True)) as bar:
        task = bar.add_task(noun, total=None)
        for count, item in enumerate(items, 1):
            yield item
            if count % 500 == 0:
                bar.update(task, description=f"{noun}: {count:,}")
