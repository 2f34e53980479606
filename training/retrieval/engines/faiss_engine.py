"""Engine of faiss (extra `search`): rows as codes of 4 bits for 4 values, all of them scanned or, of very many images, those in
the nearest cells. The best by their codes are candidates; who asked compares their rows (`near`).

Shapes: N images, W width of the table, Q queries, M candidates, K best.
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

# So many images, of the gallery or of those that a filter leaves, are all scanned, 2 ns an image.
SCANNED = 400_000
# Of a larger gallery there are cells, so many for the root of the number of images (the rule of faiss), with training rows of
# each (39 is what faiss asks for) in so many rounds.
CELLS_PER_ROOT, ROWS_PER_CELL, ROUNDS = 4, 40, 4
# Values of a row that share a code; rows that the codes are trained with (faiss takes 4,096), repeated where there are fewer.
VALUES_PER_CODE, CODE_ROWS, LEAST_ROWS = 4, 16_384, 1024
# Candidates: the order of the codes is a rough one. In 10^6 images, of which a filter leaves an eighth, 2,048 held 0.991 of the
# ten best, and 4,096 0.998.
LEAST_CANDIDATES, CANDIDATES_PER_RESULT = 3072, 8
# Share of the ten best images that the searched cells have to hold (0.99 and a margin), and queries that it is measured with.
LEAST_RECALL, MEASURED, BEST = 0.995, 100, 10
# Length of a query relative to that of a row when its nearest cells are chosen, by distance. Cells of inner products, as faiss
# makes them by default, give their longest centres too many rows: the nearest 2 % of 2,048 held 0.861 of the ten best of
# queries between two images, these 0.938.
QUERY_LENGTH = math.sqrt(2)
# Loop of faiss that reads cells for one query and keeps the best in a reservoir: 3.6 ms for 10^6 rows in 16 cells, by default 7.
LOOP = 11
# Filters whose images are remembered; of each that leaves few enough a copy of their codes, 64 bytes an image of 2 x 256.
KEPT_FILTERS = 8


@dataclass(frozen=True)
class CellSearch:
    """Contents of faiss-G.json: cells of an index, and how many of them have to be searched."""

    images: int
    cells: int
    # Nearest cells that are searched for a query of weight 1 of clothes, and of identity or clothes alone, which needs more.
    probes: int
    probes_alone: int
    # Share of the ten best images that they hold.
    recall: float
    recall_alone: float


@dataclass(frozen=True)
class _Selection:
    """Images that fulfil a filter."""

    count: int
    # Their positions and the index of their codes, where they are scanned.
    rows: np.ndarray | None = None
    codes: Any = None
    # What faiss compares with while it reads cells; None for all images.
    selector: Any = None


class FaissEngine:
    """Approximate engine. Raises ImportError's text as RuntimeError without faiss."""

    def __init__(self, width: int, expected: int = 0, identity_width: int = 0) -> None:
        """expected: number of images, which decides for a scan or for cells. identity_width: values of a row that are of the
        identity, all by default."""
        self.faiss = _import_faiss()
        self.width, self.identity_width = width, identity_width or width
        self.cells = 2 ** round(math.log2(CELLS_PER_ROOT * math.sqrt(expected))) if expected > SCANNED else 0
        # Codes of all rows, and the same by cells.
        self.flat: Any = None
        self.index: Any = None
        self.trained = 0
        self.measured: CellSearch | None = None
        self.ids_N = np.empty(0, np.int64)
        self.metadata = Metadata(np.empty(0))
        self._selections: OrderedDict[Any, _Selection] = OrderedDict()
        # faiss searches in several threads at once, but not while it adds.
        self.lock = threading.Lock()

    def add(self, ids_N: np.ndarray, table_NW: np.ndarray, metadata: Metadata) -> None:
        """Encodes the rows; the first call trains codes and cells with its rows and measures how many cells to search."""
        with self.lock:
            if self.flat is None:
                self._train(table_NW, np.flatnonzero(ids_N >= 0))
            for start in range(self.flat.ntotal - len(self.ids_N), len(table_NW), 65536):
                rows_NW = np.ascontiguousarray(table_NW[start : start + 65536])
                self.flat.add(rows_NW)
                if self.cells:
                    self.index.add(rows_NW)
            if self.cells and self.measured is None:
                self.measured = self._measure(table_NW)
            self.metadata = self.metadata.extended(metadata) if len(self.ids_N) else metadata
            self.ids_N = np.concatenate([self.ids_N, ids_N])
            self._selections.clear()

    def renew(self, ids_N: np.ndarray, metadata: Metadata) -> None:
        """Takes over the metadata of all its images; ids int64 in rising order, -1 for a row to pass over."""
        with self.lock:
            count = len(self.ids_N)
            here = np.flatnonzero((self.ids_N >= 0) & np.isin(self.ids_N, ids_N))
            there = np.flatnonzero((ids_N >= 0) & np.isin(ids_N, self.ids_N))
            times_N, codes = np.full(count, np.nan), {name: np.zeros(count, np.int32) for name in metadata.codes}
            times_N[here] = metadata.times_N[there]
            for name, codes_N in codes.items():
                codes_N[here] = metadata.codes[name][there]
            self.metadata = Metadata(times_N, codes, metadata.values)
            self._selections.clear()

    def is_outgrown(self, images: int) -> bool:
        """True when the codes were trained with few images, and a gallery of so many has twice as many: it needs a new engine."""
        return self.trained < min(CODE_ROWS, images / 2)

    def _train(self, table_NW: np.ndarray, alive: np.ndarray) -> None:
        faiss = self.faiss
        codes = self.width // max(values for values in range(1, VALUES_PER_CODE + 1) if self.width % values == 0)
        kind = self.width, codes, 4, faiss.METRIC_INNER_PRODUCT
        step = max(1, len(alive) // max(self.cells * ROWS_PER_CELL, CODE_ROWS))
        rows_NW = np.ascontiguousarray(table_NW[alive[::step]])
        self.trained = len(rows_NW)
        self.flat = faiss.IndexPQ(*kind)
        self.flat.train(np.resize(rows_NW, (max(len(rows_NW), LEAST_ROWS), self.width)))
        if self.cells:
            index = faiss.IndexIVFPQFastScan(faiss.IndexFlatL2(self.width), self.width, self.cells, *kind[1:])
            index.by_residual, index.implem = False, LOOP
            index.cp.spherical, index.cp.max_points_per_centroid, index.cp.niter = False, ROWS_PER_CELL, ROUNDS
            index.train(rows_NW)
            self.index = index

    def _measure(self, table_NW: np.ndarray) -> CellSearch:
        """The numbers of cells that hold LEAST_RECALL of the best images of queries between two images.

        Between two, as a text is that fits several people: on the demo's test split 99 % of the ten best images of texts were in
        the nearest 29 of 128 cells (weight 0: 56), those of queries between two images in 26 (52), of images in 20 (48).
        """
        rows_2Q = np.random.default_rng(0).integers(0, len(table_NW), (2, MEASURED))
        queries_QW = table_NW[rows_2Q[0]] + table_NW[rows_2Q[1]]
        # Identity alone, and clothes alone where the rows have them.
        alone, width = [queries_QW.copy()], self.identity_width
        alone[0][:, width:] = 0
        if width < self.width:
            alone.append(queries_QW - alone[0])
        probes, recall = self._probes(queries_QW, table_NW)
        probes_alone, recall_alone = max(self._probes(found_QW, table_NW) for found_QW in alone)
        return CellSearch(len(table_NW), self.cells, probes, probes_alone, recall, recall_alone)

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
            found_QM = np.stack([self._nearest(query_W, LEAST_CANDIDATES, parameters) for query_W in queries_QW])
            recall = float(np.mean([np.isin(*pair) for pair in zip(best_QK, found_QM, strict=True)]))
            if recall >= LEAST_RECALL:
                break
        return probes, recall

    def _nearest(self, query_W: np.ndarray, wanted: int, parameters: Any) -> np.ndarray:
        """Positions of the nearest by their codes, int64 (wanted,), -1 where there are fewer."""
        row_length = math.sqrt(self.width / self.identity_width)
        scale = QUERY_LENGTH * row_length / max(float(np.linalg.norm(query_W.astype(np.float64))), 1e-30)
        return self.index.search((query_W[None] * scale).astype(np.float32), wanted, params=parameters)[1][0]

    def search(self, query_W: np.ndarray, k: int, where: Filter) -> np.ndarray:
        """Ids of the nearest by their codes; a filter is applied while searching."""
        with self.lock:
            # Of this thread; more of them would wait, spinning, for a search that is not divided.
            self.faiss.omp_set_num_threads(1)
            selected = self._selection(where)
            wanted = min(max(LEAST_CANDIDATES, CANDIDATES_PER_RESULT * k), selected.count)
            if not wanted:
                return np.empty(0, np.int64)
            if selected.rows is not None:
                found = selected.rows[selected.codes.search(query_W[None].astype(np.float32), wanted)[1][0]]
                return self.ids_N[found]
            # So many more cells that as many images are compared as without a filter.
            share = self._needed(query_W) / self.cells * max(1.0, wanted / LEAST_CANDIDATES)
            probes = math.ceil(self.cells * min(1.0, share * len(self.ids_N) / selected.count))
            options = {} if selected.selector is None else {"sel": selected.selector}
            found = self._nearest(query_W, wanted, self.faiss.SearchParametersIVF(nprobe=probes, **options))
            return self.ids_N[found[found >= 0]]

    def _needed(self, query_W: np.ndarray) -> float:
        """Cells that a query needs without a filter: between those of weight 1 and of one side alone, by how much the other
        weighs."""
        assert self.measured is not None
        less, more = sorted(float(np.linalg.norm(part)) for part in np.split(query_W, [self.identity_width]))
        alone = self.measured.probes_alone
        return alone + (self.measured.probes - alone) * less / more

    def _selection(self, where: Filter) -> _Selection:
        """The images that fulfil a filter."""
        key = (tuple(sorted(where.values.items())), where.start, where.end, where.without)
        if key not in self._selections:
            kept = self.ids_N >= 0
            if where:
                kept &= self.metadata.matches(where, self.ids_N)
            count = int(kept.sum())
            if not self.cells or count <= SCANNED:
                self._selections[key] = self._copied(np.flatnonzero(kept))
            else:
                bits = np.packbits(kept, bitorder="little")
                selector = None if count == len(kept) else self.faiss.IDSelectorBitmap(bits)
                self._selections[key] = _Selection(count, selector=selector)
        self._selections.move_to_end(key)
        while len(self._selections) > KEPT_FILTERS:
            self._selections.popitem(last=False)
        return self._selections[key]

    def _copied(self, rows: np.ndarray) -> _Selection:
        """The images of these rows, with a copy of their codes in the order that is scanned fastest."""
        if not len(rows):
            return _Selection(0)
        flat, faiss = self.flat, self.faiss
        codes_NC = faiss.rev_swig_ptr(flat.codes.data(), flat.ntotal * flat.sa_code_size()).reshape(flat.ntotal, -1)
        part = faiss.IndexPQ(flat.d, flat.pq.M, flat.pq.nbits, flat.metric_type)
        part.pq, part.is_trained = flat.pq, True
        part.add_sa_codes(np.ascontiguousarray(codes_NC[rows]))
        scanned = faiss.IndexPQFastScan(part)
        # Of `part`, which goes; for tests of faiss only.
        scanned.orig_codes = None
        return _Selection(len(rows), rows, scanned)

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
        with self.lock:
            self._selections.clear()
            self.ids_N, self.flat, self.index = np.empty(0, np.int64), None, None
            self.metadata = Metadata(np.empty(0))

    def save(self, path: Path) -> None:
        """Writes codes and cells, each atomically, and what was measured beside them; ids and metadata are in the gallery."""
        for place, index in ((path, self.flat), (path.with_suffix(".cells"), self.index)):
            if index is not None:
                with atomic(place) as file:
                    file.write(self.faiss.serialize_index(index).tobytes())
        if self.measured is not None:
            write_record(path.with_suffix(".json"), self.measured)

    def load(self, path: Path, rows: int) -> bool:
        """Reads the codes and cells of at most so many rows of this width; `add` then encodes the rows that they lack. False when
        they do not fit: there may be a half to twice the cells that would be made now."""
        flat = self._read(path, self.faiss.IndexPQ, rows)
        index = self._read(path.with_suffix(".cells"), self.faiss.IndexIVFPQFastScan, rows) if self.cells else None
        if flat is None or (self.cells and (index is None or index.ntotal != flat.ntotal)):
            return False
        if index is not None:
            if not self.cells / 2 <= index.nlist <= self.cells * 2:
                return False
            index.implem, self.cells = LOOP, index.nlist
            record = path.with_suffix(".json")
            measured = read_record(record, CellSearch) if record.is_file() else None
            # Of another index, or of a gallery that has grown since: it is measured again.
            if measured is not None and measured.cells == index.nlist and 2 * measured.images > rows:
                self.measured = measured
        self.flat, self.index, self.trained = flat, index, flat.ntotal
        return True

    def _read(self, path: Path, kind: Any, rows: int) -> Any:
        """An index of this kind, this width and at most so many rows; None where there is none, as after an earlier version."""
        try:
            index: Any = self.faiss.deserialize_index(np.fromfile(path, np.uint8))
        except (OSError, RuntimeError):
            return None
        return index if isinstance(index, kind) and index.d == self.width and index.ntotal <= rows else None


def _import_faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise RuntimeError(
            "the engine faiss needs faiss-cpu: pip install 'bdam-fast[search]', or --engine exact"
        ) from error
    return faiss
