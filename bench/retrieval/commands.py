"""Commands of a gallery with a model as ONNX: `python -m bench.retrieval.commands --onnx EXPORT --images FOLDER`.

Adding, in turns with a loop of Pillow and the model alone that keeps nothing, in CPU seconds; adding with kills; the first answer
of a server that is up; a query from the command line. The gallery is a temporary one.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from PIL import Image

from training.retrieval.embedders import Embedder, open_embedder
from training.retrieval.ingest import BATCH, add_images, image_paths, open_or_create
from training.retrieval.store import Gallery

TEXT = "a woman in a red coat"


@dataclass(frozen=True)
class Arguments:
    """Arguments of the command."""

    # Folder of `python -m training.export`.
    onnx: Path
    # Folder of images.
    images: Path
    # Number of images to add, the first ones of the folder.
    count: int = 10_000
    # Turns in which they are added, each also with Pillow and the model alone.
    turns: int = 10
    # Number of kills of a process that adds them to a second gallery.
    kills: int = 20


def main() -> None:
    """Entry point."""
    arguments = tyro.cli(Arguments, description=__doc__)
    paths = image_paths(arguments.images)[: arguments.count]
    embedder = open_embedder(None, arguments.onnx, "cpu", threads=1)
    with tempfile.TemporaryDirectory() as folder:
        gallery = open_or_create(Path(folder) / "g", embedder)
        parts = [paths[turn :: arguments.turns] for turn in range(arguments.turns)]
        ratios = [add_and_alone(gallery, embedder, part) for part in parts]
        print(
            f"{gallery.count()} images added; rate relative to Pillow and the model alone: median {np.median(ratios):.3f}, "
            f"{min(ratios):.3f} to {max(ratios):.3f} of {len(ratios)} turns",
            flush=True,
        )
        print(kill(Path(folder), paths, arguments, gallery), flush=True)
        print(first_answer(gallery.folder, arguments.onnx), flush=True)
        print(command_line(gallery.folder, arguments.onnx), flush=True)


def add_and_alone(gallery: Gallery, embedder: Embedder, paths: Sequence[Path]) -> float:
    """CPU seconds of the model and Pillow alone for these images, relative to those of adding them."""
    for path in paths:
        # From the disk now: it is read once, by whichever comes first.
        path.read_bytes()
    start = time.process_time()
    add_images(gallery, paths, embedder)
    middle = time.process_time()
    height, width = embedder.image_size
    for first in range(0, len(paths), BATCH):
        read = []
        for path in paths[first : first + BATCH]:
            with Image.open(path) as image:
                read.append(np.asarray(image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)))
        embedder.embed_images(np.stack(read).transpose(0, 3, 1, 2))
    return (time.process_time() - middle) / (middle - start)


def kill(folder: Path, paths: Sequence[Path], arguments: Arguments, whole: Gallery) -> str:
    """Adds the images to a second gallery, which is compared with the first, by a process that is killed again and again."""
    links, words = folder / "links", ["training.gallery", "add", str(folder / "k"), str(folder / "links")]
    links.mkdir()
    for i, path in enumerate(paths):
        (links / f"{i:06}{path.suffix}").symlink_to(path.absolute())
    command, counts = [sys.executable, "-m", *words, "--onnx", str(arguments.onnx)], []
    for number in range(arguments.kills):
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            # At a moment of its own after another batch or more, and never later than the end.
            while process.poll() is None and count(folder / "k") < len(paths) * (number + 1) / (arguments.kills + 2):
                time.sleep(0.01 + 0.001 * number)
            process.kill()
        counts.append(count(folder / "k"))
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    again = Gallery(folder / "k")
    rows, expected = embeddings(again), embeddings(whole)
    same = again.count() == len(paths) and all(np.allclose(rows[x], expected[x], atol=1e-5) for x in expected)
    return f"{arguments.kills} kills after {counts} images: {'nothing lost, nothing twice' if same else 'NOT THE SAME'}"


def embeddings(gallery: Gallery) -> dict[str, np.ndarray]:
    """Embedding of each image by its file, links followed."""
    table_PW = gallery.snapshot().table_PW
    return {str(Path(row.path).resolve()): table_PW[row.position] for row in gallery.all_rows()}


def count(folder: Path) -> int:
    """Number of images of a gallery that another process fills."""
    try:
        return Gallery(folder).count()
    except FileNotFoundError:
        return 0


def first_answer(gallery: Path, onnx: Path) -> str:
    """Seconds from the address that a server prints to its first answer."""
    words = ["training.serve", "--gallery", str(gallery), "--onnx", str(onnx), "--port", "0"]
    with subprocess.Popen([sys.executable, "-m", *words], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        address = server.stdout.readline().split()[-1]
        start, before = time.perf_counter(), cpu_seconds(server.pid)
        with urllib.request.urlopen(f"{address}api/search?q={TEXT.replace(' ', '+')}") as answer:
            results = len(json.load(answer)["results"])
        seconds, used = time.perf_counter() - start, cpu_seconds(server.pid) - before
        server.kill()
    return f"first answer of a server, {results} results: {seconds:.3f} s, {used:.2f} CPU-s"


def cpu_seconds(process: int) -> float:
    """CPU time of a running process, in steps of 0.01 s."""
    fields = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / 100


def command_line(gallery: Path, onnx: Path) -> str:
    """Seconds of a query from the command line, the fastest of five."""
    command = [sys.executable, "-m", "training.search", str(onnx), TEXT, "--gallery", str(gallery)]
    found = []
    for _ in range(5):
        start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        found.append((time.perf_counter() - start, used))
    return f"a query from the command line: {min(found)[0]:.2f} s, {min(used for _, used in found):.2f} CPU-s"


if __name__ == "__main__":
    main()
