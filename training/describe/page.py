"""Writes a page for the inspection of generated texts: `python -m training.describe page DESCRIPTIONS --data NAME ROOT`.

One self-contained HTML file: counts by status, reason, check and style, lengths, agreement with the captions, and a sample
of images with their captions, both texts and the checks.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from training.describe.options import CheckOptions, read_data
from training.describe.text.records import Status
from training.utils import cli
from training.utils.io import write_bytes


@dataclass(frozen=True)
class Arguments:
    """Arguments of the command."""

    # JSONL file of generated texts.
    descriptions: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DESCRIPTIONS")]
    # The data set of the images.
    data: Annotated[tuple[str, str], tyro.conf.arg(metavar="NAME ROOT")]
    # By default beside DESCRIPTIONS, with the ending .html.
    out: Annotated[Path | None, tyro.conf.arg(metavar="PAGE")] = None
    # Number of images in the sample.
    sample: int = 60
    # Seed of the sample.
    seed: int = 0
    # Show images of this status only.
    status: Status | None = None
    # Requirements on the texts.
    checks: CheckOptions = field(default_factory=CheckOptions)


def main(argv: Sequence[str]) -> None:
    """Entry point; prints where the page is. Raises ValueError or FileNotFoundError for bad input."""
    arguments = cli.parse(Arguments, argv, "training.describe page", __doc__)
    if arguments.sample < 0:
        raise ValueError(f"--sample must not be negative, got {arguments.sample}")
    out = arguments.out or arguments.descriptions.with_suffix(".html")
    if not out.parent.is_dir():
        raise FileNotFoundError(f"--out {out}: there is no folder {out.parent}")
    schema, limits = arguments.checks.load()
    # Not at the top: --help and wrong arguments need not wait for matplotlib.
    from training.describe.description_page import build_page

    records, sample = read_data(*arguments.data), (arguments.sample, arguments.seed, arguments.status)
    html = build_page(arguments.descriptions, records, schema, limits, *sample)
    # A rejected answer may hold half a character, which has no UTF-8.
    print(write_bytes(out, html.encode(errors="backslashreplace")))


if __name__ == "__main__":
    sys.exit(cli.run(main))
