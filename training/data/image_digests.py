"""Digest of the images of a data set, so that no later stage of a run reads other images than its training.

Training has them from its check of the images (images/readable.py). RUN/images.json keeps size, modification time and SHA-256 of
each, and the stages that follow do not read a file again whose size and time are unchanged.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from training.data.datasets import Record
from training.utils.io import file_digest, read_record, write_record

IMAGES = "images.json"
# Files between two reports of progress.
BLOCK = 256
Progress = Callable[[int, int], None]


@dataclass
class ImageDigests:
    """By file_path the size, the modification time (ns) and the SHA-256 of each image."""

    stamps: dict[str, list[int]] = field(default_factory=dict)
    sha256: dict[str, str] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """SHA-256 (hex) over the names and contents of all images, in the order of the names."""
        lines = (f"{name}\0{self.sha256[name]}\n" for name in sorted(self.sha256))
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def changes(self, later: ImageDigests) -> list[str]:
        """Names of the images that are in both with different contents, or in one only."""
        names = sorted(self.sha256.keys() | later.sha256.keys())
        return [name for name in names if self.sha256.get(name) != later.sha256.get(name)]


def read_digests(run_dir: Path) -> ImageDigests:
    """Contents of RUN/images.json; empty where it is missing or damaged, since it only saves reading the images."""
    try:
        return read_record(run_dir / IMAGES, ImageDigests)
    except (OSError, ValueError):
        return ImageDigests()


def write_digests(run_dir: Path, digests: ImageDigests) -> None:
    """Writes RUN/images.json where it would change."""
    if read_digests(run_dir) != digests:
        write_record(run_dir / IMAGES, digests)


def digest_images(
    splits: Iterable[Iterable[Record]], known: ImageDigests, progress: Progress = lambda done, total: None
) -> ImageDigests:
    """Digests of the images of all splits; those of `known` are taken for files of the same size and modification time.

    `progress` gets (files read, files to read). Raises OSError for an image that cannot be read.
    """
    paths = {record.file_path: record.path for records in splits for record in records}
    stamps = {name: _stamp(path) for name, path in paths.items()}
    current = {name for name, stamp in stamps.items() if known.stamps.get(name) == stamp and name in known.sha256}
    found = {name: known.sha256[name] for name in current}
    todo = [name for name in paths if name not in current]
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for start in range(0, len(todo), BLOCK):
            names = todo[start : start + BLOCK]
            found |= zip(names, pool.map(file_digest, [paths[name] for name in names]), strict=True)
            progress(start + len(names), len(todo))
    return ImageDigests(stamps, found)


def require_unchanged(root: Path, before: ImageDigests, now: ImageDigests, expected: str) -> None:
    """Raises ValueError naming images that differ from those with the digest `expected`; "" checks nothing.

    before: contents of images.json, which names them if it is of that digest.
    """
    if not expected or now.digest == expected:
        return
    names = before.changes(now) if before.digest == expected else []
    which = f"{len(names)} of them, such as {', '.join(names[:3])}" if names else "their digest differs"
    raise ValueError(
        f"the images of {root} have changed since the run was trained ({which}); restore them, or train again on the new ones"
    )


def _stamp(path: Path) -> list[int]:
    status = os.stat(path)
    return [status.st_size, status.st_mtime_ns]
