"""Everything behind the page and the API: searches, uploaded query images, thumbnails, counters."""

from __future__ import annotations

import json
import secrets
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import lru_cache
from pathlib import Path

import numpy as np

from training.retrieval.cases import Case, Cases
from training.retrieval.finder import MOST_RESULTS, Finder, Result, Wanted, nothing_good
from training.retrieval.outputs import BOX, thumbnail_bytes
from training.retrieval.reranking import rerank
from training.retrieval.web.kept_bytes import KeptBytes
from training.retrieval.web.parameters import MOST_PAGES, Search
from training.retrieval.web.uploads import Uploads, require_size

# Seconds between two looks for additions of other processes.
REFRESH_EVERY = 1.0
KEPT_UPLOADS, KEPT_TEXTS = 64, 1024
# Bytes of JPEG: 8,000 thumbnails, or 200 images of LARGE; by number, large ones would be a gigabyte.
KEPT_THUMBNAILS = 2**26
# Results that are sorted by time.
SORTED = 240
# Upper bounds of the histogram of latencies, seconds.
BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
LARGE = (1200, 1200)


@dataclass
class Counters:
    """Searches so far."""

    count: int = 0
    seconds: float = 0.0
    buckets: list[int] = field(default_factory=lambda: [0] * len(BUCKETS))
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, seconds: float) -> None:
        """Counts one search."""
        with self.lock:
            self.count, self.seconds = self.count + 1, self.seconds + seconds
            for i, bound in enumerate(BUCKETS):
                self.buckets[i] += seconds <= bound

    def prometheus(self, images: int) -> str:
        """The counters in Prometheus' text format."""
        lines = ["# TYPE gallery_images gauge", f"gallery_images {images}", "# TYPE search_seconds histogram"]
        lines += [f'search_seconds_bucket{{le="{b}"}} {n}' for b, n in zip(BUCKETS, self.buckets, strict=True)]
        lines += [f'search_seconds_bucket{{le="+Inf"}} {self.count}', f"search_seconds_sum {self.seconds:.6f}"]
        return "\n".join([*lines, f"search_seconds_count {self.count}", ""])


@dataclass(frozen=True)
class Answer:
    """Results of a search."""

    results: list[Result]
    # Remarks on the text.
    notes: list[str]
    # True when there is another page.
    more: bool
    # Marks of the open case by image.
    marks: dict[int, str]
    # True when no image scores as the best ones of the validation split do, and `results` is empty for that.
    nothing_good: bool = False


@dataclass(frozen=True)
class ReadText:
    """A text as the model reads it."""

    embedding_E: np.ndarray
    # `Embedder.is_familiar` and `Embedder.notes`.
    is_familiar: bool
    notes: tuple[str, ...]


def require_writable(audit: Path) -> None:
    """Raises OSError for an audit file to which nothing can be appended: each search would fail."""
    try:
        open(audit, "a").close()
    except OSError as error:
        raise OSError(f"--audit {audit} cannot be written: {error.strerror}") from error


class Service:
    """State of a server: a finder, the cases and uploads of its gallery. audit: file to which searches are written."""

    def __init__(self, finder: Finder, audit: Path | None = None) -> None:
        """Raises OSError for an audit file that cannot be written."""
        if audit is not None:
            require_writable(audit)
        self.finder, self.audit = finder, audit
        self.cases = Cases(finder.gallery.folder)
        self.uploads = Uploads(finder)
        self.counters = Counters()
        self._vectors: OrderedDict[str, np.ndarray] = OrderedDict()
        self._lock = threading.Lock()
        self._looked = time.monotonic()
        # Texts are embedded one at a time: several at once would only take each other's cores, and one batch of them, 0.5 instead
        # of 3.2 ms a text, gives each text other bits (6e-7) for other company: the same search would not have the same scores.
        self._text_lock = threading.Lock()
        # Every change of a filter or the weight of clothes asks for the same text again.
        self.read_text = lru_cache(KEPT_TEXTS)(self._read_text)
        self._thumbnails = KeptBytes(KEPT_THUMBNAILS)

    def search(self, asked: Search, who: str) -> Answer:
        """The page of results that is asked for. Raises ValueError for a search that cannot be made."""
        start = time.perf_counter()
        self._refresh()
        case = self.cases.load(asked.case) if asked.case else None
        rejected = case.ids("rejected") if case else []
        text = self.read_text(asked.text) if asked.text.strip() else None
        query = self.finder.query(self._wanted(asked, text, case), asked.beta)
        where = asked.filter(rejected)
        by_time = asked.order == "time"
        # One more than are shown says whether there are more.
        wanted = SORTED + 1 if by_time else min(max(asked.first + asked.k + 1, asked.rerank), MOST_RESULTS)
        found = self.finder.search(query, wanted, where)
        notes = list(text.notes) if text else []
        least = self.finder.least(query) if asked.least is None else None
        weak = least is not None and bool(found) and found[0].score < least
        if weak:
            notes.append(nothing_good(found[0].score, least or 0.0))
        found = [] if weak and not asked.weak else self._above(found, asked.least)
        if asked.rerank and text:
            with self._lock:
                found = rerank(self.finder.embedder, asked.text, found, asked.rerank, query.beta)
        if by_time:
            if len(found) > SORTED:
                found = found[:SORTED]
                notes.append(f"of the results only the {SORTED} best are shown by time")
            found.sort(key=lambda r: (r.image.time is None, r.image.time or 0.0))
        end = asked.first + asked.k
        page = found[asked.first : end]
        marks = {int(i): mark.mark for i, mark in case.marks.items()} if case else {}
        self.counters.add(time.perf_counter() - start)
        self._write_audit(asked, who, len(page))
        more = len(found) > end and asked.page < MOST_PAGES
        return Answer(page, notes, more, marks, weak and not asked.weak)

    def _above(self, found: list[Result], least: float | None) -> list[Result]:
        return found if least is None else [result for result in found if result.score >= least]

    def _wanted(self, asked: Search, text: ReadText | None, case: Case | None) -> Wanted:
        vectors = [self._vector(asked.upload)] if asked.upload else []
        texts = [text.embedding_E] if text else []
        images = [] if asked.like is None else [asked.like]
        marks: list[list[int]] = [[], []]
        if asked.refine and case is not None:
            # Images that have been removed since have no embedding.
            marks = [[row.id for row in self.finder.gallery.rows(case.ids(mark))] for mark in ("confirmed", "rejected")]
        return Wanted((), texts, text is None or text.is_familiar, images, vectors, *marks)

    def _read_text(self, text: str) -> ReadText:
        embedder = self.finder.embedder
        # First: it refuses what is no text.
        with self._text_lock:
            embedding_E = embedder.embed_texts([text])[0]
        return ReadText(embedding_E, embedder.is_familiar(text), tuple(embedder.notes(text)))

    def keep_image(self, content: bytes) -> str:
        """Key of an uploaded image, of which the embedding is kept for a while, and nothing else. Raises ValueError."""
        require_size(content)
        with self._lock:
            vector_W = self.finder.embed_image(content, "the image")
        key = secrets.token_urlsafe(9)
        self._vectors[key] = vector_W
        while len(self._vectors) > KEPT_UPLOADS:
            self._vectors.popitem(last=False)
        return key

    def _vector(self, key: str) -> np.ndarray:
        # Once: other uploads may push it out meanwhile.
        vector_W = self._vectors.get(key)
        if vector_W is None:
            raise ValueError("the uploaded image is not kept any more; upload it again")
        return vector_W

    def thumbnail(self, image: int, large: bool) -> bytes | None:
        """JPEG of an image of the gallery; None when its file is missing or damaged, or the gallery has no such image."""
        # Asked each time: an image that was removed from the gallery is not shown from memory either.
        rows = self.finder.gallery.rows([image])
        if not rows:
            return None
        path, box, most = Path(rows[0].path), LARGE if large else BOX, self.finder.embedder.max_pixels
        return self._thumbnails.get((image, large), lambda: thumbnail_bytes(path, box, most))

    def cameras(self) -> list[str]:
        """Names of all cameras."""
        return [name for name in self.finder.snapshot.values.get("camera", []) if name]

    def has_times(self) -> bool:
        """True when the time of any image is known."""
        return bool(np.isfinite(self.finder.snapshot.times_P).any())

    def _refresh(self) -> None:
        now = time.monotonic()
        if now - self._looked >= REFRESH_EVERY:
            self._looked = now
            self.finder.refresh()

    def _write_audit(self, asked: Search, who: str, count: int) -> None:
        if self.audit is None:
            return
        line = {"when": datetime.now(timezone.utc).isoformat(timespec="seconds"), "who": who, "what": asked.url()}
        with self._lock, open(self.audit, "a", encoding="utf-8") as file:
            file.write(json.dumps(line | {"results": count}, ensure_ascii=True) + "\n")
