"""Opens what `--gallery` names for a search: a gallery, a split of the run's data set, or a folder of images."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from training.retrieval.embedders import Embedder, OnnxEmbedder, TorchEmbedder
from training.retrieval.finder import EngineName, Finder
from training.retrieval.gallery_writer import open_writer
from training.retrieval.image_names import full_path
from training.retrieval.ingest import add_images, image_paths, open_or_create
from training.retrieval.store import DATABASE, Gallery

SPLITS = ("train", "val", "test")
GALLERIES = "galleries"


def open_model(folder: Path, data_root: Path | None = None, device: str = "auto") -> Embedder:
    """The embedder of a run folder, whose data may have moved to `data_root`, on a device (see `select_device`), or of an export
    folder without PyTorch."""
    # Named here and not in `export`, which this must not import for a run folder.
    if (folder / "image.onnx").is_file():
        return OnnxEmbedder(folder)
    return TorchEmbedder(folder, data_root=data_root, device=device)


def open_finder(
    run_dir: Path,
    gallery: str,
    engine: EngineName = "exact",
    warn: Callable[[str], None] = lambda text: None,
    data_root: Path | None = None,
    device: str = "auto",
) -> Finder:
    """A finder for a gallery folder, or for a split or folder whose embeddings are kept in a gallery of the run and brought up to
    date first. warn: called with a line for each image that cannot be read. data_root: where the data of the run are
    now, if they were moved; device: as in `select_device`.

    Raises what reading the run, the data set and the gallery raises, and ValueError where no image can be read.
    """
    if gallery not in SPLITS and (Path(gallery) / DATABASE).is_file():
        return Finder(Gallery(Path(gallery)), open_model(run_dir, device=device), engine)
    embedder = open_model(run_dir, data_root, device)
    if gallery in SPLITS:
        paths, name = _split_paths(embedder, gallery), gallery
    else:
        folder = Path(gallery)
        paths = image_paths(folder)
        place = full_path(folder)
        digest = hashlib.sha256(os.fsencode(place)).hexdigest()[:8]
        name = f"{re.sub(r'[^A-Za-z0-9._-]', '_', Path(place).name)}-{digest}"
    home = _home(run_dir, embedder, name)
    if (home / DATABASE).is_file() and Gallery(home).about.model != embedder.about.model:
        # Embeddings of an earlier checkpoint, which nobody asked to keep.
        shutil.rmtree(home)
    kept = open_or_create(home, embedder)
    bring_up_to_date(kept, paths, embedder, warn)
    if not kept.count():
        raise ValueError(f"gallery {gallery} holds no image that can be read")
    return Finder(kept, embedder, engine)


def bring_up_to_date(gallery: Gallery, paths: Sequence[Path], embedder: Embedder, warn: Callable[[str], None]) -> None:
    """Makes a gallery hold exactly these images; writes nothing where nothing has changed."""
    current = {row.path: row for row in gallery.all_rows()}
    wanted = {full_path(path): path for path in paths}
    stale = []
    for name, path in wanted.items():
        row = current.get(name)
        try:
            stat = path.stat()
        except OSError:
            stat = None
        if row is None or stat is None or (row.size, row.mtime) != (stat.st_size, stat.st_mtime_ns):
            stale.append(path)
    gone = [row.id for path, row in current.items() if path not in wanted]
    if gone:
        with open_writer(gallery) as writer:
            writer.remove(gone)
    if stale:
        for name, reason in add_images(gallery, stale, embedder).unreadable:
            warn(f"left out: {name}: {reason}")


def _split_paths(embedder: Embedder, split: str) -> list[Path]:
    if not isinstance(embedder, TorchEmbedder):
        raise ValueError(f"an exported model has no data set with a split {split!r}: give --gallery GALLERY or FOLDER")
    from training.data.datasets import read_dataset

    return [record.path for record in read_dataset(embedder.run.config.data).splits[split]]


def _home(run_dir: Path, embedder: Embedder, name: str) -> Path:
    """Folder of a gallery of the run: beside the run, or in the user's cache where the run cannot be written."""
    inside = run_dir / GALLERIES / name
    nearest = next(folder for folder in (inside, inside.parent, run_dir) if folder.is_dir())
    if (inside / DATABASE).is_file() or os.access(nearest, os.W_OK):
        return inside
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "bdam_fast" / GALLERIES / embedder.about.model[:16] / name
