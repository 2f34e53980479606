"""Gallery on disk: embeddings of images with their paths and metadata, that grows while others search it.

Files of a gallery folder:

    gallery.db      SQLite: the model that the embeddings are from, and one row per image
    table-G.f32     float32 (P, W): one position per image, [v_id; v_clo], memory-mapped; G counts compactions
    lock            held by the writing process
    cases/          confirmed and rejected images (cases.py)

A batch is in the gallery when its rows are committed in gallery.db, after its embeddings are on the disk: a killed writer loses
the batch that it was working on and nothing else. Readers map the table and read a snapshot of the rows; they wait for nobody.

Shapes: N images, P positions of the table, W its width (E, or 2 E with a clothing branch), E embedding width.
"""

from __future__ import annotations

import json
import os
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

DATABASE, LOCK = "gallery.db", "lock"
FORMAT = 1
_SCHEMA = """
CREATE TABLE about (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE images (
  id INTEGER PRIMARY KEY AUTOINCREMENT, position INTEGER NOT NULL UNIQUE, path TEXT NOT NULL UNIQUE,
  size INTEGER NOT NULL, mtime INTEGER NOT NULL, sha256 TEXT NOT NULL, camera TEXT NOT NULL, time REAL, more TEXT NOT NULL
);
"""
COLUMNS = "id, position, path, size, mtime, sha256, camera, time, more"


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

    def __len__(self) -> int:
        """Number of images."""
        return int((self.ids_P >= 0).sum())

    def positions(self, ids_N: np.ndarray) -> np.ndarray:
        """Position of each id, which must exist; ids grow with their positions."""
        alive = np.flatnonzero(self.ids_P >= 0)
        return alive[np.searchsorted(self.ids_P[alive], ids_N)]


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
        self._connection = _connect(path)
        try:
            stored = dict(self._connection.execute("SELECT key, value FROM about"))
            values = {key: json.loads(stored[key]) for key in About.__dataclass_fields__}
            self.about = About(**values)
        except (sqlite3.DatabaseError, KeyError, ValueError) as error:
            raise ValueError(f"{path} is damaged or not the database of a gallery: {error}") from error
        if self.about.format != FORMAT:
            raise ValueError(f"{path} has format {self.about.format}, expected {FORMAT}")

    @classmethod
    def create(cls, folder: Path | str, about: About) -> Gallery:
        """A new, empty gallery in a folder that holds none. Raises FileExistsError when it does."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / DATABASE
        if path.exists():
            raise FileExistsError(f"{folder} holds a gallery already")
        # Made aside: a killed process leaves no half gallery.
        temporary = folder / f".{DATABASE}.{os.getpid()}.tmp"
        temporary.unlink(missing_ok=True)
        connection = sqlite3.connect(temporary)
        with connection:
            connection.executescript(_SCHEMA)
            pairs = [
                (key, json.dumps(value))
                for key, value in {**asdict(about), "generation": 0, "end": 0, "changes": 0}.items()
            ]
            connection.executemany("INSERT INTO about VALUES (?, ?)", pairs)
        # Readers see the state before a write in progress, without waiting.
        connection.execute("PRAGMA journal_mode=WAL")
        connection.close()
        os.replace(temporary, path)
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
        with self._lock:
            try:
                return self._connection.execute(sql, values).fetchall()
            except sqlite3.DatabaseError as error:
                raise ValueError(f"{self.folder / DATABASE} cannot be read: {error}") from error

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
            found |= {
                r.id: r for r in map(_row, self.query(f"SELECT {COLUMNS} FROM images WHERE id IN ({marks})", part))
            }
        return [found[int(i)] for i in ids if int(i) in found]

    def row_of(self, path: str) -> ImageRow | None:
        """The image of this path; None when it is not in the gallery."""
        found = self.query(f"SELECT {COLUMNS} FROM images WHERE path = ?", (path,))
        return _row(found[0]) if found else None

    def all_rows(self) -> Iterator[ImageRow]:
        """Every image in the order of the table, read in parts."""
        last = -1
        while found := self.query(
            f"SELECT {COLUMNS} FROM images WHERE position > ? ORDER BY position LIMIT 4096", (last,)
        ):
            yield from map(_row, found)
            last = found[-1][1]

    def snapshot(self) -> Snapshot:
        """The images as they are now."""
        while True:
            # One statement sees one moment.
            rows = self.query(
                "SELECT position, id, camera, time, more, (SELECT value FROM about WHERE key = 'generation') "
                "FROM images ORDER BY position"
            )
            try:
                return self._snapshot(int(rows[0][5]) if rows else -1, rows)
            except FileNotFoundError:
                # Compacted since: the next generation is in the database.
                if int(self.query("SELECT value FROM about WHERE key = 'generation'")[0][0]) == int(rows[0][5]):
                    raise

    def _snapshot(self, generation: int, rows: list[tuple[Any, ...]]) -> Snapshot:
        count = rows[-1][0] + 1 if rows else 0
        table_PW = np.zeros((0, self.table_width), np.float32)
        if count:
            path = self.table(generation)
            if path.stat().st_size < count * self.table_width * 4:
                raise ValueError(f"{path} is shorter than its {count} images; embed them again in a new gallery")
            table_PW = np.memmap(path, np.float32, "r", shape=(count, self.table_width))
        positions = np.fromiter((row[0] for row in rows), np.int64, len(rows))
        ids_P, times_P = np.full(count, -1, np.int64), np.full(count, np.nan)
        ids_P[positions] = np.fromiter((row[1] for row in rows), np.int64, len(rows))
        times_P[positions] = [np.nan if row[3] is None else row[3] for row in rows]
        more = [json.loads(row[4]) if row[4] != "{}" else {} for row in rows]
        names = sorted({name for columns in more for name in columns})
        texts = {"camera": [row[2] for row in rows]} | {n: [columns.get(n, "") for columns in more] for n in names}
        codes, values = {}, {}
        for name, column in texts.items():
            values[name] = sorted({"", *column})
            number = {value: i for i, value in enumerate(values[name])}
            codes[name] = np.zeros(count, np.int32)
            codes[name][positions] = [number[value] for value in column]
        return Snapshot(generation, ids_P, table_PW, times_P, codes, values)

    def table(self, generation: int) -> Path:
        """Path of the table of a generation."""
        return self.folder / f"table-{generation}.f32"

    def close(self) -> None:
        """Closes the database."""
        self._connection.close()


def _connect(path: Path) -> sqlite3.Connection:
    """A connection that never writes; `immutable` where the folder forbids even the files that a WAL reader shares."""
    for options in ("mode=ro", "mode=ro&immutable=1"):
        connection = sqlite3.connect(
            f"{path.resolve().as_uri()}?{options}", uri=True, check_same_thread=False, timeout=60
        )
        try:
            connection.execute("SELECT count(*) FROM about")
            return connection
        except sqlite3.OperationalError:
            connection.close()
        except sqlite3.DatabaseError:
            break
    return sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, check_same_thread=False)


def _row(values: tuple[Any, ...]) -> ImageRow:
    image, position, path, size, mtime, sha256, camera, time, more = values
    return ImageRow(path, size, mtime, sha256, camera, time, json.loads(more), image, position)
