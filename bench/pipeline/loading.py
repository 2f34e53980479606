"""Images per second of Pillow alone and of our loader, from files and from the packed cache, with and without augmentation.

`python -m bench.pipeline.loading --data data/synthetic` runs all variants in turn with the same number of processes, prints the
share of Pillow's rate that each reaches, and appends a row each to bench/results/.
"""

from __future__ import annotations

import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import tyro
from PIL import Image
from rich.console import Console
from rich.table import Table

from bench.harness import measure, results
from training.config import DataConfig
from training.data.datasets import read_records
from training.data.images import transforms
from training.data.images.pack import pack_images
from training.data.images.source import ImageSource, open_images, read_batches

BATCH = 64
PILLOW = "Pillow alone"
# Name of a variant -> (direction, kind) of its row; the first one of a direction is ours.
VARIANTS = {
    PILLOW: ("decode + resize", "eager"),
    "files": ("decode + resize", "ours"),
    "cache": ("decode + resize", "other"),
    "files, normalised": ("evaluation batches", "ours"),
    "cache, normalised": ("evaluation batches", "other"),
    "files, augmented": ("train batches", "ours"),
    "cache, augmented": ("train batches", "other"),
}


@dataclass(frozen=True)
class Arguments:
    """Data, image sizes and number of samples."""

    # Data folder in the CUHK-PEDES layout.
    data: Path = Path("data/synthetic")
    # Height and width pairs.
    image_sizes: tuple[tuple[int, int], ...] = ((384, 128), (224, 224))
    # Decoding processes of the loader and of Pillow; 0: the measuring process itself.
    workers: int = 2
    # Images of a sample, drawn from the train split with repetition. Starting and ending two processes takes 0.1 s: a sixth of
    # the time of 3,200 small images, but 3 % at most of that of a real train split (18,505 to 34,674 images).
    images: int = 6400
    # Samples of each variant.
    rounds: int = 5
    # Print only: do not append rows to bench/results/.
    dry: bool = False


class Sample(NamedTuple):
    """Seconds of one variant in one round: wall-clock, and CPU time of all processes."""

    clock: float
    cpu: float


@dataclass(frozen=True)
class Samples:
    """Description of the problem, and the samples of every variant, one for each round."""

    shape: str
    images: int
    by_variant: dict[str, list[Sample]] = field(default_factory=dict)

    def milliseconds(self, variant: str, what: Literal["clock", "cpu"] = "clock") -> measure.Timing:
        """Milliseconds per image."""
        return measure.timing([1e3 * getattr(sample, what) / self.images for sample in self.by_variant[variant]])

    def shares(self, variant: str, what: Literal["clock", "cpu"]) -> list[float]:
        """Images per second relative to Pillow's in the same round, ascending."""
        pairs = zip(self.by_variant[variant], self.by_variant[PILLOW], strict=True)
        return sorted(getattr(pillow, what) / getattr(own, what) for own, pillow in pairs)

    def share(self, variant: str, what: Literal["clock", "cpu"]) -> float:
        """Median of `shares`."""
        return float(np.median(self.shares(variant, what)))


def pillow(paths: Sequence[Path], image_size: tuple[int, int]) -> None:
    """Decodes, converts and resizes images, and discards them."""
    height, width = image_size
    for path in paths:
        with Image.open(path) as image:
            image.convert("RGB").resize((width, height), Image.Resampling.BILINEAR)


def pillow_alone(paths: Sequence[Path], image_size: tuple[int, int], workers: int) -> None:
    """Runs `pillow` in as many processes as the loader has, each with an equal share of the paths."""
    if workers == 0:
        pillow(paths, image_size)
        return
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=pillow, args=(paths[i::workers], image_size)) for i in range(workers)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()


def load(images: ImageSource, order: Sequence[int], config: DataConfig, step: str) -> None:
    """Reads the images in this order in batches; step: processing of each batch, "normalised", "augmented" or none."""
    batches = [order[i : i + BATCH] for i in range(0, len(order), BATCH)]
    draws = np.random.default_rng(0).random((len(batches), BATCH, transforms.DRAWS))
    # Closed here: the shutdown of the workers is part of the time, as that of Pillow's processes is.
    with closing(read_batches(images, batches, config.workers)) as pixels:  # type: ignore[type-var]
        for draws_BD, images_BCHW in zip(draws, pixels, strict=True):
            if step == "normalised":
                transforms.normalise(images_BCHW)
            elif step == "augmented":
                transforms.augment(images_BCHW, draws_BD[: len(images_BCHW)], config.pad, config.flip, config.erase)


def calls(arguments: Arguments, image_size: tuple[int, int], cache: Path) -> tuple[str, dict[str, Callable[[], None]]]:
    """Returns a description of the problem, and every variant over the same images in the same order; fills the cache."""
    plain = DataConfig(root=str(arguments.data), image_size=image_size, workers=arguments.workers)
    paths = [record.path for record in read_records(plain)["train"]]
    packed = DataConfig(root=plain.root, image_size=image_size, workers=arguments.workers, cache=str(cache))
    pack_images(paths, cache, image_size)
    sources = {"files": open_images(paths, plain), "cache": open_images(paths, packed)}
    order = np.random.default_rng(0).integers(len(paths), size=arguments.images).tolist()
    variants: dict[str, Callable[[], None]] = {}
    for variant in VARIANTS:
        source, _, step = variant.partition(", ")
        if source == PILLOW:
            variants[variant] = lambda: pillow_alone([paths[i] for i in order], image_size, arguments.workers)
        else:
            variants[variant] = lambda images=sources[source], step=step: load(images, order, plain, step)  # type: ignore[misc]
    with Image.open(paths[0]) as image:
        width, height = image.size
    return f"{height}x{width} {paths[0].suffix[1:]} to {image_size[0]}x{image_size[1]}", variants


def sample(call: Callable[[], None]) -> Sample:
    """Times a call; CPU time includes that of the processes that it started and ended."""

    def cpu() -> float:
        usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return sum(usage.ru_utime + usage.ru_stime for usage in usages)

    started, before = time.perf_counter(), cpu()
    call()
    return Sample(time.perf_counter() - started, cpu() - before)


def measure_variants(arguments: Arguments, image_size: tuple[int, int]) -> Samples:
    """Measures all variants in turn, round by round."""
    with tempfile.TemporaryDirectory() as folder:
        shape, variants = calls(arguments, image_size, Path(folder))
        found = Samples(
            f"{shape}, {arguments.workers} workers", arguments.images, {variant: [] for variant in variants}
        )
        for number in range(arguments.rounds + 1):
            for variant, call in variants.items():
                seconds = sample(call)
                # The first round fills the page cache.
                if number:
                    found.by_variant[variant].append(seconds)
    return found


def make_table(found: Samples) -> Table:
    """Table of images per second, CPU time, and the shares of Pillow's rate by both."""
    shown = Table(title=found.shape)
    for column in ("", "images/s", "of Pillow's", "lowest, highest", "CPU ms an image", "of Pillow's rate by CPU time"):
        shown.add_column(column, justify="right" if column else "left")
    for variant in found.by_variant:
        shares = found.shares(variant, "clock")
        shown.add_row(
            variant,
            f"{1e3 / found.milliseconds(variant).median:.0f}",
            f"{found.share(variant, 'clock'):.2f}",
            f"{shares[0]:.2f}, {shares[-1]:.2f}",
            f"{found.milliseconds(variant, 'cpu').median:.3f}",
            f"{found.share(variant, 'cpu'):.2f}",
        )
    return shown


def rows(found: Samples) -> list[dict[str, str]]:
    """A row per variant, in wall-clock milliseconds per image; the note has the share of Pillow's rate."""
    made = []
    for variant, (direction, kind) in VARIANTS.items():
        times = found.milliseconds(variant)
        ours = found.milliseconds(next(name for name, row in VARIANTS.items() if row == (direction, "ours")))
        made.append(
            {
                "op": "loading",
                "shape": found.shape,
                "dtype": "uint8" if direction == "decode + resize" else "float32",
                "direction": direction,
                "variant": variant,
                "kind": kind,
                **measure.numbers(times, ours.median),
                "note": f"per image; {found.share(variant, 'clock'):.2f} of Pillow's rate by the clock, "
                f"{found.share(variant, 'cpu'):.2f} by CPU time ({found.milliseconds(variant, 'cpu').median:.3f} ms)",
            }
        )
    return made


def main() -> None:
    """Measures, prints, and appends rows."""
    arguments = tyro.cli(Arguments, description=__doc__)
    measure.require_tests("loading")
    for image_size in arguments.image_sizes:
        found = measure_variants(arguments, image_size)
        Console(width=110).print(make_table(found))
        if not arguments.dry:
            print(results.append(rows(found)))


if __name__ == "__main__":
    main()
