"""Findings of the validator, each with a level and sample images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

# "error": the protocol cannot be run. "warning": it can, but its results may be misleading. "note": for information. "ok":
# checked, nothing found.
Level = Literal["error", "warning", "note", "ok"]
# Images or texts per finding on the page.
SAMPLES = 8

T = TypeVar("T")


@dataclass(frozen=True)
class Sample:
    """One image or text of a finding, as shown on the page."""

    # Image file; may be missing or unreadable.
    path: Path
    # Title, e.g. the path below imgs/.
    name: str
    # Its caption, or the problem.
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


def count_phrase(count: int, one: str, several: str) -> str:
    """'1 image is' or '3 images are': the number with the singular or plural words."""
    return f"{count:,} {one if count == 1 else several}"
