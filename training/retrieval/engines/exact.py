"""Exact engine: one float32 product with every embedding; nothing is copied, nothing is built.

Shapes: N images, W width of the table, Q queries that are answered together.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from training.retrieval.engines.engine import Filter, Metadata, least_score
from training.retrieval.gathering import Gathered

# Queries that are answered by one product, and their scores (64 MB), at most.
MOST_QUERIES, MOST_SCORES = 32, 2**24
# Rows that several queries share while they are in the cache. CPU-ms a query of 100,000 rows of 512: 17 for one, 16 of two, 5 of
# eight, 2.3 of 32; one product of the whole table took 22, 6.7 and 2.6, since the library copies it first.
BLOCK = 512


class ExactEngine:
    """Engine of any size that fits the page cache; candidates always include every image that could be among the best k.

    Queries that wait for the table while it is read for others are answered by one product after it: reading is what costs.
    """

    def __init__(self, width: int) -> None:
        self.width = width
        self.parts: list[np.ndarray] = []
        self.ids_N = np.empty(0, np.int64)
        self.metadata = Metadata(np.empty(0))
        self._scores: Gathered[np.ndarray, np.ndarray] = Gathered(self._products, 1)

    def add(self, ids_N: np.ndarray, table_NW: np.ndarray, metadata: Metadata) -> None:
        """Keeps the rows as they are, memory-mapped ones without a copy."""
        self.parts.append(table_NW)
        self.metadata = self.metadata.extended(metadata) if len(self.ids_N) else metadata
        self.ids_N = np.concatenate([self.ids_N, ids_N])
        self._scores = Gathered(self._products, max(1, min(MOST_QUERIES, MOST_SCORES // max(1, len(self.ids_N)))))

    def _products(self, queries_QW: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
        """Products of each query with every image, float32 (N,)."""
        scores_QN = np.empty((len(queries_QW), len(self.ids_N)), np.float32)
        stacked_QW, start = np.stack(queries_QW), 0
        for part in self.parts:
            rows = len(part) if len(queries_QW) == 1 else BLOCK
            for block in (part[i : i + rows] for i in range(0, len(part), rows)):
                out = scores_QN[:, start : start + len(block)]
                if len(queries_QW) == 1:
                    np.dot(block, stacked_QW[0], out=out[0])
                else:
                    np.matmul(stacked_QW, block.T, out=out)
                start += len(block)
        return list(scores_QN)

    def search(self, query_W: np.ndarray, k: int, where: Filter) -> np.ndarray:
        """Every image whose float32 score is within twice its error bound of the k-th best."""
        scores_N = self._scores(query_W)
        kept = self.ids_N >= 0
        if where:
            kept &= self.metadata.matches(where, self.ids_N)
        if not kept.all():
            scores_N[~kept] = -np.inf
        if k < len(scores_N):
            kept &= scores_N >= least_score(scores_N, k, query_W)
        return self.ids_N[kept]

    def delete(self, ids_N: np.ndarray) -> None:
        """Marks the rows; their memory is that of the table."""
        self.ids_N = np.where(np.isin(self.ids_N, ids_N), -1, self.ids_N)

    def count(self) -> int:
        """Number of images."""
        return int((self.ids_N >= 0).sum())

    def close(self) -> None:
        """Lets the mapped tables go."""
        self.parts.clear()
