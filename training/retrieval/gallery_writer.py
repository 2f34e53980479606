"""The one writer of a gallery: batches of images that are added as a whole, removals, compaction.

Shapes: N images, W width of the table.
"""

from __future__ import annotations

import json
import os
import sqlite3
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress

import numpy as np

from training.retrieval.database import DAMAGED, PATIENCE, naming_database
from training.retrieval.store import COLUMNS, DATABASE, Gallery, ImageRow
from training.utils.io import naming_full_disk
from training.utils.locks import folder_lock

# Positions of removed images are reclaimed when they are more than this share of the table.
MOST_GAPS = 0.25
COMPACTED_AT_ONCE = 4096


@contextmanager
def open_writer(gallery: Gallery) -> Iterator[GalleryWriter]:
    """The writer of a gallery. Raises RuntimeError when another process writes, OSError when the folder cannot be written."""
    with folder_lock(gallery.folder):
        writer = GalleryWriter(gallery)
        try:
            yield writer
        finally:
            writer.close()


class GalleryWriter:
    """Changes of a gallery, each in the gallery as a whole or not at all; made by `open_writer`."""

    def __init__(self, gallery: Gallery) -> None:
        self.gallery, self.path = gallery, gallery.folder / DATABASE
        with naming_database(self.path):
            self.connection = sqlite3.connect(self.path, timeout=PATIENCE)
            self.connection.execute("PRAGMA synchronous=FULL")
            self._upgrade()
        self.generation = self._stored("generation")
        for path in gallery.folder.glob("table-*.f32"):
            # Left by a process that was killed while it compacted.
            if path != gallery.table(self.generation):
                path.unlink()

    def close(self) -> None:
        """Ends writing."""
        with suppress(sqlite3.Error):
            # Out of the log, of which SQLite passes over what is damaged and all that follows, and says nothing.
            self.connection.execute("PRAGMA busy_timeout = 1000")
            self.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
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
        start = max(self._stored("end"), self._one("SELECT coalesce(max(position), -1) + 1 FROM images"))
        path = self.gallery.table(self.generation)
        table_NW = np.ascontiguousarray(table_NW)
        with naming_full_disk(path), open(path, "r+b" if path.exists() else "w+b") as file:
            # Over what a killed process may have left behind the last committed position.
            file.seek(start * self.gallery.table_width * 4)
            file.write(table_NW.tobytes())
            file.flush()
            os.fsync(file.fileno())
        with self._change():
            self.connection.executemany("DELETE FROM images WHERE path = ?", [(row.path,) for row in rows])
            self.connection.executemany(
                f"INSERT INTO images ({COLUMNS}) VALUES (NULL, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                [
                    (
                        start + i,
                        r.path,
                        r.size,
                        r.mtime,
                        r.sha256,
                        r.camera,
                        r.time,
                        _text(r),
                        r.facts_crc() ^ zlib.crc32(row_W),
                    )
                    for i, (r, row_W) in enumerate(zip(rows, table_NW, strict=True))
                ],
            )
            self._set("end", start + len(rows))
            self._set("images", self._one("SELECT count(*) FROM images"))

    def update_metadata(self, *rows: ImageRow) -> None:
        """Writes camera, time and other columns of images, and size and time of their files; passes over those that the gallery
        does not hold."""
        old, values = {row.id: row for row in self.gallery.rows([row.id for row in rows])}, []
        for row in rows:
            # Not made anew: a damaged embedding stays one.
            change = old[row.id].facts_crc() ^ row.facts_crc() if row.id in old else 0
            values.append((row.size, row.mtime, row.camera, row.time, _text(row), change, change, row.id))
        # SQLite has no XOR.
        sql = "UPDATE images SET size = ?, mtime = ?, camera = ?, time = ?, more = ?, crc = (crc | ?) - (crc & ?) WHERE id = ?"
        with self._change():
            self.connection.executemany(sql, values)

    def remove(self, ids: Iterable[int]) -> int:
        """Removes images and returns how many there were; reclaims their positions when gaps are many."""
        with self._change():
            before = self._one("SELECT count(*) FROM images")
            self.connection.executemany("DELETE FROM images WHERE id = ?", [(int(i),) for i in ids])
            left = self._one("SELECT count(*) FROM images")
            self._set("images", left)
        end = self._stored("end")
        if end - left > MOST_GAPS * end:
            self._compact(left)
        return before - left

    def _compact(self, count: int) -> None:
        """Copies the table without its gaps; readers keep the old file, which they have mapped. An index of the old one goes."""
        old, new = self.gallery.table(self.generation), self.gallery.table(self.generation + 1)
        with naming_database(self.path):
            found = self.connection.execute("SELECT id, position FROM images ORDER BY position").fetchall()
        positions = np.array([position for _, position in found], np.int64)
        with naming_full_disk(new), open(new, "wb") as file:
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
        for path in (old, *self.gallery.folder.glob(f"faiss-{self.generation}.*")):
            path.unlink(missing_ok=True)
        self.generation += 1

    def _upgrade(self) -> None:
        """Adds what the database of an earlier version lacks."""
        if "crc" not in [row[1] for row in self.connection.execute("PRAGMA table_info(images)")]:
            with self.connection:
                self.connection.execute("ALTER TABLE images ADD COLUMN crc INTEGER")
                self.connection.execute("INSERT INTO about VALUES ('crc', ?)", (str(self.gallery.about.crc()),))
                self.connection.execute("INSERT INTO about SELECT 'images', count(*) FROM images")

    @contextmanager
    def _change(self) -> Iterator[None]:
        """A transaction, which is counted."""
        with naming_database(self.path), self.connection:
            yield
            self.connection.execute("UPDATE about SET value = value + 1 WHERE key = 'changes'")

    def _set(self, key: str, value: int) -> None:
        self.connection.execute("UPDATE about SET value = ? WHERE key = ?", (str(value), key))

    def _stored(self, key: str) -> int:
        return self._one("SELECT value FROM about WHERE key = ?", key)

    def _one(self, sql: str, *values: str) -> int:
        with naming_database(self.path):
            found = self.connection.execute(sql, values).fetchone()
        try:
            return int(found[0])
        except (TypeError, ValueError) as error:
            raise ValueError(f"{self.path} is damaged: {error}; {DAMAGED}") from error


def _text(row: ImageRow) -> str:
    return json.dumps(row.more, sort_keys=True)
