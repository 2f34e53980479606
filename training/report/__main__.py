"""`python -m training.report RUN [--data ROOT]`: writes RUN/report.html and prints its path."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from training import cli
from training.report import read_run, write_page


def main(argv: Sequence[str]) -> None:
    """Reads the run, writes its page, prints where the page is."""
    parser = argparse.ArgumentParser("python -m training.report", description=__doc__)
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a run that was evaluated")
    parser.add_argument("--data", type=Path, metavar="ROOT", help="root of the data set, where it was moved since")
    arguments = parser.parse_args(argv)
    print(write_page(read_run(arguments.run), arguments.data))


if __name__ == "__main__":
    sys.exit(cli.run(main))
