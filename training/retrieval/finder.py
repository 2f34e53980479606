"""Searching a gallery with a model: queries of texts and images, an engine, exact scores.

Shapes: E embedding width, W width of the table, M candidates, K results.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from training.evaluation.calibration import KEPT, Calibration
from training.retrieval.embedders import Embedder
from training.retrieval.engines.engine import Engine, Filter, near
from training.retrieval.engines.exact import ExactEngine
from training.retrieval.engines.faiss_engine import FaissEngine
from training.retrieval.engines.pgvector_engine import PgvectorEngine
from training.retrieval.engines.qdrant_engine import QdrantEngine
from training.retrieval.engines.server import follow
from training.retrieval.image_names import full_path
from training.retrieval.scoring import LOOKS_BETA, Marks, Query, best, combined, exact_scores
from training.retrieval.snapshot import Snapshot
from training.retrieval.store import DATABASE, Gallery, ImageRow
from training.utils.locks import folder_lock

EngineName = Literal["exact", "faiss", "qdrant", "pgvector"]
# Variable of the environment that names the server of pgvector.
PGVECTOR_URL = "PGVECTOR_URL"
# Results that can be asked for at once.
MOST_RESULTS = 10_000
# An index of fewer images is built faster than it is read.
SAVED_FROM = 20_000
# Galleries of so many images are compared with their checksums when they are opened, in 60 ms; of larger ones the results are.
CHECKED_AT_OPEN = 10_000
# Candidates beyond k of a query with marks, which move many, and confirmed images that are searched for themselves.
MARKED_CANDIDATES, MARKED_SEARCHES = 300, 8


@dataclass(frozen=True)
class Wanted:
    """Parts of a query; at least one text or image."""

    # (text, weight) each; embeddings (E,) of other texts, and whether `Embedder.is_familiar` of them.
    texts: Sequence[tuple[str, float]] = ()
    embedded_texts: Sequence[np.ndarray] = ()
    familiar: bool = True
    # Ids of images of the gallery that look like the person, and embeddings (W,) of other images.
    images: Sequence[int] = ()
    vectors: Sequence[np.ndarray] = ()
    # Ids of images that are the person and that are not (relevance feedback).
    confirmed: Sequence[int] = ()
    rejected: Sequence[int] = ()


@dataclass(frozen=True)
class Result:
    """One image that was found."""

    image: ImageRow
    # score = identity + beta * clothing + marks.
    score: float
    identity: float
    clothing: float
    # Part of the confirmed and rejected images.
    marks: float = 0.0
    # Share of right images at this score on the validation split; None without calibration, and for other queries than one
    # text of words that the model knows.
    share: float | None = None
    # Gain by the fusion of the text with this image (reranking.py).
    match: float | None = None


@dataclass
class _Loaded:
    """A snapshot with the engine that holds it."""

    snapshot: Snapshot
    engine: Engine
    version: int


class Finder:
    """A gallery, a model of its texts and an engine. Raises ValueError when gallery and model do not belong together or the
    gallery is damaged."""

    def __init__(self, gallery: Gallery, embedder: Embedder, engine: EngineName = "exact") -> None:
        gallery.require_model(embedder.about.model, embedder.about.source)
        self.gallery, self.embedder, self.engine_name = gallery, embedder, engine
        self._refreshing = threading.Lock()
        version = gallery.version()
        snapshot = gallery.snapshot()
        if len(snapshot) <= CHECKED_AT_OPEN:
            for row in gallery.all_rows():
                self._require_intact(row, snapshot)
        self._loaded = _Loaded(snapshot, self._build(snapshot), version)

    @property
    def beta(self) -> float:
        """Clothing weight that validation chose."""
        return self.gallery.about.beta

    @property
    def calibration(self) -> Calibration | None:
        """Calibration of the model's scores."""
        return self.embedder.calibration

    def least(self, query: Query) -> float | None:
        """Score that the best image reaches for nearly every query of validation; None where `Result.share` is."""
        return self.calibration.least(query.beta) if self.calibration is not None and query.is_text else None

    @property
    def snapshot(self) -> Snapshot:
        """The images that are searched."""
        return self._loaded.snapshot

    def refresh(self) -> bool:
        """Takes over what has been added to the gallery, changed or removed since; False when nothing has."""
        version = self.gallery.version()
        if version == self._loaded.version:
            return False
        with self._refreshing:
            snapshot = self.gallery.snapshot()
            before, engine = self._loaded.snapshot, self._loaded.engine
            same_table = snapshot.generation == before.generation
            if isinstance(engine, QdrantEngine | PgvectorEngine):
                follow(engine, before.checksums(), snapshot)
            elif isinstance(engine, FaissEngine) and same_table and not engine.is_outgrown(len(snapshot)):
                first = len(before.ids_P)
                engine.delete(np.setdiff1d(before.ids_P, snapshot.ids_P))
                engine.add(snapshot.ids_P[first:], snapshot.table_PW[first:], snapshot.metadata(first))
                engine.renew(snapshot.ids_P, snapshot.metadata())
            else:
                engine = self._build(snapshot)
            self._loaded = _Loaded(snapshot, engine, version)
        return True

    def query(self, wanted: Wanted, beta: float) -> Query:
        """The query of texts, images and feedback at a clothing weight.

        Raises ValueError for a query without a part, for a text that `Embedder.embed_texts` refuses, and for an unknown image.
        """
        width, snapshot = self.gallery.about.width, self._loaded.snapshot
        # Identity side, clothing side and weight of each part.
        parts: list[tuple[np.ndarray, np.ndarray, float]] = []
        if wanted.texts:
            embedded = self.embedder.embed_texts([text for text, _ in wanted.texts])
            parts += [(t_E, t_E, weight) for t_E, (_, weight) in zip(embedded, wanted.texts, strict=True)]
        parts += [(t_E, t_E, 1.0) for t_E in wanted.embedded_texts]
        familiar = wanted.familiar and all(self.embedder.is_familiar(text) for text, _ in wanted.texts)
        is_text = len(parts) == 1 and parts[0][2] > 0 and familiar
        for row_W in [*self._rows(wanted.images, snapshot), *wanted.vectors]:
            parts.append((row_W[:width], row_W[-width:], 1.0))
        confirmed, rejected = (self._rows(ids, snapshot) for ids in (wanted.confirmed, wanted.rejected))
        if not parts and not confirmed:
            raise ValueError("a query needs a text or an image")
        is_text = is_text and len(parts) == 1 and not confirmed and not rejected
        # Without a query of its own, the confirmed images are it.
        sides = _combined_sides(parts or [(row_W[:width], row_W[-width:], 1.0) for row_W in confirmed])
        table_width = self.gallery.table_width
        marks = Marks(*(np.array(rows, np.float32).reshape(-1, table_width) for rows in (confirmed, rejected)))
        return Query(*sides, beta, is_text, marks if confirmed or rejected else None)

    def embed_image(self, content: bytes, name: str) -> np.ndarray:
        """Embedding (W,) of the bytes of an image file. Raises ValueError for one that cannot be read."""
        row_W = self.embedder.embed_images(self.embedder.read_image(content, name)[None])[0]
        if not np.isfinite(row_W).all():
            raise ValueError(
                "the model gives embeddings that are not finite (NaN or infinite): its weights are damaged"
            )
        return row_W

    def _rows(self, ids: Sequence[int], snapshot: Snapshot) -> list[np.ndarray]:
        if not ids:
            return []
        wanted = np.array(ids, np.int64)
        unknown = np.setdiff1d(wanted, snapshot.ids_P)
        if len(unknown) or (wanted < 0).any():
            raise ValueError(f"the gallery has no image {(unknown if len(unknown) else wanted)[0]}")
        return list(np.asarray(snapshot.table_PW[snapshot.positions(wanted)]))

    def search(self, query: Query, k: int, where: Filter | None = None) -> list[Result]:
        """The best k images that fulfil the filter, highest score first; of equal scores the earlier image.

        Raises ValueError for k below 1 or above MOST_RESULTS, and for a damaged image among them.
        """
        if not 1 <= k <= MOST_RESULTS:
            raise ValueError(f"k must be from 1 to {MOST_RESULTS}, got {k}")
        loaded, where = self._loaded, where or Filter()
        ids_M = self._candidates(loaded, query, k, where)
        table_MW = loaded.snapshot.table_PW[loaded.snapshot.positions(ids_M)]
        scores = exact_scores(table_MW, query)
        order = best(scores.score_M, k)
        rows = {row.id: row for row in self.gallery.rows(ids_M[order].tolist())}
        values = zip(ids_M[order].tolist(), *(part[order].tolist() for part in vars(scores).values()), strict=True)
        for row in rows.values():
            self._require_intact(row, loaded.snapshot)
        # An image that was removed meanwhile has no row.
        found = [Result(rows[i], *numbers) for i, *numbers in values if i in rows]
        if self.calibration is None or not query.is_text:
            return found
        share, count = self.calibration.share, len(loaded.snapshot)
        return [replace(result, share=share(result.score, query.beta, count)) for result in found]

    def _candidates(self, loaded: _Loaded, query: Query, k: int, where: Filter) -> np.ndarray:
        """Ids, in rising order, among which the best k are; with marks also those close to the confirmed images, by identity and
        in looks."""
        branches, width = self.gallery.about.branches, self.gallery.about.width
        if query.marks is None:
            return self._nearest(loaded, query.vector(branches), k, where)
        latest, betas = query.marks.confirmed_CW[-MARKED_SEARCHES:], (0.0, LOOKS_BETA)[:branches]
        queries = [query, *(Query(row_W[:width], row_W[-width:], beta) for row_W in latest for beta in betas)]
        found = [self._nearest(loaded, q.vector(branches), k + MARKED_CANDIDATES, where) for q in queries]
        return np.unique(np.concatenate(found))

    def _nearest(self, loaded: _Loaded, query_W: np.ndarray, k: int, where: Filter) -> np.ndarray:
        """Ids, in rising order, of an engine's candidates that may be among the best k."""
        if not where.values.keys() <= loaded.snapshot.codes.keys():
            # No image has a value in a column that does not exist, not even "", which servers cannot tell from no value.
            return np.empty(0, np.int64)
        ids_M = np.sort(loaded.engine.search(query_W, k, where))
        # An engine that takes over what was added is ahead of the snapshot, and so may one outside this process be.
        ids_M = ids_M[loaded.snapshot.holds(ids_M)]
        return ids_M[near(np.asarray(loaded.snapshot.table_PW)[loaded.snapshot.positions(ids_M)], query_W, k)]

    def _require_intact(self, row: ImageRow, snapshot: Snapshot) -> None:
        at = row.position
        # Added or moved since the snapshot: not of this table.
        known = at < len(snapshot.ids_P) and snapshot.ids_P[at] == row.id
        if known and not row.is_intact(snapshot.table_PW[at]):
            folder = self.gallery.folder
            raise ValueError(
                f"{self.gallery.table(snapshot.generation)} or {DATABASE} is damaged: embedding or facts of {row.path} are not "
                "those that were added; "
                f"`python -m training.gallery check {folder}` names all such images, which have to be removed and added again"
            )

    def close(self) -> None:
        """Frees the engine and closes the gallery."""
        self._loaded.engine.close()
        self.gallery.close()

    def _build(self, snapshot: Snapshot) -> Engine:
        width, count = self.gallery.table_width, len(snapshot.ids_P)
        parts = snapshot.ids_P, snapshot.table_PW, snapshot.metadata()
        if self.engine_name == "exact":
            exact = ExactEngine(width)
            exact.add(*parts)
            return exact
        if self.engine_name != "faiss":
            server = self._connect(width)
            follow(server, server.held(), snapshot)
            return server
        embedded = FaissEngine(width, count, self.gallery.about.width)
        path = self.gallery.folder / f"faiss-{snapshot.generation}.index"
        read = path.is_file() and embedded.load(path, count)
        embedded.add(*parts)
        if not read and count >= SAVED_FROM and os.access(self.gallery.folder, os.W_OK):
            self._save(embedded, path)
        return embedded

    def _save(self, engine: FaissEngine, path: Path) -> None:
        """Saves an index, but not while the gallery is written to: the writer would take its unfinished file for one that a
        killed process has left. The next start saves it then."""
        with ExitStack() as stack:
            try:
                stack.enter_context(folder_lock(self.gallery.folder))
            except RuntimeError:
                return
            engine.save(path)

    def _connect(self, width: int) -> QdrantEngine | PgvectorEngine:
        """The server's images of this gallery, which is known by its model and its place."""
        place = full_path(self.gallery.folder)
        name = f"bdam-{self.gallery.about.model[:12]}-{hashlib.sha256(os.fsencode(place)).hexdigest()[:12]}"
        if self.engine_name == "qdrant":
            return QdrantEngine(width, os.environ.get("QDRANT_URL", ":memory:"), name)
        location = os.environ.get(PGVECTOR_URL)
        if not location:
            raise ValueError(f"the engine pgvector needs {PGVECTOR_URL}, as postgresql://USER@HOST/DATABASE")
        return PgvectorEngine(width, location, name)


def nothing_good(best: float, least: float) -> str:
    """Sentence for a query whose best image does not reach `Finder.least`."""
    return (
        f"nothing good found: the best image scores {best:.2f}; for {100 * KEPT:.0f} of 100 queries of the validation split the "
        f"best one scores {least:.2f} or more"
    )


def _combined_sides(parts: Sequence[tuple[np.ndarray, np.ndarray, float]]) -> tuple[np.ndarray, np.ndarray]:
    weights = [weight for *_, weight in parts]
    return combined([part[0] for part in parts], weights), combined([part[1] for part in parts], weights)
