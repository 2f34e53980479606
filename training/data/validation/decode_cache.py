"""Hashes, formats and decode errors of image files, with a cache on disk.

The cache has one JSON line per file and is appended to during the work, so an interrupted run continues. A file is decoded
again when its absolute path, its size or its modification time differs.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from itertools import repeat
from pathlib import Path
from typing import IO, Any

from PIL import UnidentifiedImageError

from training.config import MAX_PIXELS
from training.data.images.reading import DAMAGED, NoPluginError, TooManyPixelsError, open_image
from training.utils.io import naming_full_disk

# Name of the cache in the folder of a data set.
CACHE = ".bdam-hashes.jsonl"
# Files whose results are written at once: at most these are lost by an interruption.
BATCH = 256
# Kinds of damage that are none of the file.
NO_PLUGIN, TOO_LARGE = "HEIC without a plugin", "too many pixels"
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class DecodeResult:
    """Result of decoding one file."""

    # SHA-256 (hex) of the content; "" for a file that cannot be read from the disk.
    sha256: str
    # Pillow's names; "" if the file is not an image.
    format: str = ""
    mode: str = ""
    # Kind of damage ("zero bytes", "truncated", "no image", "damaged", "not readable", NO_PLUGIN, TOO_LARGE) and details; "" if
    # there is none.
    damage: str = ""
    detail: str = ""


def decode_file(path: Path, max_pixels: int = MAX_PIXELS) -> DecodeResult:
    """Reads and decodes one file; errors are part of the result, never raised."""
    try:
        content = path.read_bytes()
    except OSError as error:
        return DecodeResult("", damage="not readable", detail=error.strerror or type(error).__name__)
    digest = hashlib.sha256(content).hexdigest()
    if not content:
        return DecodeResult(digest, damage="zero bytes")
    form, mode = "", ""
    try:
        with open_image(content, max_pixels) as image:
            form, mode = image.format or "", image.mode
            # A JPEG is decoded at an eighth of its size: that still reads every byte, but saves most of the arithmetic.
            image.draft(None, (max(1, image.width // 8), max(1, image.height // 8)))
            image.load()
    except UnidentifiedImageError:
        return DecodeResult(digest, damage="no image")
    except OSError as error:
        damage = "truncated" if "truncated" in str(error) else "damaged"
        return DecodeResult(digest, form, mode, damage, str(error))
    except NoPluginError as error:
        return DecodeResult(digest, "HEIC", "", NO_PLUGIN, str(error))
    except TooManyPixelsError as error:
        return DecodeResult(digest, form, mode, TOO_LARGE, str(error))
    except DAMAGED as error:
        return DecodeResult(digest, form, mode, "damaged", str(error))
    return DecodeResult(digest, form, mode)


class DecodeCache:
    """Results by path, size and modification time, in an append-only file; without a file, in memory."""

    def __init__(self, file: Path | None) -> None:
        self.file = file
        self.known: dict[str, tuple[list[int], DecodeResult]] = {}
        self.stream: IO[str] | None = None
        if file is not None:
            # Opened first: the OSError of a cache that cannot be written comes before the work.
            self.stream = open(file, "a+", encoding="utf-8")
            self.stream.seek(0)
            text = self.stream.read()
            for line in text.split("\n"):
                self._load_line(line)
            if text and not text.endswith("\n"):
                # A killed process left an incomplete line.
                self.stream.write("\n")

    def close(self) -> None:
        """Closes the file."""
        if self.stream is not None:
            self.stream.close()

    def get(self, path: str, stamp: list[int]) -> DecodeResult | None:
        """The result for a file of this size and modification time; None if unknown."""
        found = self.known.get(path)
        return found[1] if found is not None and found[0] == stamp else None

    def add(self, results: Sequence[tuple[str, list[int], DecodeResult]]) -> None:
        """Stores results, except of files that may be readable next time: from the disk, by a plugin, or with another limit."""
        lines = []
        for path, stamp, result in results:
            if result.sha256 and result.damage not in (NO_PLUGIN, TOO_LARGE):
                self.known[path] = stamp, result
                lines.append(json.dumps({"path": path, "stamp": stamp, **asdict(result)}) + "\n")
        if self.stream is not None and self.file is not None:
            with naming_full_disk(self.file):
                self.stream.write("".join(lines))
                self.stream.flush()

    def _load_line(self, line: str) -> None:
        """Loads one line; lines cut by a kill or written by another program are ignored."""
        try:
            item: Any = json.loads(line)
            path, stamp = item.pop("path"), item.pop("stamp")
            if set(item) == {field.name for field in fields(DecodeResult)}:
                self.known[path] = stamp, DecodeResult(**item)
        except (ValueError, KeyError, AttributeError, TypeError):
            pass


def default_workers() -> int:
    """Default number of threads: one per core available to this process."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def decode_files(
    images: Path,
    names: Sequence[str],
    cache: DecodeCache,
    workers: int,
    progress: Progress = lambda done, total: None,
    max_pixels: int = MAX_PIXELS,
) -> dict[str, DecodeResult]:
    """name -> result of the files `names` below the folder `images`, in threads; `progress` gets (files done, files)."""
    found: dict[str, DecodeResult] = {}
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
            results = list(pool.map(decode_file, [Path(path) for _, path, _ in batch], repeat(max_pixels)))
            cache.add([(path, stamp, result) for (_, path, stamp), result in zip(batch, results, strict=True)])
            found |= {name: result for (name, _, _), result in zip(batch, results, strict=True)}
            progress(len(found), total)
    return found
