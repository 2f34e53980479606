"""Engine of faiss (extra `search`): 8-bit embeddings, scanned whole or, of many images, in the nearest cells only.

Shapes: N images, W width of the table.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np

from training.retrieval.engines.engine import Filter, Metadata
from training.utils.io import atomic

# From here on a scan of everything takes longer than 10 ms; below, cells are not worth their training.
IVF_FROM = 200_000
# Cells, training rows of each (39 is what faiss asks for), and cells that are searched.
CELLS, ROWS_PER_CELL, PROBES = 1024, 64, 24
# Candidates beyond k: 8 bits lose the order of near neighbours.
LEAST_CANDIDATES, CANDIDATES_PER_RESULT = 256, 8


class FaissEngine:
    """Approximate engine. Raises ImportError's text as RuntimeError without faiss."""

    def __init__(self, width: int, expected: int = 0) -> None:
        """expected: number of images that decides for a scan or for cells."""
        self.faiss = _import_faiss()
        self.width = width
        self.with_cells = expected >= IVF_FROM
        self.index: Any = None
        self.ids_N = np.empty(0, np.int64)
        self.metadata = Metadata(np.empty(0))
        # faiss searches in several threads at once, but not while it adds.
        self.lock = threading.Lock()

    def add(self, ids_N: np.ndarray, table_NW: np.ndarray, metadata: Metadata) -> None:
        """Encodes the rows; the first call trains the quantisers with its rows."""
        with self.lock:
            if self.index is None:
                self.index = self._train(table_NW, np.flatnonzero(ids_N >= 0))
            for start in range(self.index.ntotal - len(self.ids_N), len(table_NW), 65536):
                self.index.add(np.ascontiguousarray(table_NW[start : start + 65536]))
            self.metadata = self.metadata.extended(metadata) if len(self.ids_N) else metadata
            self.ids_N = np.concatenate([self.ids_N, ids_N])

    def _train(self, table_NW: np.ndarray, alive: np.ndarray) -> Any:
        faiss = self.faiss
        kind = faiss.ScalarQuantizer.QT_8bit
        if self.with_cells:
            quantiser = faiss.IndexFlatIP(self.width)
            index = faiss.IndexIVFScalarQuantizer(quantiser, self.width, CELLS, kind, faiss.METRIC_INNER_PRODUCT)
            index.cp.max_points_per_centroid, index.cp.niter = ROWS_PER_CELL, 10
        else:
            index = faiss.IndexScalarQuantizer(self.width, kind, faiss.METRIC_INNER_PRODUCT)
        step = -(-len(alive) // (CELLS * ROWS_PER_CELL))
        index.train(np.ascontiguousarray(table_NW[alive[::step]]))
        return index

    def search(self, query_W: np.ndarray, k: int, where: Filter) -> np.ndarray:
        """Ids of the nearest by their 8-bit embeddings; a filter is applied while searching."""
        with self.lock:
            kept = self.ids_N >= 0
            if where:
                kept &= self.metadata.matches(where, self.ids_N)
            alive = int(kept.sum())
            if self.index is None or not alive:
                return np.empty(0, np.int64)
            options: dict[str, Any] = {}
            if alive < len(kept):
                bits = np.packbits(kept, bitorder="little")
                options["sel"] = self.faiss.IDSelectorBitmap(bits)
            wanted = min(max(LEAST_CANDIDATES, CANDIDATES_PER_RESULT * k), alive)
            if self.with_cells:
                # A rare value may have no image in the nearest cells.
                probes = min(CELLS, max(PROBES, PROBES * wanted // alive * 4, CELLS if alive < 20_000 else 0))
                parameters = self.faiss.SearchParametersIVF(nprobe=probes, **options)
            else:
                parameters = self.faiss.SearchParameters(**options)
            _, found = self.index.search(query_W[None].astype(np.float32), wanted, params=parameters)
            return self.ids_N[found[0][found[0] >= 0]]

    def delete(self, ids_N: np.ndarray) -> None:
        """Leaves the rows out of every search from now on."""
        with self.lock:
            self.ids_N = np.where(np.isin(self.ids_N, ids_N), -1, self.ids_N)

    def count(self) -> int:
        """Number of images."""
        return int((self.ids_N >= 0).sum())

    def close(self) -> None:
        """Frees the index."""
        self.index = None

    def save(self, path: Path) -> None:
        """Writes the index, atomically; ids and metadata are in the gallery."""
        with atomic(path) as file:
            file.write(self.faiss.serialize_index(self.index).tobytes())

    def load(self, path: Path, rows: int) -> bool:
        """Reads an index of this width and at most so many rows; `add` then encodes the rows that it lacks. False when it does
        not fit."""
        try:
            index = self.faiss.deserialize_index(np.fromfile(path, np.uint8))
        except (OSError, RuntimeError):
            return False
        cells = isinstance(index, self.faiss.IndexIVF)
        if index.d != self.width or index.ntotal > rows or cells != self.with_cells:
            return False
        self.index = index
        return True


def _import_faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise RuntimeError(
            "the engine faiss needs faiss-cpu: pip install 'bdam-fast[search]', or --engine exact"
        ) from error
    return faiss
