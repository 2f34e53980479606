"""Gallery on disk: embeddings of images with their paths and metadata, that grows while others search it.

Files of a gallery folder:

    gallery.db      SQLite: the model that the embeddings are from, and one row per image
    table-G.f32     float32 (P, W): one position per image, [v_id; v_clo], memory-mapped; G counts compactions
    .lock           held by the writing process, and only then there
    cases/          confirmed and rejected images (cases.py)

A batch is in the gallery when its rows are committed in gallery.db, after its embeddings are on the disk: a killed writer loses
the batch that it was working on and nothing else. Readers map the table and read a snapshot of the rows; they wait for nobody.

Each row has a checksum of itself and its embedding, CRC-32 of the one XOR that of the other, so that metadata can change without
the embedding; the model has one too, and the number of images is stored. Galleries of earlier versions lack them.

Shapes: N images, P positions of the table, W its width (E, or 2 E with a clothing branch), E embedding width.
"""

from __future__ import annotations

import json
import os
import sqlite3
import threading
import zlib
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from training.retrieval.database import DAMAGED, naming_database, open_reader
from training.retrieval.snapshot import Snapshot, snapshot_of
from training.utils.locks import folder_lock

DATABASE = "gallery.db"
FORMAT = 1
_SCHEMA = """
CREATE TABLE about (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE images (
  id INTEGER PRIMARY KEY AUTOINCREMENT, position INTEGER NOT NULL UNIQUE, path TEXT NOT NULL UNIQUE,
  size INTEGER NOT NULL, mtime INTEGER NOT NULL, sha256 TEXT NOT NULL, camera TEXT NOT NULL, time REAL, more TEXT NOT NULL,
  crc INTEGER
);
"""
FACTS = "path, size, mtime, sha256, camera, time, more"
COLUMNS = f"id, position, {FACTS}, crc"


@dataclass(frozen=True)
class About:
    """Model of a gallery's embeddings."""

    # SHA-256 (hex) of the checkpoint.
    model: str
    # Embedding width E, and branches: 1 identity, 2 identity and clothing.
    width: int
    branches: int
    # Clothing weight that validation chose.
    beta: float
    # Run folder or export folder at the time, for the reader.
    source: str = ""
    format: int = FORMAT

    def crc(self) -> int:
        """Checksum of all fields."""
        return zlib.crc32(json.dumps(asdict(self), sort_keys=True).encode())


@dataclass(frozen=True)
class ImageRow:
    """One image of a gallery."""

    path: str
    # Bytes and time of change (ns) of the file, and the SHA-256 (hex) of its content.
    size: int
    mtime: int
    sha256: str
    # "" and None where they are not known; seconds (see image_names.py).
    camera: str = ""
    time: float | None = None
    # Other columns of the metadata.
    more: dict[str, str] = field(default_factory=dict)
    # Number of the image, never used again, and its place in the table; given by the gallery.
    id: int = -1
    position: int = -1
    # Checksum of these facts and the embedding; None in galleries of earlier versions.
    crc: int | None = None

    def facts_crc(self) -> int:
        """Checksum of what the gallery was told of the image."""
        more, time = json.dumps(self.more, sort_keys=True), None if self.time is None else float(self.time)
        facts = (self.path, self.size, self.mtime, self.sha256, self.camera, time, more)
        return zlib.crc32("\0".join(map(str, facts)).encode())

    def is_intact(self, embedding_W: np.ndarray) -> bool:
        """True where the facts and the embedding are those that were added, or nothing is known."""
        return self.crc is None or self.crc == self.facts_crc() ^ zlib.crc32(embedding_W.tobytes())


class Gallery:
    """A gallery folder, opened for reading; `open_writer` (gallery_writer.py) adds and removes.

    Raises FileNotFoundError when the folder is no gallery, ValueError when it is damaged or of another format.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        path = self.folder / DATABASE
        if not path.is_file():
            raise FileNotFoundError(
                f"{folder} is no gallery: there is no {DATABASE}; `python -m training.gallery add` makes one"
            )
        self._lock = threading.Lock()
        try:
            self._connection = open_reader(path)
            stored = dict(self._connection.execute("SELECT key, value FROM about"))
            values = {key: json.loads(stored[key]) for key in About.__dataclass_fields__}
            self.about = About(**values)
            columns = [row[1] for row in self._connection.execute("PRAGMA table_info(images)")]
            intact = "crc" not in stored or int(stored["crc"]) == self.about.crc()
        except (sqlite3.DatabaseError, KeyError, ValueError, TypeError) as error:
            raise ValueError(f"{path} is damaged or not the database of a gallery: {error}; {DAMAGED}") from error
        if self.about.format != FORMAT:
            raise ValueError(f"{path} has format {self.about.format}, expected {FORMAT}")
        if not intact:
            raise ValueError(f"{path} is damaged: what it says of its model is not what was written; {DAMAGED}")
        self._columns = COLUMNS if "crc" in columns else COLUMNS.replace("crc", "NULL")
        self._connection.create_function("checksum", -1, _checksum, deterministic=True)

    @classmethod
    def create(cls, folder: Path | str, about: About) -> Gallery:
        """A new, empty gallery in a folder that holds none. Raises FileExistsError when it does."""
        folder = Path(folder)
        path = folder / DATABASE
        with folder_lock(folder), naming_database(path):
            if path.exists():
                raise FileExistsError(f"{folder} holds a gallery already")
            # Made aside, so that a killed process leaves no half gallery, but the files of its own.
            temporary = f".{DATABASE}.tmp"
            for left in folder.glob(f"{temporary}*"):
                left.unlink()
            with closing(sqlite3.connect(folder / temporary)) as connection:
                with connection:
                    connection.executescript(_SCHEMA)
                    state = {**asdict(about), "crc": about.crc(), "generation": 0, "end": 0, "changes": 0, "images": 0}
                    pairs = [(key, json.dumps(value)) for key, value in state.items()]
                    connection.executemany("INSERT INTO about VALUES (?, ?)", pairs)
                # Readers see the state before a write in progress, without waiting.
                connection.execute("PRAGMA journal_mode=WAL")
            os.replace(folder / temporary, path)
        return cls(folder)

    @property
    def table_width(self) -> int:
        """W."""
        return self.about.width * self.about.branches

    def require_model(self, digest: str, source: str) -> None:
        """Raises ValueError when the embeddings are from another model."""
        if digest != self.about.model:
            raise ValueError(
                f"gallery {self.folder} was made with another model ({self.about.source}, {self.about.model[:12]}) than {source} "
                f"({digest[:12]}); embed the images again in a new gallery"
            )

    def query(self, sql: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Rows of an SQL query, from any thread."""
        with self._lock, naming_database(self.folder / DATABASE):
            return self._connection.execute(sql, values).fetchall()

    def faults(self) -> list[str]:
        """Faults that SQLite finds in its own structure."""
        return [text for (text,) in self.query("PRAGMA integrity_check(20)") if text != "ok"]

    def count(self) -> int:
        """Number of images."""
        return int(self.query("SELECT count(*) FROM images")[0][0])

    def version(self) -> int:
        """Number of changes so far."""
        return int(self.query("SELECT value FROM about WHERE key = 'changes'")[0][0])

    def rows(self, ids: Sequence[int]) -> list[ImageRow]:
        """The images of these ids that the gallery holds, in this order."""
        found: dict[int, ImageRow] = {}
        for start in range(0, len(ids), 500):
            part = [int(i) for i in ids[start : start + 500]]
            marks = ",".join("?" * len(part))
            sql = f"SELECT {self._columns} FROM images WHERE id IN ({marks})"
            found |= {row.id: row for row in map(self._row, self.query(sql, part))}
        return [found[int(i)] for i in ids if int(i) in found]

    def row_of(self, path: str) -> ImageRow | None:
        """The image of this path; None when it is not in the gallery."""
        found = self.query(f"SELECT {self._columns} FROM images WHERE path = ?", (path,))
        return self._row(found[0]) if found else None

    def all_rows(self) -> Iterator[ImageRow]:
        """Every image in the order of the table, read in parts."""
        last = -1
        while found := self.query(
            f"SELECT {self._columns} FROM images WHERE position > ? ORDER BY position LIMIT 4096", (last,)
        ):
            yield from map(self._row, found)
            last = found[-1][1]

    def snapshot(self) -> Snapshot:
        """The images as they are now. Raises ValueError for a damaged gallery, FileNotFoundError without its table."""
        while True:
            stored, rows = self._moment()
            try:
                if "images" in stored and int(stored["images"]) != len(rows):
                    raise ValueError(f"{len(rows)} of {stored['images']} images are found")
                return self._snapshot(int(stored["generation"]), rows)
            except FileNotFoundError:
                # Compacted since: the next generation is in the database.
                if self._moment()[0]["generation"] == stored["generation"]:
                    raise
            except (KeyError, TypeError, IndexError, OverflowError, ValueError) as error:
                raise ValueError(f"{self.folder / DATABASE} is damaged: {error}; {DAMAGED}") from error

    def _moment(self) -> tuple[dict[str, str], list[tuple[Any, ...]]]:
        """Values stored of the gallery, and position, id, camera, time, further columns and checksum of each image, of one
        moment."""
        with self._lock, naming_database(self.folder / DATABASE):
            self._connection.execute("BEGIN")
            try:
                stored = dict(self._connection.execute("SELECT key, value FROM about"))
                # An integer even where it is damaged, which `ImageRow.is_intact` finds out.
                crc = f"CAST(coalesce({self._columns.split(', ')[-1]}, checksum({FACTS})) AS INTEGER)"
                sql = f"SELECT position, id, camera, time, more, {crc} FROM images ORDER BY position"
                return stored, self._connection.execute(sql).fetchall()
            finally:
                self._connection.rollback()

    def _snapshot(self, generation: int, rows: list[tuple[Any, ...]]) -> Snapshot:
        count = rows[-1][0] + 1 if rows else 0
        table_PW = np.zeros((0, self.table_width), np.float32)
        if count:
            path = self.table(generation)
            if path.stat().st_size < count * self.table_width * 4:
                raise ValueError(f"{path} is shorter than its {count} images")
            table_PW = np.memmap(path, np.float32, "r", shape=(count, self.table_width))
        return snapshot_of(generation, table_PW, rows)

    def table(self, generation: int) -> Path:
        """Path of the table of a generation."""
        return self.folder / f"table-{generation}.f32"

    def _row(self, values: tuple[Any, ...]) -> ImageRow:
        try:
            image, position, path, size, mtime, sha256, camera, time, more, crc = values
            row = ImageRow(path, size, mtime, sha256, camera, time, json.loads(more), image, position, crc)
            row.facts_crc()
            return row
        except (TypeError, ValueError) as error:
            raise ValueError(f"{self.folder / DATABASE} is damaged: {error}; {DAMAGED}") from error

    def close(self) -> None:
        """Closes the database."""
        self._connection.close()


def _checksum(*facts: Any) -> int:
    """Checksum of the stored facts of an image that has none of its own."""
    return zlib.crc32(repr(facts).encode())
