"""Finds the images that a text describes: `python -m training.search RUN "a man in a red jacket"`.

The embeddings of the gallery are stored in RUN/index.pt and computed again when the checkpoint or an image has changed.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, TextIO

import tyro
from rich.console import Console
from rich.table import Table
from rich.text import Text

from training.utils import cli
from training.utils.cli import DataRoot, Device


@dataclass(frozen=True)
class Arguments:
    """Arguments of the command."""

    # Run folder of `python -m training.train`.
    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    # Description of the person.
    text: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="TEXT")]
    # Number of images.
    k: int = 10
    # train, val or test of the run's data set, or a folder of images.
    gallery: Annotated[str, tyro.conf.arg(metavar="SPLIT|FOLDER")] = "test"
    data_root: DataRoot = None
    device: Device = "auto"


def main(argv: Sequence[str]) -> None:
    """Entry point: prints rank, score and path of the best images. Raises what `search_gallery` raises."""
    arguments = cli.parse(Arguments, argv, "training.search", __doc__)
    # Not at the top: --help need not wait for torch.
    from training.retrieval.gallery_search import search_gallery

    where = arguments.gallery, arguments.data_root, arguments.device
    print_results(search_gallery(arguments.run, arguments.text, arguments.k, *where), sys.stdout)


def print_results(results: Sequence[tuple[float, str]], file: TextIO) -> None:
    """Table of rank, score and path, so wide that no path is broken into lines."""
    table = Table("rank", "score", "path")
    for rank, (score, path) in enumerate(results, 1):
        table.add_row(str(rank), f"{score:.4f}", Text(path))
    # 40 columns are more than the rest of the table needs.
    Console(file=file, width=40 + max(len(path) for _, path in results), soft_wrap=True).print(table)


if __name__ == "__main__":
    sys.exit(cli.run(main))
