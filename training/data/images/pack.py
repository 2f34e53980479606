"""Updates the packed cache: worker processes decode changed files, one process writes under a lock."""

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

from torch import Tensor

from training.config import MAX_PIXELS
from training.data.images import transforms
from training.data.images.cache import DAMAGED, CacheFiles, CacheIndex, file_stamp
from training.data.images.prefetch import prefetched
from training.utils.io import atomic, naming_full_disk
from training.utils.terminal import make_console, make_progress

# Files per task of a worker, and seconds between two writes of the index: at most this much is lost by a kill.
CHUNK, SAVE_SECONDS = 32, 10.0


class PackCounts(NamedTuple):
    """Numbers of files by outcome: row current, content known under another name or time, decoded."""

    current: int
    renamed: int
    decoded: int


class _ReadResult(NamedTuple):
    """Result for one file: its row if the content is known, else the checksum of the buffer's next row; or a problem."""

    path: str
    stamp: tuple[int, int]
    content: str = ""
    row: int | None = None
    checksum: int = 0
    problem: str = ""


def pack_images(
    paths: Sequence[Path],
    folder: Path | str,
    image_size: tuple[int, int],
    workers: int = 0,
    *,
    check: bool = False,
    max_pixels: int = MAX_PIXELS,
) -> PackCounts:
    """Updates the cache of `image_size` (H, W) in `folder` for the image files `paths`; other rows stay.

    Only changed files are decoded, by `workers` processes (0: this one), with progress on a terminal; an interrupted call
    keeps its results. check: read every file and every row again instead of trusting size and modification time.

    Raises ValueError for unreadable images, after all others are done, with five of them and the name of a file that lists
    all; OSError when the folder cannot be written or has too little space, before anything is decoded.
    """
    files, names = CacheFiles(Path(folder), image_size), list(dict.fromkeys(map(os.path.abspath, paths)))
    index = files.read_index()
    if index is not None and not check and all(map(index.is_current, names)):
        return PackCounts(len(names), 0, 0)
    try:
        files.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"data.cache={folder}: cannot create this folder: {error.strerror}") from error
    with _write_lock(files.path("lock")):
        for path in files.folder.glob(f".{files.path('').name}*.tmp"):
            # Left by a killed process: no other process writes while the lock is held.
            path.unlink()
        # Another process may have updated it meanwhile.
        index = files.read_index()
        if index is None:
            # A process that has mapped the old file keeps it.
            files.path("u8").unlink(missing_ok=True)
            index = CacheIndex()
        files.path("u8").touch()
        if check:
            _mark_damaged(files, index)
        stale = names if check else [name for name in names if not index.is_current(name)]
        _require_space(files, index, len(names))
        counts, problems = _CacheUpdate(files, index, max_pixels).run(stale, workers)
    _raise_unreadable(files, problems, len(names))
    return counts._replace(current=counts.current + len(names) - len(stale))


@contextmanager
def _progress_bar(text: str, total: int) -> Iterator[Callable[[int], None]]:
    """A progress bar on a terminal; yields the function that advances it."""
    with make_progress(make_console(stderr=True)) as bar:
        task = bar.add_task(text, total=total)
        yield lambda number: bar.advance(task, number)


@contextmanager
def _write_lock(path: Path) -> Iterator[None]:
    """Waits for the lock of the cache; the lock of a killed process is free."""
    with open(path, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            make_console(stderr=True).print(f"waiting for the process that is packing images (it holds {path})")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _mark_damaged(files: CacheFiles, index: CacheIndex) -> None:
    """Marks the rows whose checksum does not match."""
    with open(files.path("u8"), "rb") as file, _progress_bar("checking rows", len(index.rows)) as advance:
        for row, (content, checksum) in enumerate(index.rows):
            if zlib.crc32(file.read(files.row_bytes)) != checksum:
                index.rows[row] = (content, DAMAGED)
            advance(1)


def _require_space(files: CacheFiles, index: CacheIndex, images: int) -> None:
    """Raises OSError when the disk has no space for the rows that may be missing."""
    needed = max(0, images - len(index.rows_by_content())) * files.row_bytes
    free = shutil.disk_usage(files.folder).free
    if needed > free:
        raise OSError(
            f"data.cache={files.folder}: {needed / 1e9:.2f} GB are needed for images of {files.image_size[0]}x"
            f"{files.image_size[1]}, {free / 1e9:.2f} GB are free"
        )


def _raise_unreadable(files: CacheFiles, problems: list[str], images: int) -> None:
    """Writes all problems to a file and raises ValueError; without problems removes the file."""
    path = files.path("unreadable.txt")
    if not problems:
        path.unlink(missing_ok=True)
        return
    with atomic(path) as file:
        file.write("".join(problem + "\n" for problem in problems).encode())
    shown = "; ".join(problems[:5]) + ("; ..." if len(problems) > 5 else "")
    raise ValueError(f"{len(problems)} of {images} images cannot be read: {shown}; all of them are listed in {path}")


class _PackWorker:
    """Reads files in a worker process, and decodes those of unknown content to the first rows of the buffer."""

    def __init__(self, known: dict[str, int], image_size: tuple[int, int], max_pixels: int) -> None:
        self.row_of, self.image_size, self.max_pixels = known, image_size, max_pixels

    def __call__(self, paths: Sequence[str], out_BCHW: Tensor) -> list[_ReadResult]:
        results: list[_ReadResult] = []
        rows_used = 0
        for path in paths:
            # Before reading: a file that changes while it is read is read again next time.
            stamp = file_stamp(path)
            try:
                if stamp is None:
                    raise FileNotFoundError(f"there is no image {path}")
                raw = Path(path).read_bytes()
                content = hashlib.sha256(raw).hexdigest()
                if content in self.row_of:
                    results.append(_ReadResult(path, stamp, content, self.row_of[content]))
                    continue
                out_BCHW[rows_used] = transforms.decode(path, self.image_size, raw, self.max_pixels)
            except (OSError, ValueError) as error:
                results.append(_ReadResult(path, stamp or (0, 0), problem=" ".join(str(error).split())))
                continue
            results.append(_ReadResult(path, stamp, content, checksum=zlib.crc32(out_BCHW[rows_used].numpy().data)))
            rows_used += 1
        return results


class _CacheUpdate:
    """One update of a cache, under its lock."""

    def __init__(self, files: CacheFiles, index: CacheIndex, max_pixels: int) -> None:
        self.files, self.index, self.row_of = files, index, index.rows_by_content()
        self.max_pixels = max_pixels
        # A damaged row is rewritten in place, with its own content only: other processes may have it mapped.
        self.damaged = {content: row for row, (content, checksum) in enumerate(index.rows) if checksum == DAMAGED}
        self.counts, self.problems = PackCounts(0, 0, 0), list[str]()

    def run(self, stale: list[str], workers: int) -> tuple[PackCounts, list[str]]:
        """(counts of `stale`, problems of the unreadable files)."""
        chunks = [stale[i : i + CHUNK] for i in range(0, len(stale), CHUNK)]
        reader = _PackWorker(dict(self.row_of), self.files.image_size, self.max_pixels)
        buffers = prefetched(reader, chunks, (CHUNK, 3, *self.files.image_size), min(workers, len(chunks)))
        saved = time.monotonic()
        path = self.files.path("u8")
        with naming_full_disk(path), open(path, "r+b") as file, _progress_bar("packing images", len(stale)) as advance:
            try:
                for results, buffer in buffers:
                    self._write_rows(results, buffer, file)
                    advance(len(results))
                    if time.monotonic() - saved > SAVE_SECONDS:
                        self._save_index(file)
                        saved = time.monotonic()
            finally:
                self._save_index(file)
        return self.counts, self.problems

    def _write_rows(self, results: list[_ReadResult], buffer: Tensor, file: IO[bytes]) -> None:
        """Writes the rows of a chunk and adds its files to the index."""
        current, renamed, decoded = self.counts
        next_row = 0
        for read in results:
            if read.problem:
                self.problems.append(read.problem)
                continue
            row = self.row_of.get(read.content)
            if read.row is None:
                next_row += 1
            if row is None:
                row = self.damaged.pop(read.content, len(self.index.rows))
                file.seek(row * self.files.row_bytes)
                file.write(buffer[next_row - 1].numpy().data)
                self.index.rows[row : row + 1] = [(read.content, read.checksum)]
                self.row_of[read.content] = row
                decoded += 1
            elif self.index.files.get(read.path) == (*read.stamp, row):
                current += 1
            else:
                renamed += 1
            self.index.files[read.path] = (*read.stamp, row)
        self.counts = PackCounts(current, renamed, decoded)

    def _save_index(self, file: IO[bytes]) -> None:
        """Writes the rows to disk before the index, which thus never names a missing row."""
        file.flush()
        os.fsync(file.fileno())
        self.files.write_index(self.index)
