"""The packed cache: every image decoded and resized once, one memory-mapped file per size, shared by all processes.

Files in the cache folder for each image size HxW:

    HxW.u8     uint8 (N, 3, H, W): the results of `transforms.decode`
    HxW.json   the index: the format of the rows (`made_by`), for each row the SHA-256 of the file's content and the CRC-32
               of the row, for each absolute path the size, modification time and row of the file
    HxW.lock   held by the writing process

A file is decoded when it is new or its size or modification time changed, and its content is not in the index; all files
are when `made_by` names another version of Pillow or of this module, or the index is damaged. Rows whose content no longer
occurs stay: another process may be reading them.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from torch import Tensor

from training.utils.io import atomic

MADE_BY = f"RGB, bilinear with antialiasing, Pillow {PIL.__version__}, layout 3"
# Checksum of a row that is known to be damaged.
DAMAGED = -1


@dataclass
class CacheIndex:
    """(SHA-256 of the file, CRC-32 of the row) by row, and (size, modification time in ns, row) by absolute path."""

    rows: list[tuple[str, int]] = field(default_factory=list)
    files: dict[str, tuple[int, int, int]] = field(default_factory=dict)

    def is_current(self, path: str) -> bool:
        """True if the file has a row and its size and modification time are unchanged; False for a missing file."""
        known = self.files.get(path)
        return known is not None and self.holds(path) and file_stamp(path) == known[:2]

    def holds(self, path: str) -> bool:
        """True if the file has an undamaged row, current or not."""
        return path in self.files and self.rows[self.files[path][2]][1] != DAMAGED

    def rows_by_content(self) -> dict[str, int]:
        """Row of each content by its SHA-256."""
        return {content: row for row, (content, checksum) in enumerate(self.rows) if checksum != DAMAGED}


@dataclass(frozen=True)
class CacheFiles:
    """The three files of one image size."""

    folder: Path
    image_size: tuple[int, int]

    def path(self, suffix: str) -> Path:
        """Path of one of the files."""
        return self.folder / f"{self.image_size[0]}x{self.image_size[1]}.{suffix}"

    @property
    def row_bytes(self) -> int:
        """Bytes of one image."""
        return 3 * self.image_size[0] * self.image_size[1]

    def read_index(self) -> CacheIndex | None:
        """None for a missing or damaged index or one of another format; rows beyond the end of the file count as damaged."""
        try:
            stored = json.loads(self.path("json").read_bytes())
            if stored["made_by"] != MADE_BY:
                return None
            rows = [(str(content), int(checksum)) for content, checksum in stored["rows"]]
            files = {str(path): (int(a), int(b), int(row)) for path, (a, b, row) in stored["files"].items()}
            count = self.path("u8").stat().st_size // self.row_bytes
        except (FileNotFoundError, NotADirectoryError, ValueError, TypeError, KeyError, AttributeError):
            return None
        if not all(0 <= row < len(rows) for *_, row in files.values()):
            return None
        return CacheIndex([row if i < count else (row[0], DAMAGED) for i, row in enumerate(rows)], files)

    def write_index(self, index: CacheIndex) -> None:
        """Writes the index atomically."""
        content = {"made_by": MADE_BY, "rows": index.rows, "files": index.files}
        with atomic(self.path("json")) as file:
            file.write(json.dumps(content).encode())


class PackedImages:
    """Images from the packed cache in `folder`, written by `pack_images`; each row is checked when first read.

    Raises ValueError when the cache lacks any of `paths`.
    """

    def __init__(self, paths: Sequence[Path], folder: Path | str, image_size: tuple[int, int]) -> None:
        self.cache_files, self.image_size = CacheFiles(Path(folder), image_size), image_size
        self.paths = [os.path.abspath(path) for path in paths]
        index = self.cache_files.read_index() or CacheIndex()
        lacking = [path for path in self.paths if not index.holds(path)]
        if lacking:
            raise ValueError(
                f"the cache {self.cache_files.path('u8')} lacks {len(lacking)} of {len(paths)} images, such as {lacking[0]}; "
                "`python -m training.prepare pack` adds them"
            )
        self.rows = [index.files[path][2] for path in self.paths]
        self.checksums = [index.rows[row][1] for row in self.rows]
        self.checked = [False] * len(self.paths)
        if self.paths:
            # Mapped now: if another process replaces the file, this one continues to read the old one.
            self.pixels  # noqa: B018

    @cached_property
    def pixels(self) -> np.ndarray:
        """uint8 (N, 3, H, W), read-only; pages are loaded on access and shared by all processes."""
        path = self.cache_files.path("u8")
        rows = path.stat().st_size // self.cache_files.row_bytes
        return np.memmap(path, np.uint8, "r", shape=(rows, 3, *self.image_size))

    def __getstate__(self) -> dict[str, Any]:
        # A memory map would be pickled with its contents.
        return {name: value for name, value in vars(self).items() if name != "pixels"}

    def fill(self, indices: Sequence[int], out_BCHW: Tensor) -> None:
        """Copies rows to the first rows of uint8 (B, 3, H, W). Raises ValueError naming every image whose row is damaged."""
        out, damaged = out_BCHW.numpy(), []
        for row, i in enumerate(indices):
            out[row] = self.pixels[self.rows[i]]
            if not self.checked[i]:
                self.checked[i] = zlib.crc32(out[row]) == self.checksums[i]
                if not self.checked[i]:
                    damaged.append(self.paths[i])
        if damaged:
            raise ValueError(
                f"the cache {self.cache_files.path('u8')} is damaged at the rows of {', '.join(damaged)}; "
                "`python -m training.prepare pack` with --check repairs them"
            )


def file_stamp(path: str) -> tuple[int, int] | None:
    """Size and modification time (ns) of a file; None for a missing file."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns
