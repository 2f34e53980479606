"""Damage to files: a flipped bit, and a limit on the size of files in place of a full disk."""

from __future__ import annotations

import random
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def flipped_bit(path: Path, moment: random.Random) -> Iterator[int]:
    """Flips a random bit of a file for a block; yields its place (byte)."""
    before = path.read_bytes()
    place, bit = moment.randrange(len(before)), moment.randrange(8)
    path.write_bytes(before[:place] + bytes([before[place] ^ 1 << bit]) + before[place + 1 :])
    try:
        yield place
    finally:
        path.write_bytes(before)


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """No file of this process can grow beyond `size` bytes: a write fails (EFBIG), as on a full disk (ENOSPC)."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
