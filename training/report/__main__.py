"""`python -m training.report RUN [--data ROOT]`: writes RUN/report.html and prints its path.

`python -m training.report --fig5 OUT/summary.json` writes OUT/fig5.html about the forms of fusion of an experiment.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from training import cli
from training.report import fusions, read_run, write_page
from training.report.page import write_text


def main(argv: Sequence[str]) -> None:
    """Reads the run, writes its page, prints where the page is."""
    parser = argparse.ArgumentParser("python -m training.report", description=__doc__)
    parser.add_argument("run", type=Path, metavar="RUN", nargs="?", help="folder of a run that was evaluated")
    parser.add_argument("--fig5", type=Path, metavar="SUMMARY", help="summary.json of an experiment that holds fig5")
    parser.add_argument("--data", type=Path, metavar="ROOT", help="root of the data set, where it was moved since")
    arguments = parser.parse_args(argv)
    if (arguments.run is None) == (arguments.fig5 is None):
        raise ValueError("give either RUN or --fig5 SUMMARY")
    if arguments.fig5 is not None:
        path = arguments.fig5.parent / "fig5.html"
        write_text(path, fusions.build_page(arguments.fig5))
        print(path)
        return
    print(write_page(read_run(arguments.run), arguments.data))


if __name__ == "__main__":
    sys.exit(cli.run(main))
