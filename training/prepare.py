"""`python -m training.prepare`: make or check the data that training reads."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from training import cli
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


def main(argv: Sequence[str]) -> None:
    """Run a subcommand with these arguments."""
    app.cli(prog="python -m training.prepare", args=argv)


if __name__ == "__main__":
    sys.exit(cli.run(main))
