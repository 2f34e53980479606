"""Images that come over the network: bounds on bytes, pixels, files and decompression; one zip at a time."""

from __future__ import annotations

import io
import lzma
import re
import sys
import threading
import traceback
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path, PurePosixPath

from PIL import Image

from training.retrieval.finder import Finder
from training.retrieval.image_names import full_path
from training.retrieval.ingest import IMAGE_SUFFIXES, add_images
from training.retrieval.store import Gallery
from training.utils.io import write_bytes
from training.utils.locks import LOCK, folder_lock

MOST_BYTES, MOST_IMAGE_BYTES, MOST_PIXELS = 2**30, 2**25, 50_000_000
MOST_FILES, MOST_UNPACKED_BYTES = 20_000, 2**32
# Names of files have 255 bytes, of which those of `write_bytes` take 14 before they are complete.
MOST_NAME_BYTES = 241
# Images to search for that are received at a time, each of at most MOST_IMAGE_BYTES in memory.
MOST_RECEIVED = 8
# Within which one of them must have arrived.
IMAGE_SECONDS = 30.0
# Longest silence of a client that sends a zip.
ZIP_SILENCE = 30.0
# Folder of the gallery with one of each zip's images; there the zip is while it is received and added.
FOLDER, ARCHIVE = "uploads", ".zip"
# A damaged, cut or encrypted entry of a zip raises one of these, by its method; and an image that is not fit, ValueError.
DAMAGED = (ValueError, RuntimeError, OSError, EOFError, zipfile.BadZipFile, zlib.error, lzma.LZMAError)


def require_size(content: bytes) -> None:
    """Raises ValueError for an image of too many bytes or pixels, before it is decoded, and for a file that is no image."""
    if len(content) > MOST_IMAGE_BYTES:
        raise ValueError(f"an image may have {MOST_IMAGE_BYTES >> 20} MiB, got {len(content) >> 20}")
    try:
        with Image.open(io.BytesIO(content)) as image:
            width, height = image.size
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise ValueError("this file is not an image that can be read") from error
    if width * height > MOST_PIXELS:
        raise ValueError(f"an image may have {MOST_PIXELS // 10**6} million pixels, got {width} x {height}")


@dataclass
class Job:
    """Progress of adding one zip."""

    name: str
    stage: str = "receiving"
    done: int = 0
    total: int = 0
    # Names and reasons of files that were left out.
    left_out: list[tuple[str, str]] = field(default_factory=list)
    added: int = 0
    finished: bool = False
    error: str = ""


class Uploads:
    """Images that are received for a finder, and the one job that adds a zip to its gallery."""

    def __init__(self, finder: Finder) -> None:
        self.finder = finder
        self.job: Job | None = None
        self._lock = threading.Lock()
        self._received = 0

    @contextmanager
    def receive_image(self) -> Iterator[None]:
        """Counts an image to search for while it is received. Raises BlockingIOError when there are MOST_RECEIVED already."""
        if self._received >= MOST_RECEIVED:
            raise BlockingIOError(f"{MOST_RECEIVED} images are being received already; try again")
        self._received += 1
        try:
            yield
        finally:
            self._received -= 1

    @contextmanager
    def receive_zip(self, name: str) -> Iterator[Path]:
        """Path for the bytes of a zip, whose images are added in the background once the block has ended without an error. Raises
        BlockingIOError while another zip is received or added."""
        with self._lock:
            if self.job is not None and not self.job.finished:
                what = "received" if self.job.stage == "receiving" else "added"
                raise BlockingIOError(f"another zip is being {what}; try again when that has ended")
            before, self.job = self.job, Job(name[:100])
        folder = self.finder.gallery.folder / FOLDER / datetime.now().strftime("%Y%m%d-%H%M%S-%f")
        held = ExitStack()
        try:
            # Other servers of the gallery delete what nobody holds (`remove_abandoned`).
            held.enter_context(folder_lock(folder))
            yield folder / ARCHIVE
            threading.Thread(target=self._run, args=(folder, self.job, held), daemon=True).start()
        except BaseException:
            (folder / ARCHIVE).unlink(missing_ok=True)
            held.close()
            _remove_empty(folder)
            self.job = before
            raise

    def _run(self, folder: Path, job: Job, held: ExitStack) -> None:
        try:
            with held:
                try:
                    self._add(folder / ARCHIVE, folder, job)
                finally:
                    job.added = _remove_strays(self.finder.gallery, folder)
        except Exception as error:
            # Whatever ends the thread, the page says so; a defect leaves its traceback in the log of the server too.
            job.error = reason_of(error)
            if not isinstance(error, (ValueError, OSError, RuntimeError)):
                traceback.print_exc(file=sys.stderr)
        finally:
            _remove_empty(folder)
            job.finished = True

    def _add(self, archive: Path, folder: Path, job: Job) -> None:
        job.stage = "unpacking"
        paths = unpack(archive, folder, job)
        job.stage, job.done, job.total = "embedding", 0, len(paths)

        def progress(done: int) -> None:
            job.done = done

        try:
            report = add_images(
                self.finder.gallery, paths, self.finder.embedder, root=folder, batch_size=32, progress=progress
            )
        finally:
            # After an error too: batches that were added before it are in the gallery.
            self.finder.refresh()
        job.left_out += [(str(Path(path).relative_to(folder)), reason) for path, reason in report.unreadable]


def remove_abandoned(gallery: Gallery) -> None:
    """Deletes what a killed server was receiving and adding: files of which the gallery has no image."""
    # A lock file is left by a killed server only, and held by one that lives.
    for lock in (gallery.folder / FOLDER).glob(f"*/{LOCK}"):
        with suppress(RuntimeError), folder_lock(lock.parent):
            _remove_strays(gallery, lock.parent)
        _remove_empty(lock.parent)


def _remove_strays(gallery: Gallery, folder: Path) -> int:
    """Deletes the files below a folder that are not in the gallery and returns the number of those that are."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != LOCK]
    # An earlier version knew a file as the gallery's folder was spelt.
    names = ((path, {full_path(path), str(path.absolute())}) for path in files)
    strays = [path for path, known in names if all(gallery.row_of(name) is None for name in known)]
    for path in strays:
        path.unlink()
    return len(files) - len(strays)


def _remove_empty(folder: Path) -> None:
    """Deletes the folders without a file from this one down."""
    for path in sorted([folder, *folder.rglob("*")], reverse=True):
        with suppress(OSError):
            path.rmdir()


def unpack(archive: Path, folder: Path, job: Job) -> list[Path]:
    """Writes the images of a zip below `folder` and returns their paths; what is no image, damaged, too large or of a bad name is
    left out. Raises ValueError for a file that is no zip, or one of too many files or bytes, and OSError of a full disk."""
    if not zipfile.is_zipfile(archive):
        raise ValueError("this file is not a zip archive")
    paths: list[Path] = []
    with zipfile.ZipFile(archive) as packed:
        entries = [entry for entry in packed.infolist() if not entry.is_dir()]
        if len(entries) > MOST_FILES:
            raise ValueError(f"a zip may hold {MOST_FILES} files, got {len(entries)}")
        # Declared sizes may lie: no more than an image may have is read of each.
        if sum(entry.file_size for entry in entries) > MOST_UNPACKED_BYTES:
            raise ValueError(f"a zip may hold {MOST_UNPACKED_BYTES >> 30} GiB when unpacked")
        job.total = len(entries)
        for done, entry in enumerate(entries, 1):
            job.done = done
            target = _target(entry.filename, folder)
            if target is None or _is_taken(target, folder):
                reason = (
                    "not the name of an image file"
                    if target is None
                    else "another entry has its name, or that of its folder"
                )
                job.left_out.append((entry.filename[:200], reason))
                continue
            try:
                with packed.open(entry) as source:
                    content = source.read(MOST_IMAGE_BYTES + 1)
                require_size(content)
            except DAMAGED as error:
                job.left_out.append((entry.filename[:200], reason_of(error)))
                continue
            # Outside of it: a disk that is full is not the fault of the entry, and ends the job.
            target.parent.mkdir(parents=True, exist_ok=True)
            paths.append(write_bytes(target, content))
    if not paths:
        raise ValueError("the zip holds no image that can be read")
    return paths


def reason_of(error: Exception) -> str:
    """Text of an error; its type where it has none, as EOFError."""
    return str(error) or type(error).__name__


def _target(name: str, folder: Path) -> Path | None:
    """Path of an entry below `folder`, of harmless characters; None for hidden files and what is no image."""
    parts = [re.sub(r"[^\w .-]", "_", part) for part in PurePosixPath(name.replace("\\", "/")).parts]
    if not parts or any(part.startswith(".") or len(part) > 150 for part in parts) or len(parts) > 10:
        return None
    if any(len(part.encode()) > MOST_NAME_BYTES for part in parts):
        return None
    return folder.joinpath(*parts) if Path(parts[-1]).suffix.lower() in IMAGE_SUFFIXES else None


def _is_taken(target: Path, folder: Path) -> bool:
    """True where an earlier entry is, or one that is a file has the name of a folder of this one."""
    inner = [folder / part for part in target.relative_to(folder).parents]
    return target.exists() or any(path.is_file() for path in inner)
