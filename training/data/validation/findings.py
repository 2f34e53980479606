"""What the validator says: findings, each with a level and pictures to look at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

# "error": the protocol cannot be run. "warning": it can, but what it measures may not be what it seems. "note": worth
# knowing. "ok": looked for, not found.
Level = Literal["error", "warning", "note", "ok"]
# Pictures or texts that one finding shows on the page.
SAMPLES = 8

T = TypeVar("T")


@dataclass(frozen=True)
class Sample:
    """One thing to look at."""

    # Picture file; it need not be there or be readable.
    path: Path
    # Names it, e.g. its path below imgs/.
    name: str
    # Its caption, or what is wrong with it.
    text: str


@dataclass(frozen=True)
class Finding:
    """The result of one check."""

    check: str
    level: Level
    text: str
    samples: tuple[Sample, ...] = ()


def spread(values: Sequence[T], count: int = SAMPLES) -> list[T]:
    """At most `count` of the values, evenly spaced."""
    if len(values) <= count:
        return list(values)
    return [values[i * len(values) // count] for i in range(count)]


def verb(count: int, one: str, several: str) -> str:
    """'1 image is' or '3 images are': the number and the words that go with it."""
    return f"{count:,} {one if count == 1 else several}"
