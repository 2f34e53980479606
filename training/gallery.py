"""Makes galleries of images to search, and keeps them up to date."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from training.utils import cli
from training.utils.cli import Device
from training.utils.machine import launched_ranks

if TYPE_CHECKING:
    from training.retrieval.embedders import Embedder
    from training.retrieval.image_names import ImageFacts
    from training.retrieval.ingest import EmbedFiles

Folder = Annotated[Path, tyro.conf.Positional]
# Seconds between two lines of progress where there is no terminal.
REPORT_EVERY = 10.0
# Unreadable files that are listed.
MOST_LISTED = 20


@dataclass(frozen=True)
class Add:
    """Embed the images below a folder that the gallery does not hold or that have changed; go on after an interruption. Under
    torchrun the processes embed batches in turn."""

    # Folder of the gallery; new, or one of the same model.
    gallery: Folder
    # Folder of images.
    folder: Folder
    # Run folder whose model embeds.
    run: Path | None = None
    # Folder of `python -m training.export` whose model embeds, without PyTorch.
    onnx: Path | None = None
    # CSV with a column `path` (relative to the folder of images), and camera, time and any others; without it camera and time are
    # guessed from the names of known data sets.
    metadata: Path | None = None
    # Images embedded at once; a killed process loses at most so many.
    batch_size: int = 128
    device: Device = "auto"


@dataclass(frozen=True)
class Remove:
    """Remove images from a gallery; their files stay."""

    # Folder of the gallery.
    gallery: Folder
    # Image files, or folders with all images below.
    paths: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    # Remove the images whose files do not exist.
    missing: bool = False


@dataclass(frozen=True)
class Check:
    """Compare a gallery with its files; exit status 2 when something is wrong."""

    # Folder of the gallery.
    gallery: Folder
    # Read every file and compare its content, not only its size and time of change.
    content: bool = False


@dataclass(frozen=True)
class Info:
    """Print what a gallery holds."""

    # Folder of the gallery.
    gallery: Folder


def add(arguments: Add) -> None:
    """Adds a folder and prints what came of it. Raises ValueError when nothing could be read."""
    from training.retrieval.embedders import open_embedder
    from training.retrieval.ingest import embed_in_turn

    if arguments.batch_size < 1:
        raise ValueError(f"--batch-size must be at least 1, got {arguments.batch_size}")
    if launched_ranks() == 1:
        inputs = _read_inputs(arguments)
        _add(arguments, *inputs, open_embedder(arguments.run, arguments.onnx, arguments.device))
        return
    # Not above: one process that embeds by an exported model needs no torch.
    from training.engine.distributed.agreement import versions
    from training.engine.distributed.shared_work import shared_work

    with shared_work("cpu" if arguments.onnx else arguments.device) as (ranks, device):
        embedder = open_embedder(arguments.run, arguments.onnx, device)
        ranks.require_equal(lambda: {"model": embedder.about.model[:12], "versions": versions()})
        if ranks.first:
            _add(arguments, *_read_inputs(arguments), embedder, partial(embed_in_turn, ranks))
        else:
            for _ in embed_in_turn(ranks, embedder):
                pass


def _read_inputs(arguments: Add) -> tuple[list[Path], dict[str, ImageFacts] | None]:
    """Images below the folder, and their metadata."""
    from training.retrieval.image_names import read_metadata
    from training.retrieval.ingest import image_paths

    return image_paths(arguments.folder), read_metadata(arguments.metadata) if arguments.metadata else None


def _add(
    arguments: Add,
    paths: list[Path],
    metadata: dict[str, ImageFacts] | None,
    embedder: Embedder,
    embed: EmbedFiles | None = None,
) -> None:
    """Adds the images, whose batches `embed` embeds, and prints what came of it."""
    from training.retrieval.ingest import add_images, open_or_create

    gallery = open_or_create(arguments.gallery, embedder)
    options: dict[str, Any] = {"root": arguments.folder, "metadata": metadata, "batch_size": arguments.batch_size}
    with _progress("images", len(paths)) as progress:
        report = add_images(gallery, paths, embedder, progress=progress, embed=embed, **options)
    for path, reason in report.unreadable[:MOST_LISTED]:
        print(f"left out: {path}: {reason}", file=sys.stderr)
    if len(report.unreadable) > MOST_LISTED:
        print(f"left out: {len(report.unreadable) - MOST_LISTED} more", file=sys.stderr)
    if report.unknown:
        print(
            f"metadata of {len(report.unknown)} paths that the folder does not have: {report.unknown[0]}, …",
            file=sys.stderr,
        )
    made = report.added + report.replaced
    rate = f", {made / report.seconds:.0f} a second" if made else ""
    print(
        f"{arguments.gallery}: {report.added} added, {report.replaced} replaced, {report.present} present, "
        f"{len(report.unreadable)} unreadable{rate}; {gallery.count()} images"
    )
    if not gallery.count():
        raise ValueError(f"{arguments.folder} holds no image that can be read")


def remove(arguments: Remove) -> None:
    """Removes images and prints how many."""
    from training.retrieval.ingest import remove_images
    from training.retrieval.store import Gallery

    if not arguments.paths and not arguments.missing:
        raise ValueError("expected paths to remove, or --missing")
    gallery = Gallery(arguments.gallery)
    count = remove_images(gallery, arguments.paths, arguments.missing)
    print(f"{arguments.gallery}: {count} removed; {gallery.count()} images")


def check(arguments: Check) -> None:
    """Prints every fault. Raises ValueError when there is one."""
    from training.retrieval.ingest import check_images
    from training.retrieval.store import Gallery

    gallery = Gallery(arguments.gallery)
    faults = 0
    with _progress("images", gallery.count()) as progress:
        for path, fault in check_images(gallery, arguments.content, progress):
            faults += 1
            print(f"{path}: {fault}")
    if faults:
        raise ValueError(f"{faults} of {gallery.count()} images of {arguments.gallery} need attention")
    print(f"{arguments.gallery}: {gallery.count()} images, no fault")


def info(arguments: Info) -> None:
    """Prints what a gallery holds, a line each."""
    from training.retrieval.engines.faiss_engine import CellSearch
    from training.retrieval.image_names import format_time
    from training.retrieval.store import Gallery
    from training.utils.io import read_record

    gallery = Gallery(arguments.gallery)
    about = gallery.about
    cameras = gallery.query("SELECT camera, count(*) FROM images GROUP BY camera ORDER BY camera")
    first, last = gallery.query("SELECT min(time), max(time) FROM images")[0]
    size = sum(path.stat().st_size for path in arguments.gallery.glob("*") if path.is_file())
    print(f"images    {gallery.count()}")
    print(f"model     {about.model[:12]} ({about.source}), {about.branches} x {about.width}, beta {about.beta:g}")
    print(f"cameras   {', '.join(f'{name or chr(63)} ({count})' for name, count in cameras) or 'none'}")
    print(f"times     {f'{format_time(first)} to {format_time(last)}' if first is not None else 'unknown'}")
    print(f"on disk   {size / 1e6:.1f} MB")
    generation = gallery.query("SELECT value FROM about WHERE key = 'generation'")[0][0]
    measured = arguments.gallery / f"faiss-{generation}.json"
    if measured.is_file():
        found = read_record(measured, CellSearch)
        print(
            f"faiss     of {found.cells} cells the nearest {found.probes} are searched, which hold {100 * found.recall:.1f} % of "
            f"the ten best images at weight 1 of clothes; by identity or clothes alone {found.probes_alone}, "
            f"{100 * found.recall_alone:.1f} % (measured at {found.images} images)"
        )


@contextmanager
def _progress(unit: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar with the rate on a terminal, else a line every REPORT_EVERY seconds; yields the function that is told the number
    done."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console, start = Console(stderr=True), time.monotonic()
    if console.is_terminal:
        columns = (
            TextColumn(unit),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task(unit, total=total, rate="")
            yield lambda n: bar.update(task, completed=n, rate=f"{n / max(time.monotonic() - start, 1e-3):.0f}/s")
        return
    last = [start]

    def report(done: int) -> None:
        now = time.monotonic()
        if now - last[0] >= REPORT_EVERY:
            last[0] = now
            print(f"{done} of {total} {unit}, {done / (now - start):.0f} a second", file=sys.stderr, flush=True)

    yield report


COMMANDS: dict[type, Callable[[Any], None]] = {Add: add, Remove: remove, Check: check, Info: info}


def main(argv: Sequence[str]) -> None:
    """Runs a sub-command; raises what its function raises."""
    kinds: Any = Add | Remove | Check | Info
    arguments = cli.parse(kinds, argv, "training.gallery", __doc__, shared=True)
    if not isinstance(arguments, Add):
        cli.require_one_process(f"training.gallery {type(arguments).__name__.lower()}")
    COMMANDS[type(arguments)](arguments)


if __name__ == "__main__":
    sys.exit(cli.run(main))
