"""Image files looked into: content hash, format, whether every byte of the picture can be decoded; kept in a cache.

The cache is one JSON line per file, appended as the work goes on, so an interrupted run continues where it was. A file is
looked into again when its absolute path, its size or its time of change differs.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import struct
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import IO, Any

from PIL import Image, UnidentifiedImageError

# Name of the cache in the folder of a data set.
CACHE = ".bdam-hashes.jsonl"
# Files whose results are written at once: what an interruption can lose.
BATCH = 256
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Picture:
    """What the bytes of one file say."""

    # SHA-256 (hex) of the content; "" for a file that cannot be read from the disk.
    sha256: str
    # Pillow's names, "" for what is no image.
    format: str = ""
    mode: str = ""
    # Kind of damage ("zero bytes", "truncated", "no image", "damaged", "not readable") and details; "" if there is none.
    damage: str = ""
    detail: str = ""


def look_into(path: Path) -> Picture:
    """Reads and decodes one file; never raises for what is in it."""
    try:
        content = path.read_bytes()
    except OSError as error:
        return Picture("", damage="not readable", detail=error.strerror or type(error).__name__)
    digest = hashlib.sha256(content).hexdigest()
    if not content:
        return Picture(digest, damage="zero bytes")
    form, mode = "", ""
    try:
        with Image.open(io.BytesIO(content)) as image:
            form, mode = image.format or "", image.mode
            # A JPEG is decoded at an eighth of its size: every byte is still needed, most of the arithmetic is not.
            image.draft(None, (image.width // 8, image.height // 8))
            image.load()
    except UnidentifiedImageError:
        return Picture(digest, damage="no image")
    except OSError as error:
        damage = "truncated" if "truncated" in str(error) else "damaged"
        return Picture(digest, form, mode, damage, str(error))
    # What Pillow's decoders raise on damaged bytes.
    except (SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError) as error:
        return Picture(digest, form, mode, "damaged", str(error))
    return Picture(digest, form, mode)


class PictureCache:
    """Results by path, size and time of change, in a file that is only ever appended to; without a file in memory."""

    def __init__(self, file: Path | None) -> None:
        self.known: dict[str, tuple[list[int], Picture]] = {}
        self.stream: IO[str] | None = None
        if file is not None:
            # Opened first: a cache that cannot be written is of no use, and its OSError comes before the work.
            self.stream = open(file, "a+", encoding="utf-8")
            self.stream.seek(0)
            text = self.stream.read()
            for line in text.split("\n"):
                self._remember(line)
            if text and not text.endswith("\n"):
                # A killed process left half a line.
                self.stream.write("\n")

    def close(self) -> None:
        """Closes the file."""
        if self.stream is not None:
            self.stream.close()

    def get(self, path: str, stamp: list[int]) -> Picture | None:
        """What is known of a file of this size and time of change."""
        found = self.known.get(path)
        return found[1] if found is not None and found[0] == stamp else None

    def add(self, results: Sequence[tuple[str, list[int], Picture]]) -> None:
        """Keeps results; a file that could not be read from the disk may be readable next time."""
        lines = []
        for path, stamp, picture in results:
            if picture.sha256:
                self.known[path] = stamp, picture
                lines.append(json.dumps({"path": path, "stamp": stamp, **asdict(picture)}) + "\n")
        if self.stream is not None:
            self.stream.write("".join(lines))
            self.stream.flush()

    def _remember(self, line: str) -> None:
        """Lines that a kill has cut or another program has written are as if they were not there."""
        try:
            item: Any = json.loads(line)
            path, stamp = item.pop("path"), item.pop("stamp")
            if set(item) == {field.name for field in fields(Picture)}:
                self.known[path] = stamp, Picture(**item)
        except (ValueError, KeyError, AttributeError, TypeError):
            pass


def default_workers() -> int:
    """Threads that are worth starting: one per core that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def look_into_all(
    images: Path, names: Sequence[str], cache: PictureCache, workers: int, progress: Progress = lambda done, total: None
) -> dict[str, Picture]:
    """name -> Picture of the files `names` below the folder `images`, in threads; `progress` gets (files done, files)."""
    found: dict[str, Picture] = {}
    todo: list[tuple[str, str, list[int]]] = []
    folder = str(images.resolve())
    for name in dict.fromkeys(names):
        path = f"{folder}/{name}"
        stat = os.stat(path)
        stamp = [stat.st_size, stat.st_mtime_ns]
        known = cache.get(path, stamp)
        if known is None:
            todo.append((name, path, stamp))
        else:
            found[name] = known
    total = len(found) + len(todo)
    progress(len(found), total)
    with ThreadPoolExecutor(workers) as pool:
        for start in range(0, len(todo), BATCH):
            batch = todo[start : start + BATCH]
            pictures = list(pool.map(look_into, [Path(path) for _, path, _ in batch]))
            cache.add([(path, stamp, picture) for (_, path, stamp), picture in zip(batch, pictures, strict=True)])
            found |= {name: picture for (name, _, _), picture in zip(batch, pictures, strict=True)}
            progress(len(found), total)
    return found
