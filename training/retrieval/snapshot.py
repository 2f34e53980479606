"""Snapshot of a gallery: ids, embeddings, metadata and checksums of its images at one moment.

Shapes: N images, P positions of the table, W its width.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from training.retrieval.engines.engine import Metadata


@dataclass(frozen=True)
class Snapshot:
    """Images of a gallery at one moment, by position of the table; -1 as id is a gap that a removed image has left."""

    generation: int
    ids_P: np.ndarray
    # float32 (P, W), memory-mapped.
    table_PW: np.ndarray
    # Seconds, NaN where unknown.
    times_P: np.ndarray
    # Number of the value of each metadata column, and the values; "" is unknown.
    codes: dict[str, np.ndarray]
    values: dict[str, list[str]]
    # Checksum of facts and embedding, int64; of the facts alone for images that an earlier version added.
    crcs_P: np.ndarray

    def __len__(self) -> int:
        """Number of images."""
        return len(self._alive[0])

    def positions(self, ids_N: np.ndarray) -> np.ndarray:
        """Position of each id, which must exist; ids grow with their positions."""
        return self._alive[0][np.searchsorted(self._alive[1], ids_N)]

    def holds(self, ids_N: np.ndarray) -> np.ndarray:
        """True for the ids that exist, bool (N,)."""
        ids = self._alive[1]
        return np.searchsorted(ids, ids_N, "left") < np.searchsorted(ids, ids_N, "right")

    def checksums(self) -> tuple[np.ndarray, np.ndarray]:
        """Id and checksum of each image, int64 (N,) each."""
        return self._alive[1], self.crcs_P[self._alive[0]]

    def metadata(self, first: int = 0) -> Metadata:
        """Metadata from a position on, without a copy."""
        return Metadata(self.times_P[first:], {name: c[first:] for name, c in self.codes.items()}, self.values)

    @cached_property
    def _alive(self) -> tuple[np.ndarray, np.ndarray]:
        positions_N = np.flatnonzero(self.ids_P >= 0)
        return positions_N, self.ids_P[positions_N]


def snapshot_of(generation: int, table_PW: np.ndarray, rows: list[tuple[Any, ...]]) -> Snapshot:
    """A snapshot of N rows (position, id, camera, time, further columns as JSON, checksum), whose positions rise.

    Raises IndexError, OverflowError, TypeError or ValueError for values that no gallery has.
    """
    count = len(table_PW)
    positions = np.fromiter((row[0] for row in rows), np.int64, len(rows))
    ids_P, times_P, crcs_P = np.full(count, -1, np.int64), np.full(count, np.nan), np.zeros(count, np.int64)
    ids_P[positions] = np.fromiter((row[1] for row in rows), np.int64, len(rows))
    times_P[positions] = [np.nan if row[3] is None else row[3] for row in rows]
    crcs_P[positions] = np.fromiter((row[5] for row in rows), np.int64, len(rows))
    more = [json.loads(row[4]) if row[4] != "{}" else {} for row in rows]
    names = sorted({name for columns in more for name in columns})
    texts = {"camera": [row[2] for row in rows]} | {n: [columns.get(n, "") for columns in more] for n in names}
    codes, values = {}, {}
    for name, column in texts.items():
        values[name] = sorted({"", *column})
        number = {value: i for i, value in enumerate(values[name])}
        codes[name] = np.zeros(count, np.int32)
        codes[name][positions] = [number[value] for value in column]
    return Snapshot(generation, ids_P, table_PW, times_P, codes, values, crcs_P)
