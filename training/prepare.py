"""`python -m training.prepare`: make or check the data that training reads."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, cast

import tyro
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from training import cli
from training.config import DataConfig
from training.data.datasets import read_records
from training.data.packing import pack as pack_images
from training.data.synthetic import SPLITS, generate

app = tyro.extras.SubcommandApp()


@app.command
def synthetic(
    out: Annotated[Path, tyro.conf.Positional],
    ids: int,
    seed: int = 0,
    images_per_id: int = 6,
    val_ids: int | None = None,
    test_ids: int | None = None,
    height: int = 192,
    width: int = 96,
    workers: int = 1,
) -> None:
    """Render pedestrians in the layout of CUHK-PEDES.

    Args:
        out: New or empty folder to write to.
        ids: Number of identities, all splits together.
        seed: Equal seeds give equal data sets.
        images_per_id: Mean number of images per identity.
        val_ids: Identities for validation; a tenth by default.
        test_ids: Identities for testing; 15 % by default.
        height: Height of the images in pixels, at least 160.
        width: Width of the images in pixels, at least 64.
        workers: Processes; the data set does not depend on them.
    """
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("identities", total=ids)
        summary = generate(
            out,
            ids,
            seed,
            images_per_id,
            val_ids,
            test_ids,
            height,
            width,
            workers,
            progress=lambda done, _: bar.update(task, completed=done),
        )
    table = Table("split", "identities", "images", "captions", title=str(out))
    for split in SPLITS:
        table.add_row(split, *(str(summary["counts"][split][key]) for key in ("ids", "images", "captions")))
    console.print(table)


@app.command
def pack(
    root: Annotated[Path, tyro.conf.Positional],
    cache: Annotated[Path, tyro.conf.Positional],
    dataset: str = "cuhk-pedes",
    image_size: tuple[int, int] = (224, 224),
    workers: int = 0,
    check: bool = False,
) -> None:
    """Decode and resize all images of a data set into a packed cache, which training reads with --data.cache.

    Args:
        root: Folder of the data set.
        cache: Folder of the cache; new, or to be brought up to date.
        dataset: Name of the data set.
        image_size: Height and width as in --data.image-size.
        workers: Processes that decode; 0 for this one.
        check: Read every file and every packed row again instead of believing size and time of change.
    """
    config = DataConfig(
        dataset=cast(Any, dataset), root=str(root), image_size=image_size, cache=str(cache), workers=workers
    )
    paths = [record.path for records in read_records(config).values() for record in records]
    counts = pack_images(paths, cache, config.image_size, config.workers, check=check)
    Console(stderr=True).print(
        f"{cache}: {len(paths)} images of {image_size[0]}x{image_size[1]}: {counts.current} current, {counts.renamed} "
        f"known by content, {counts.decoded} decoded",
        highlight=False,
    )


def main(argv: Sequence[str]) -> None:
    """Run a subcommand with these arguments."""
    app.cli(prog="python -m training.prepare", args=argv)


if __name__ == "__main__":
    sys.exit(cli.run(main))
