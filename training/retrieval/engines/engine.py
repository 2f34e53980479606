"""Protocol of an engine, metadata of its images and filters on them.

An engine finds candidates by their inner product with [a; beta b]: one index of the table [v_id; v_clo] serves every beta, since
<a, v_id> + beta <b, v_clo> = <[a; beta b], [v_id; v_clo]>. Candidates are scored exactly afterwards (scoring.py).

Shapes: N images, W width of the table, M candidates.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

# Bound of the error of a float32 product of W numbers, relative to the product of the lengths: W roundings of half a unit.
ROUNDING = 2.0**-24
# Lengths of table rows: two embeddings of unit length, and what float32 adds.
ROW_LENGTH = 1.4143


@dataclass(frozen=True)
class Filter:
    """Conditions on metadata that all have to hold."""

    # Accepted values of each column ("camera", or one of the metadata file); no column, no condition.
    values: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    # Seconds; an image of unknown time fulfils neither.
    start: float | None = None
    end: float | None = None
    # Ids left out.
    without: frozenset[int] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.values or self.without) or self.start is not None or self.end is not None


@dataclass(frozen=True)
class Metadata:
    """Metadata of N images, column by column."""

    # Seconds, NaN where unknown.
    times_N: np.ndarray
    # Number of each image's value in `values`, by column.
    codes: dict[str, np.ndarray] = field(default_factory=dict)
    values: dict[str, list[str]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.times_N)

    def matches(self, where: Filter, ids_N: np.ndarray) -> np.ndarray:
        """True for the images that fulfil the filter, bool (N,)."""
        kept = np.ones(len(self), bool)
        for name, accepted in where.values.items():
            if name not in self.codes:
                # Nothing has a value in a column that does not exist.
                return np.zeros(len(self), bool)
            wanted = np.array([value in accepted for value in self.values[name]])
            kept &= wanted[self.codes[name]]
        with np.errstate(invalid="ignore"):
            if where.start is not None:
                kept &= self.times_N >= where.start
            if where.end is not None:
                kept &= self.times_N <= where.end
        if where.without:
            kept &= ~np.isin(ids_N, np.fromiter(where.without, np.int64, len(where.without)))
        return kept

    def extended(self, other: Metadata) -> Metadata:
        """These images and then those of `other`."""
        before, codes, values = len(self), {}, {}
        for name in {**self.codes, **other.codes}:
            all_values = list(dict.fromkeys(["", *self.values.get(name, []), *other.values.get(name, [])]))
            number = {value: i for i, value in enumerate(all_values)}
            column = np.zeros(before + len(other), np.int32)
            for part, rows in ((self, slice(None, before)), (other, slice(before, None))):
                if name in part.codes:
                    column[rows] = np.array([number[value] for value in part.values[name]], np.int32)[part.codes[name]]
            codes[name], values[name] = column, all_values
        return Metadata(np.concatenate([self.times_N, other.times_N]), codes, values)

    def row(self, i: int) -> dict[str, str]:
        """The values of one image, empty ones left out."""
        found = {name: self.values[name][self.codes[name][i]] for name in self.codes}
        return {name: value for name, value in found.items() if value}


class Engine(Protocol):
    """A set of embeddings by id, float32 (N, W), and the search for the nearest."""

    def add(self, ids_N: np.ndarray, table_NW: np.ndarray, metadata: Metadata) -> None:
        """Adds images; ids int64, -1 for a row to pass over."""

    def search(self, query_W: np.ndarray, k: int, where: Filter) -> np.ndarray:
        """Ids of candidates for the best k of those that fulfil the filter: at least k, or all; in any order."""

    def delete(self, ids_N: np.ndarray) -> None:
        """Removes images; ids that it does not have are passed over."""

    def count(self) -> int:
        """Number of images."""

    def close(self) -> None:
        """Frees what the engine holds."""


def near(table_MW: np.ndarray, query_W: np.ndarray, k: int) -> np.ndarray:
    """Candidates that may be among the best k by their exact scores, bool (M,)."""
    scores_M = table_MW @ query_W
    return scores_M >= least_score(scores_M, k, query_W) if k < len(scores_M) else np.ones(len(scores_M), bool)


def least_score(scores_N: np.ndarray, k: int, query_W: np.ndarray) -> float:
    """The k-th largest of float32 scores less twice the bound of their error: the exact scores of the best k are not below it."""
    margin = 2 * len(query_W) * ROUNDING * ROW_LENGTH * float(np.linalg.norm(query_W.astype(np.float64)))
    return _largest(scores_N, k) - margin


def _largest(scores_N: np.ndarray, k: int) -> float:
    """The k-th largest score."""
    # Of blocks of 64, only those whose best reaches the k-th best block can hold it: 1 instead of 9 ms of a million.
    block = 64
    whole = len(scores_N) // block * block
    if whole // block > 4 * k:
        best = scores_N[:whole].reshape(-1, block).max(1)
        floor = np.partition(best, len(best) - k)[len(best) - k]
        scores_N = scores_N[scores_N >= floor]
    return float(np.partition(scores_N, len(scores_N) - k)[len(scores_N) - k])
