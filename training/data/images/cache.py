"""The packed cache: every image decoded and resized once, one memory-mapped file a size, shared by all processes.

A folder holds for each image size HxW

    HxW.u8     uint8 (N, 3, H, W): row by row what `transforms.decode` makes of a file
    HxW.json   the index: what a row is (`made_by`), for each row the SHA-256 of the file's content and the CRC-32 of the
               row, for each absolute path the size, time of change and row of the file
    HxW.lock   held by the process that writes

A row is redone when its file is new or has another size or time of change, and its content is not in the index; all rows
when `made_by` is of another version of Pillow or of this module, or the index is damaged. Rows of contents that no longer
occur stay: another process may be reading them.
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

MADE_BY = f"RGB, bilinear with antialiasing, Pillow {PIL.__version__}, layout 1"
# In place of the checksum of a row that has been found damaged.
DAMAGED = -1


@dataclass
class Index:
    """Row by row (SHA-256 of the file, CRC-32 of the row), and by absolute path (size, time of change in ns, row)."""

    rows: list[tuple[str, int]] = field(default_factory=list)
    files: dict[str, tuple[int, int, int]] = field(default_factory=dict)

    def is_current(self, path: str) -> bool:
        """Whether the row of a file is there, by its size and time of change; False for a file that is not there."""
        known = self.files.get(path)
        return known is not None and self.holds(path) and stamp_of(path) == known[:2]

    def holds(self, path: str) -> bool:
        """Whether there is a row of a file, be it current or not."""
        return path in self.files and self.rows[self.files[path][2]][1] != DAMAGED

    def known(self) -> dict[str, int]:
        """Row of each content."""
        return {content: row for row, (content, checksum) in enumerate(self.rows) if checksum != DAMAGED}


@dataclass(frozen=True)
class Store:
    """The three files of one image size."""

    folder: Path
    image_size: tuple[int, int]

    def file(self, suffix: str) -> Path:
        """One of the files."""
        return self.folder / f"{self.image_size[0]}x{self.image_size[1]}.{suffix}"

    @property
    def row_bytes(self) -> int:
        """Bytes of an image."""
        return 3 * self.image_size[0] * self.image_size[1]

    def read_index(self) -> Index | None:
        """None where there is none, or one that is damaged or was made otherwise; rows that the file lacks are damaged."""
        try:
            stored = json.loads(self.file("json").read_bytes())
            if stored["made_by"] != MADE_BY:
                return None
            rows = [(str(content), int(checksum)) for content, checksum in stored["rows"]]
            files = {str(path): (int(a), int(b), int(row)) for path, (a, b, row) in stored["files"].items()}
            there = self.file("u8").stat().st_size // self.row_bytes
        except (FileNotFoundError, NotADirectoryError, ValueError, TypeError, KeyError, AttributeError):
            return None
        if not all(0 <= row < len(rows) for *_, row in files.values()):
            return None
        return Index([row if i < there else (row[0], DAMAGED) for i, row in enumerate(rows)], files)

    def write_index(self, index: Index) -> None:
        """Atomically."""
        content = {"made_by": MADE_BY, "rows": index.rows, "files": index.files}
        with atomic(self.file("json")) as file:
            file.write(json.dumps(content).encode())


class Packed:
    """Images from the packed cache of `folder`, where `pack` has put them; each row is checked when first read.

    Raises ValueError when the cache lacks one of `paths`.
    """

    def __init__(self, paths: Sequence[Path], folder: Path | str, image_size: tuple[int, int]) -> None:
        self.store, self.image_size = Store(Path(folder), image_size), image_size
        self.paths = [os.path.abspath(path) for path in paths]
        index = self.store.read_index() or Index()
        lacking = [path for path in self.paths if not index.holds(path)]
        if lacking:
            raise ValueError(
                f"the cache {self.store.file('u8')} lacks {len(lacking)} of {len(paths)} images, such as {lacking[0]}; "
                "`python -m training.prepare pack` adds them"
            )
        self.rows = [index.files[path][2] for path in self.paths]
        self.checksums = [index.rows[row][1] for row in self.rows]
        self.checked = [False] * len(self.paths)
        if self.paths:
            # Mapped now: should another process begin the file anew, this one goes on reading the old one.
            self.pixels  # noqa: B018

    @cached_property
    def pixels(self) -> np.ndarray:
        """(N, 3, H, W), read-only; pages come from the disk when touched and are shared by all processes."""
        path = self.store.file("u8")
        rows = path.stat().st_size // self.store.row_bytes
        return np.memmap(path, np.uint8, "r", shape=(rows, 3, *self.image_size))

    def __getstate__(self) -> dict[str, Any]:
        # A map would be pickled as its contents.
        return {name: value for name, value in vars(self).items() if name != "pixels"}

    def fill(self, indices: Sequence[int], out_BCHW: Tensor) -> None:
        """Raises ValueError naming every image of `indices` whose row has changed since it was written."""
        out, damaged = out_BCHW.numpy(), []
        for row, i in enumerate(indices):
            out[row] = self.pixels[self.rows[i]]
            if not self.checked[i]:
                self.checked[i] = zlib.crc32(out[row]) == self.checksums[i]
                if not self.checked[i]:
                    damaged.append(self.paths[i])
        if damaged:
            raise ValueError(
                f"the cache {self.store.file('u8')} is damaged at the rows of {', '.join(damaged)}; "
                "`python -m training.prepare pack` with --check redoes them"
            )


def stamp_of(path: str) -> tuple[int, int] | None:
    """Size and time of change of a file."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns
