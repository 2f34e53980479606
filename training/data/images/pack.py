"""Brings the packed cache up to date: what changed is decoded by worker processes and written under a lock."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from training.data.images import transforms
from training.data.images.cache import DAMAGED, Index, Store, stamp_of
from training.data.images.prefetch import filled
from training.utils.io import atomic

# Files that a worker takes at a time, and seconds between two writes of the index: what a kill can lose.
CHUNK, SAVE_SECONDS = 32, 10.0


class Counts(NamedTuple):
    """What `pack` found: files whose row was there, whose content was known under another name or time, and decoded."""

    current: int
    renamed: int
    decoded: int


class _Read(NamedTuple):
    """One file as a worker found it: its row number if the content is known, else the checksum of the buffer's next row."""

    path: str
    stamp: tuple[int, int]
    content: str = ""
    row: int | None = None
    checksum: int = 0
    problem: str = ""


def pack(
    paths: Sequence[Path], folder: Path | str, image_size: tuple[int, int], workers: int = 0, *, check: bool = False
) -> Counts:
    """Brings the cache of `image_size` in `folder` up to date for the image files `paths`; others in it stay.

    Only what changed is decoded, by `workers` processes (0: this one), with progress on a terminal; an interrupted call
    keeps what it has done. check: read every file and every row again instead of believing size and time of change.

    Raises ValueError when images cannot be read, after all others are done, with five of them and the name of a file
    that lists them all; OSError when the folder cannot be written or has too little space, before anything is decoded.
    """
    store, names = Store(Path(folder), image_size), list(dict.fromkeys(map(os.path.abspath, paths)))
    index = store.read_index()
    if index is not None and not check and all(map(index.is_current, names)):
        return Counts(len(names), 0, 0)
    try:
        store.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"data.cache={folder}: cannot make this folder: {error.strerror}") from error
    with _locked(store.file("lock")):
        for path in store.folder.glob(f".{store.file('').name}*.tmp"):
            # Of a process that was killed: nobody else writes while the lock is held.
            path.unlink()
        # Another process may have done it meanwhile.
        index = store.read_index()
        if index is None:
            # Whoever has the old file mapped keeps it.
            store.file("u8").unlink(missing_ok=True)
            index = Index()
        store.file("u8").touch()
        if check:
            _mark_damaged(store, index)
        stale = names if check else [name for name in names if not index.is_current(name)]
        _require_space(store, index, len(names))
        counts, problems = _Packing(store, index).run(stale, workers)
    _report(store, problems, len(names))
    return counts._replace(current=counts.current + len(names) - len(stale))


@contextmanager
def _progress(text: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal, and what moves it on."""
    console = Console(stderr=True)
    columns = (TextColumn(text), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(text, total=total)
        yield lambda number: bar.advance(task, number)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Waits for its turn to write; the lock of a process that was killed is free."""
    with open(path, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            Console(stderr=True).print(
                f"waiting for the process that is packing images (it holds {path})", soft_wrap=True
            )
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _mark_damaged(store: Store, index: Index) -> None:
    """Marks the rows whose bytes are not those that were written."""
    with open(store.file("u8"), "rb") as file, _progress("checking rows", len(index.rows)) as advance:
        for row, (content, checksum) in enumerate(index.rows):
            if zlib.crc32(file.read(store.row_bytes)) != checksum:
                index.rows[row] = (content, DAMAGED)
            advance(1)


def _require_space(store: Store, index: Index, images: int) -> None:
    """Raises OSError when the disk cannot hold a row for each image, counting all rows that are there."""
    needed = max(0, images - len(index.known())) * store.row_bytes
    free = shutil.disk_usage(store.folder).free
    if needed > free:
        raise OSError(
            f"data.cache={store.folder}: {needed / 1e9:.2f} GB are needed for images of {store.image_size[0]}x"
            f"{store.image_size[1]}, {free / 1e9:.2f} GB are free"
        )


def _report(store: Store, problems: list[str], images: int) -> None:
    """Raises ValueError if there are problems, and writes all of them to a file; removes it if there are none."""
    path = store.file("unreadable.txt")
    if not problems:
        path.unlink(missing_ok=True)
        return
    with atomic(path) as file:
        file.write("".join(problem + "\n" for problem in problems).encode())
    shown = "; ".join(problems[:5]) + ("; ..." if len(problems) > 5 else "")
    raise ValueError(f"{len(problems)} of {images} images cannot be read: {shown}; all of them are listed in {path}")


class _Reader:
    """What a worker does: reads files, and decodes those whose content is not known to the buffer's first rows."""

    def __init__(self, known: dict[str, int], image_size: tuple[int, int]) -> None:
        self.known, self.image_size = known, image_size

    def __call__(self, paths: Sequence[str], out_BCHW: Tensor) -> list[_Read]:
        found: list[_Read] = []
        filled_rows = 0
        for path in paths:
            # Before reading: a file that changes meanwhile is read again next time.
            stamp = stamp_of(path)
            try:
                if stamp is None:
                    raise FileNotFoundError(f"there is no image {path}")
                raw = Path(path).read_bytes()
                content = hashlib.sha256(raw).hexdigest()
                if content in self.known:
                    found.append(_Read(path, stamp, content, self.known[content]))
                    continue
                out_BCHW[filled_rows] = transforms.decode(path, self.image_size, raw)
            except (OSError, ValueError) as error:
                found.append(_Read(path, stamp or (0, 0), problem=" ".join(str(error).split())))
                continue
            found.append(_Read(path, stamp, content, checksum=zlib.crc32(out_BCHW[filled_rows].numpy().data)))
            filled_rows += 1
        return found


class _Packing:
    """One update of a cache, under its lock."""

    def __init__(self, store: Store, index: Index) -> None:
        self.store, self.index, self.known = store, index, index.known()
        # A damaged row is written again where it is, and by its own content only: other processes may have it mapped.
        self.damaged = {content: row for row, (content, checksum) in enumerate(index.rows) if checksum == DAMAGED}
        self.counts, self.problems = Counts(0, 0, 0), list[str]()

    def run(self, stale: list[str], workers: int) -> tuple[Counts, list[str]]:
        """Counts of `stale`, and what is wrong with those that could not be read."""
        chunks = [stale[i : i + CHUNK] for i in range(0, len(stale), CHUNK)]
        reader = _Reader(dict(self.known), self.store.image_size)
        buffers = filled(reader, chunks, (CHUNK, 3, *self.store.image_size), min(workers, len(chunks)))
        saved = time.monotonic()
        with open(self.store.file("u8"), "r+b") as file, _progress("packing images", len(stale)) as advance:
            try:
                for found, buffer in buffers:
                    self._take(found, buffer, file)
                    advance(len(found))
                    if time.monotonic() - saved > SAVE_SECONDS:
                        self._save(file)
                        saved = time.monotonic()
            finally:
                self._save(file)
        return self.counts, self.problems

    def _take(self, found: list[_Read], buffer: Tensor, file: IO[bytes]) -> None:
        """Writes the rows of a chunk and enters its files into the index."""
        current, renamed, decoded = self.counts
        next_row = 0
        for read in found:
            if read.problem:
                self.problems.append(read.problem)
                continue
            row = self.known.get(read.content)
            if read.row is None:
                next_row += 1
            if row is None:
                row = self.damaged.pop(read.content, len(self.index.rows))
                file.seek(row * self.store.row_bytes)
                file.write(buffer[next_row - 1].numpy().data)
                self.index.rows[row : row + 1] = [(read.content, read.checksum)]
                self.known[read.content] = row
                decoded += 1
            elif self.index.files.get(read.path) == (*read.stamp, row):
                current += 1
            else:
                renamed += 1
            self.index.files[read.path] = (*read.stamp, row)
        self.counts = Counts(current, renamed, decoded)

    def _save(self, file: IO[bytes]) -> None:
        """The rows first, so that the index never names one that is not on the disk."""
        file.flush()
        os.fsync(file.fileno())
        self.store.write_index(self.index)
