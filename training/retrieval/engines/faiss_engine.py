"""Engine of faiss (extra `search`): 8-bit embeddings, scanned whole or, of many images, in the nearest cells only.

Shapes: N images, W width of the table, Q queries.
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from training.retrieval.engines.engine import Filter, Metadata
from training.utils.io import atomic, read_record, write_record

# From here on a scan of everything takes longer than 10 ms; below, cells are not worth their training.
IVF_FROM = 200_000
# Cells for the root of the number of images (the rule of faiss), training rows of each (39 is what faiss asks for), and rounds.
CELLS_PER_ROOT, ROWS_PER_CELL, ROUNDS = 4, 40, 6
# Candidates beyond k: 8 bits lose the order of near neighbours.
LEAST_CANDIDATES, CANDIDATES_PER_RESULT = 256, 8
# Share of the ten best images that the searched cells have to hold, and queries that it is measured with.
LEAST_RECALL, MEASURED, BEST = 0.99, 100, 10
# Images that are compared at least where there is a filter (2 ms): the best of a part lie farther apart than those of all.
LEAST_FILTERED = 40_000
# Filters whose images are remembered.
KEPT_FILTERS = 16


@dataclass(frozen=True)
class CellSearch:
    """Contents of faiss-G.json: cells of an index, and how many of them have to be searched."""

    images: int
    cells: int
    # Nearest cells that are searched for a query of weight 1 of clothes or more, and of less, which needs more of them.
    probes: int
    probes_identity: int
    # Share of the ten best images that they hold, of queries of weight 1 and 0.
    recall: float
    recall_identity: float


class FaissEngine:
    """Approximate engine. Raises ImportError's text as RuntimeError without faiss."""

    def __init__(self, width: int, expected: int = 0, identity_width: int = 0) -> None:
        """expected: number of images, which decides for a scan or for cells. identity_width: values of a row that are of the
        identity, all by default."""
        self.faiss = _import_faiss()
        self.width, self.identity_width = width, identity_width or width
        self.cells = 2 ** round(math.log2(CELLS_PER_ROOT * math.sqrt(expected))) if expected >= IVF_FROM else 0
        self.index: Any = None
        self.measured: CellSearch | None = None
        self.ids_N = np.empty(0, np.int64)
        self.metadata = Metadata(np.empty(0))
        self._selections: OrderedDict[Any, tuple[int, Any]] = OrderedDict()
        # faiss searches in several threads at once, but not while it adds.
        self.lock = threading.Lock()

    def add(self, ids_N: np.ndarray, table_NW: np.ndarray, metadata: Metadata) -> None:
        """Encodes the rows; the first call trains the quantisers with its rows and measures how many cells to search."""
        with self.lock:
            if self.index is None:
                self.index = self._train(table_NW, np.flatnonzero(ids_N >= 0))
            for start in range(self.index.ntotal - len(self.ids_N), len(table_NW), 65536):
                self.index.add(np.ascontiguousarray(table_NW[start : start + 65536]))
            if self.cells and self.measured is None:
                self.measured = self._measure(table_NW)
            self.metadata = self.metadata.extended(metadata) if len(self.ids_N) else metadata
            self.ids_N = np.concatenate([self.ids_N, ids_N])
            self._selections.clear()

    def _train(self, table_NW: np.ndarray, alive: np.ndarray) -> Any:
        faiss = self.faiss
        kind = faiss.ScalarQuantizer.QT_8bit
        if self.cells:
            quantiser = faiss.IndexFlatIP(self.width)
            index = faiss.IndexIVFScalarQuantizer(quantiser, self.width, self.cells, kind, faiss.METRIC_INNER_PRODUCT)
            index.cp.max_points_per_centroid, index.cp.niter = ROWS_PER_CELL, ROUNDS
        else:
            index = faiss.IndexScalarQuantizer(self.width, kind, faiss.METRIC_INNER_PRODUCT)
        step = max(1, len(alive) // (max(self.cells, 1024) * ROWS_PER_CELL))
        index.train(np.ascontiguousarray(table_NW[alive[::step]]))
        return index

    def _measure(self, table_NW: np.ndarray) -> CellSearch:
        """The numbers of cells that hold LEAST_RECALL of the best images of queries between two images.

        Between two, as a text is that fits several people: on the demo's test split 99 % of the ten best images of texts were in
        the nearest 29 of 128 cells (weight 0: 56), those of queries between two images in 26 (52), of images in 20 (48).
        """
        rows_2Q = np.random.default_rng(0).integers(0, len(table_NW), (2, MEASURED))
        queries_QW = table_NW[rows_2Q[0]] + table_NW[rows_2Q[1]]
        identity_QW = queries_QW.copy()
        identity_QW[:, self.identity_width :] = 0
        (probes, recall), (probes_identity, recall_identity) = (
            self._probes(found_QW, table_NW) for found_QW in (queries_QW, identity_QW)
        )
        return CellSearch(len(table_NW), self.cells, probes, probes_identity, recall, recall_identity)

    def _probes(self, queries_QW: np.ndarray, table_NW: np.ndarray) -> tuple[int, float]:
        """The smallest number of cells whose candidates hold LEAST_RECALL of the best rows, and the share that they hold."""
        faiss, count = self.faiss, len(table_NW)
        _, best_QK = faiss.knn(queries_QW, np.asarray(table_NW), min(BEST, count), metric=faiss.METRIC_INNER_PRODUCT)
        # Steps of a fourth from a 256th of the cells on.
        steps = [max(4, self.cells // 256)]
        while steps[-1] < self.cells:
            steps.append(min(self.cells, steps[-1] * 5 // 4))
        for probes in steps:
            parameters = faiss.SearchParametersIVF(nprobe=probes)
            _, found_QM = self.index.search(queries_QW, min(LEAST_CANDIDATES, count), params=parameters)
            recall = float(np.mean((best_QK[:, :, None] == found_QM[:, None]).any(2)))
            if recall >= LEAST_RECALL:
                break
        return probes, recall

    def search(self, query_W: np.ndarray, k: int, where: Filter) -> np.ndarray:
        """Ids of the nearest by their 8-bit embeddings; a filter is applied while searching."""
        with self.lock:
            alive, selector = self._selection(where)
            if self.index is None or not alive:
                return np.empty(0, np.int64)
            # Of this thread; more of them would wait, spinning, for a search that is not divided.
            self.faiss.omp_set_num_threads(1)
            options = {} if selector is None else {"sel": selector}
            wanted = min(max(LEAST_CANDIDATES, CANDIDATES_PER_RESULT * k), alive)
            if self.measured is not None:
                share = self._needed(query_W) / self.cells * max(1.0, wanted / LEAST_CANDIDATES)
                if where:
                    # So many more cells that as many images are compared as without it, or more.
                    share = max(share * len(self.ids_N), LEAST_FILTERED) / alive
                probes = math.ceil(self.cells * min(1.0, share))
                parameters = self.faiss.SearchParametersIVF(nprobe=probes, **options)
            else:
                parameters = self.faiss.SearchParameters(**options)
            _, found = self.index.search(query_W[None].astype(np.float32), wanted, params=parameters)
            return self.ids_N[found[0][found[0] >= 0]]

    def _needed(self, query_W: np.ndarray) -> int:
        """Cells that a query without a filter needs, by its weight of clothes."""
        assert self.measured is not None
        identity, clothing = (float(np.linalg.norm(part)) for part in np.split(query_W, [self.identity_width]))
        return self.measured.probes if clothing >= 0.999 * identity else self.measured.probes_identity

    def _selection(self, where: Filter) -> tuple[int, Any]:
        """Number of images that fulfil a filter, and the selector of faiss for them; None for all."""
        key = (tuple(sorted(where.values.items())), where.start, where.end, where.without)
        if key not in self._selections:
            kept = self.ids_N >= 0
            if where:
                kept &= self.metadata.matches(where, self.ids_N)
            alive = int(kept.sum())
            bits = np.packbits(kept, bitorder="little")
            self._selections[key] = alive, None if alive == len(kept) else self.faiss.IDSelectorBitmap(bits)
        self._selections.move_to_end(key)
        while len(self._selections) > KEPT_FILTERS:
            self._selections.popitem(last=False)
        return self._selections[key]

    def delete(self, ids_N: np.ndarray) -> None:
        """Leaves the rows out of every search from now on."""
        with self.lock:
            self.ids_N = np.where(np.isin(self.ids_N, ids_N), -1, self.ids_N)
            self._selections.clear()

    def count(self) -> int:
        """Number of images."""
        return int((self.ids_N >= 0).sum())

    def close(self) -> None:
        """Frees the index."""
        self.index = None

    def save(self, path: Path) -> None:
        """Writes the index, atomically, and what was measured beside it; ids and metadata are in the gallery."""
        with atomic(path) as file:
            file.write(self.faiss.serialize_index(self.index).tobytes())
        if self.measured is not None:
            write_record(path.with_suffix(".json"), self.measured)

    def load(self, path: Path, rows: int) -> bool:
        """Reads an index of this width and at most so many rows; `add` then encodes the rows that it lacks. False when it does
        not fit: it may have a half to twice the cells that it would be made with now."""
        try:
            index = self.faiss.deserialize_index(np.fromfile(path, np.uint8))
        except (OSError, RuntimeError):
            return False
        cells = index.nlist if isinstance(index, self.faiss.IndexIVF) else 0
        if index.d != self.width or index.ntotal > rows or not self.cells / 2 <= cells <= self.cells * 2:
            return False
        record = path.with_suffix(".json")
        measured = read_record(record, CellSearch) if record.is_file() else None
        # Of an earlier version, of another index, or of a gallery that has grown since: it is measured again.
        if measured is not None and measured.cells == cells and 2 * measured.images > rows:
            self.measured = measured
        self.index, self.cells = index, cells
        return True


def _import_faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise RuntimeError(
            "the engine faiss needs faiss-cpu: pip install 'bdam-fast[search]', or --engine exact"
        ) from error
    return faiss
