"""Adding a folder of images to a gallery, batch by batch; removing and checking images."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from training.retrieval.embedders import Embedder
from training.retrieval.gallery_writer import GalleryWriter, open_writer
from training.retrieval.image_names import ImageFacts, full_path, guess
from training.retrieval.store import DATABASE, Gallery, ImageRow
from training.utils.io import file_digest

if TYPE_CHECKING:
    from training.engine.distributed.ranks import Ranks

IMAGE_SUFFIXES = (".avif", ".bmp", ".gif", ".heic", ".heif", ".jfif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
# A killed process loses at most these.
BATCH = 128
# Unit length up to the rounding of float32.
LENGTH_TOLERANCE = 1e-3


@dataclass
class AddReport:
    """Outcome of adding a folder."""

    added: int = 0
    # Changed files, whose old embeddings were replaced; files that were in the gallery already.
    replaced: int = 0
    present: int = 0
    # Images in the gallery whose metadata was changed.
    described: int = 0
    # Path and reason of each file that could not be read.
    unreadable: list[tuple[str, str]] = field(default_factory=list)
    # Paths of the metadata that the folder does not have.
    unknown: list[str] = field(default_factory=list)
    seconds: float = 0.0


@dataclass(frozen=True)
class EmbeddedBatch:
    """Outcome of a part of the files: rows and embeddings, float32 (N, W), of those that are new or changed."""

    rows: list[ImageRow]
    table_NW: np.ndarray
    # Images whose files have changed in time alone, with the new one; path and reason of those that cannot be read.
    unchanged: list[ImageRow]
    unreadable: list[tuple[str, str]]


# Path of a file, and its image in the gallery.
KnownFile = tuple[str, ImageRow | None]
EmbedFiles = Callable[[Embedder, Sequence[KnownFile], int], Iterable[EmbeddedBatch]]


def image_paths(folder: Path) -> list[Path]:
    """Image files below a folder in the order of their paths, hidden ones aside. Folders that are links are folders too, but for
    those that lead to a folder that was found already, or to one around their own.

    Raises FileNotFoundError when there is no such folder, ValueError when it holds no image file.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"gallery {folder}: no such folder")
    paths, found = list[Path](), set[str]()
    # Links come after the folders beside them, so that images keep the paths without a link.
    starts = [str(folder)]
    for start in starts:
        for place, folders, names in os.walk(start):
            real = os.path.realpath(place)
            if real in found:
                folders.clear()
                continue
            found.add(real)
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            links = [path for path in (os.path.join(place, name) for name in folders) if os.path.islink(path)]
            starts += [link for link in links if not Path(real).is_relative_to(os.path.realpath(link))]
            paths += [Path(place, name) for name in names if _is_image(name)]
    paths = sorted(path for path in paths if path.is_file())
    if not paths:
        raise ValueError(f"gallery {folder} holds no image file ({' '.join(IMAGE_SUFFIXES)})")
    return paths


def _is_image(name: str) -> bool:
    return not name.startswith(".") and name.lower().endswith(IMAGE_SUFFIXES)


def open_or_create(folder: Path, embedder: Embedder) -> Gallery:
    """The gallery of a folder, new if it has none. Raises ValueError when it is of another model."""
    if not (Path(folder) / DATABASE).exists():
        return Gallery.create(folder, embedder.about)
    gallery = Gallery(folder)
    gallery.require_model(embedder.about.model, embedder.about.source)
    return gallery


def add_images(
    gallery: Gallery,
    paths: Sequence[Path],
    embedder: Embedder,
    *,
    root: Path | None = None,
    metadata: Mapping[str, ImageFacts] | None = None,
    batch_size: int = BATCH,
    progress: Callable[[int], None] = lambda done: None,
    embed: EmbedFiles | None = None,
) -> AddReport:
    """Adds image files that the gallery does not hold or that have changed, in batches that are each added as a whole.

    root: folder to which the paths of `metadata` are relative; progress: called with the number of files dealt with; embed:
    `embed_files` by default. Raises ValueError for another model, what `open_writer` raises, and OSError of a full disk.
    """
    gallery.require_model(embedder.about.model, embedder.about.source)
    report, start, facts = AddReport(), time.perf_counter(), metadata or {}
    names = {full_path(path): _relative(path, root) for path in paths}
    report.unknown = sorted(facts.keys() - set(names.values()))
    with open_writer(gallery) as writer:
        files = dict[str, ImageRow | None]()
        for path, name in names.items():
            known = gallery.row_of(path) if _is_utf8(path) else None
            if known is None or not _is_current(known):
                files[path] = known
            else:
                report.present += 1
                report.described += _update(writer, [(known, _with_facts(known, facts.get(name)))])
        done = report.present
        for batch in (embed or embed_files)(embedder, [*files.items()], batch_size):
            if batch.rows:
                told = [facts.get(names[row.path]) or _facts(files[row.path]) or guess(row.path) for row in batch.rows]
                writer.add([*map(_with_facts, batch.rows, told)], batch.table_NW)
            left = batch.unchanged + [known for path, _ in batch.unreadable if (known := files[path]) is not None]
            report.described += _update(
                writer, [(files[row.path], _with_facts(row, facts.get(names[row.path]))) for row in left]
            )
            _count(report, batch, files)
            done += len(batch.rows) + len(batch.unchanged) + len(batch.unreadable)
            progress(done)
        progress(len(names))
    report.seconds = time.perf_counter() - start
    return report


def embed_files(embedder: Embedder, files: Sequence[KnownFile], batch_size: int) -> Iterator[EmbeddedBatch]:
    """Reads these files in order and yields them in batches of so many that are new or changed, with their embeddings, or of so
    many that are not."""
    part, pixels = _empty_batch(), list[np.ndarray]()
    for number, (path, known) in enumerate(files, 1):
        read = _read(path, known, embedder, part)
        if read is not None:
            part.rows.append(read[0])
            pixels.append(read[1])
        if batch_size in (len(pixels), len(part.unchanged)) or number == len(files):
            yield replace(part, table_NW=embedder.embed_images(np.stack(pixels))) if pixels else part
            part, pixels = _empty_batch(), []


def embed_in_turn(
    ranks: Ranks, embedder: Embedder, files: Sequence[KnownFile] = (), batch_size: int = BATCH
) -> Iterator[EmbeddedBatch]:
    """`embed_files` by several processes that all call this: each takes so many files in turn, readable or not, and all yield
    every batch. The files and the size of a batch are those of the first process."""
    files, batch_size = ranks.gather((files, batch_size) if ranks.first else ((), 0))[0]
    starts = range(0, len(files), batch_size)
    for first in range(0, len(starts), ranks.size):
        own = starts[first : first + ranks.size][ranks.turns]
        parts = ranks.gather([x for i in own for x in embed_files(embedder, files[i : i + batch_size], batch_size)])
        yield from (batch for part in parts for batch in part)


def _empty_batch() -> EmbeddedBatch:
    return EmbeddedBatch([], np.empty((0, 0), np.float32), [], [])


def _read(
    path: str, known: ImageRow | None, embedder: Embedder, part: EmbeddedBatch
) -> tuple[ImageRow, np.ndarray] | None:
    """Row and pixels of a new or changed file; None for one that is unchanged or cannot be read, which `part` then names."""
    try:
        if not _is_utf8(path):
            raise ValueError(f"{path!a}: the name is not UTF-8")
        stat, content = Path(path).stat(), Path(path).read_bytes()
        row = ImageRow(path, stat.st_size, stat.st_mtime_ns, hashlib.sha256(content).hexdigest())
        if known is not None and known.sha256 == row.sha256:
            part.unchanged.append(replace(known, size=row.size, mtime=row.mtime))
            return None
        return row, embedder.read_image(content, path)
    except (OSError, ValueError) as error:
        part.unreadable.append((path, str(error).replace(f"{path} ", "", 1)))
        return None


def _is_current(known: ImageRow) -> bool:
    """True where size and time of the file are those of the gallery."""
    try:
        stat = Path(known.path).stat()
    except OSError:
        return False
    return (known.size, known.mtime) == (stat.st_size, stat.st_mtime_ns)


def _count(report: AddReport, batch: EmbeddedBatch, known: Mapping[str, ImageRow | None]) -> None:
    replaced = sum(known[row.path] is not None for row in batch.rows)
    report.added += len(batch.rows) - replaced
    report.replaced += replaced
    report.present += len(batch.unchanged)
    report.unreadable += batch.unreadable


def _update(writer: GalleryWriter, rows: Sequence[tuple[ImageRow | None, ImageRow]]) -> int:
    """Writes the images of which the new row is not the old one; returns the number of those whose metadata have changed."""
    changed = [(old, new) for old, new in rows if old != new]
    if changed:
        writer.update_metadata(*(new for _, new in changed))
    return sum(_facts(old) != _facts(new) for old, new in changed)


def _facts(row: ImageRow | None) -> ImageFacts | None:
    return None if row is None else ImageFacts(row.camera, row.time, row.more)


def _with_facts(row: ImageRow, facts: ImageFacts | None) -> ImageRow:
    """The row with other metadata; as it is without any."""
    return row if facts is None else replace(row, camera=facts.camera, time=facts.time, more=facts.more)


def _relative(path: Path, root: Path | None) -> str:
    return path.relative_to(root).as_posix() if root is not None else path.as_posix()


def _is_utf8(path: str) -> bool:
    # A name of other bytes is read with lone surrogates.
    return not any("\ud800" <= character <= "\udfff" for character in path)


def remove_images(gallery: Gallery, paths: Iterable[str], missing: bool) -> int:
    """Removes the images of these paths or below these folders, and with `missing` those whose files do not exist; returns how
    many. Raises ValueError for a path of which the gallery has no image."""
    wanted = [full_path(path) for path in paths]
    found: dict[str, list[int]] = {path: [] for path in wanted}
    ids: set[int] = set()
    for row in gallery.all_rows():
        # An earlier version kept `..`.
        place = full_path(row.path)
        for path in wanted:
            if place == path or place.startswith(path.rstrip("/") + "/"):
                found[path].append(row.id)
        if missing and not Path(row.path).is_file():
            ids.add(row.id)
    absent = [path for path, rows in found.items() if not rows]
    if absent:
        raise ValueError(f"gallery {gallery.folder} has no image {absent[0]}, nor one below it")
    ids.update(i for rows in found.values() for i in rows)
    with open_writer(gallery) as writer:
        return writer.remove(ids)


def check_images(gallery: Gallery, content: bool, progress: Callable[[int], None]) -> Iterator[tuple[str, str]]:
    """Yields path and fault of the database and each image: rows that are missing from an index, facts or embedding not those
    that were added, embedding not of unit length, file gone or changed (with `content` by its digest, else by size and time)."""
    yield from ((str(gallery.folder / DATABASE), f"damaged: {fault}") for fault in gallery.faults())
    snapshot, width = gallery.snapshot(), gallery.about.width
    for done, row in enumerate(gallery.all_rows(), 1):
        progress(done)
        if row.position < len(snapshot.table_PW):
            embedding_W = snapshot.table_PW[row.position]
            lengths = np.linalg.norm(embedding_W.reshape(-1, width).astype(np.float64), axis=1)
            # NaN is not near 1 either.
            if not (row.is_intact(embedding_W) and bool((np.abs(lengths - 1) < LENGTH_TOLERANCE).all())):
                yield row.path, "damaged embedding or facts: remove the image and add it again"
        path = Path(row.path)
        if not path.is_file():
            yield row.path, "the file does not exist"
            continue
        stat = path.stat()
        if content:
            changed = file_digest(path) != row.sha256
        else:
            changed = (stat.st_size, stat.st_mtime_ns) != (row.size, row.mtime)
        if changed:
            yield row.path, "the file has changed since"
