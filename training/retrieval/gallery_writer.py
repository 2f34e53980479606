"""The one writer of a gallery: batches of images that are added as a whole, removals, compaction.

Shapes: N images, W width of the table.
"""

from __future__ import annotations

import fcntl
import json
import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from training.retrieval.store import COLUMNS, DATABASE, LOCK, Gallery, ImageRow

# Positions of removed images are reclaimed when they are more than this share of the table.
MOST_GAPS = 0.25
COMPACTED_AT_ONCE = 4096


@contextmanager
def open_writer(gallery: Gallery) -> Iterator[GalleryWriter]:
    """The writer of a gallery. Raises BlockingIOError when another process writes, OSError when the folder cannot be written."""
    with open(gallery.folder / LOCK, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BlockingIOError(
                f"gallery {gallery.folder}: another process is changing it; wait until it has ended"
            ) from None
        writer = GalleryWriter(gallery)
        try:
            yield writer
        finally:
            writer.close()


class GalleryWriter:
    """Changes of a gallery, each in the gallery as a whole or not at all; made by `open_writer`."""

    def __init__(self, gallery: Gallery) -> None:
        self.gallery = gallery
        self.connection = sqlite3.connect(gallery.folder / DATABASE, timeout=60)
        self.connection.execute("PRAGMA synchronous=FULL")
        self.generation = self._one("SELECT value FROM about WHERE key = 'generation'")
        for path in gallery.folder.glob("table-*.f32"):
            # Left by a process that was killed while it compacted.
            if path != gallery.table(self.generation):
                path.unlink()

    def close(self) -> None:
        """Ends writing."""
        self.connection.close()

    def add(self, rows: Sequence[ImageRow], table_NW: np.ndarray) -> None:
        """Adds images with their embeddings, float32 (N, W); an image whose path is in the gallery is replaced.

        Raises ValueError for a shape or dtype that does not fit and for values that are not finite.
        """
        expected = (len(rows), self.gallery.table_width)
        if table_NW.dtype != np.float32 or table_NW.shape != expected:
            raise ValueError(f"add: embeddings must be float32 {expected}, got {table_NW.dtype} {table_NW.shape}")
        if not np.isfinite(table_NW).all():
            raise ValueError(
                "the model gives embeddings that are not finite (NaN or infinite): its weights are damaged"
            )
        # Not the last position in use: readers may still have the images that were removed behind it.
        start = self._one("SELECT value FROM about WHERE key = 'end'")
        path = self.gallery.table(self.generation)
        with open(path, "r+b" if path.exists() else "w+b") as file:
            # Over what a killed process may have left behind the last committed position.
            file.seek(start * self.gallery.table_width * 4)
            file.write(np.ascontiguousarray(table_NW).tobytes())
            file.flush()
            os.fsync(file.fileno())
        with self._change():
            self.connection.executemany("DELETE FROM images WHERE path = ?", [(row.path,) for row in rows])
            self.connection.executemany(
                f"INSERT INTO images ({COLUMNS}) VALUES (NULL, ?, ?, ?, ?, ?, ?, ?, ?)",
                [
                    (start + i, r.path, r.size, r.mtime, r.sha256, r.camera, r.time, json.dumps(r.more, sort_keys=True))
                    for i, r in enumerate(rows)
                ],
            )
            self._set("end", start + len(rows))

    def update_metadata(self, row: ImageRow) -> None:
        """Writes camera, time and other columns of an image that is in the gallery."""
        values = (row.camera, row.time, json.dumps(row.more, sort_keys=True), row.id)
        with self._change():
            self.connection.execute("UPDATE images SET camera = ?, time = ?, more = ? WHERE id = ?", values)

    def remove(self, ids: Iterable[int]) -> int:
        """Removes images and returns how many there were; reclaims their positions when gaps are many."""
        with self._change():
            before = self._one("SELECT count(*) FROM images")
            self.connection.executemany("DELETE FROM images WHERE id = ?", [(int(i),) for i in ids])
            left = self._one("SELECT count(*) FROM images")
        end = self._one("SELECT value FROM about WHERE key = 'end'")
        if end - left > MOST_GAPS * end:
            self._compact(left)
        return before - left

    def _compact(self, count: int) -> None:
        """Copies the table without its gaps; readers keep the old file, which they have mapped."""
        old, new = self.gallery.table(self.generation), self.gallery.table(self.generation + 1)
        found = self.connection.execute("SELECT id, position FROM images ORDER BY position").fetchall()
        positions = np.array([position for _, position in found], np.int64)
        with open(new, "wb") as file:
            if count:
                table_PW = np.memmap(old, np.float32, "r", shape=(positions[-1] + 1, self.gallery.table_width))
                for start in range(0, count, COMPACTED_AT_ONCE):
                    file.write(table_PW[positions[start : start + COMPACTED_AT_ONCE]].tobytes())
            file.flush()
            os.fsync(file.fileno())
        with self._change():
            moved = [(i, image) for i, (image, _) in enumerate(found)]
            self.connection.executemany("UPDATE images SET position = ? WHERE id = ?", moved)
            self._set("generation", self.generation + 1)
            self._set("end", count)
        self.generation += 1
        old.unlink(missing_ok=True)

    @contextmanager
    def _change(self) -> Iterator[None]:
        """A transaction, which is counted."""
        with self.connection:
            yield
            self.connection.execute("UPDATE about SET value = value + 1 WHERE key = 'changes'")

    def _set(self, key: str, value: int) -> None:
        self.connection.execute("UPDATE about SET value = ? WHERE key = ?", (str(value), key))

    def _one(self, sql: str) -> int:
        return int(self.connection.execute(sql).fetchone()[0])
