"""Writes the page of a run, RUN/report.html, or of an experiment: `python -m training.report RUN [--data ROOT]`,
`python -m training.report --experiment OUT [--markdown PAGE.md]`. Prints the paths of what it wrote."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from training.report import read_experiment, read_run, write_experiment, write_markdown, write_page
from training.utils import cli


def main(argv: Sequence[str]) -> None:
    """Reads the run or the experiment, writes its page, prints where the page is. Raises what these raise."""
    parser = argparse.ArgumentParser("python -m training.report", description=__doc__)
    parser.add_argument("run", type=Path, metavar="RUN", nargs="?", help="folder of a run that was evaluated")
    parser.add_argument("--data", type=Path, metavar="ROOT", help="root of the data set, where it was moved since")
    experiment_help = "folder of an experiment (the --out of training.experiment), in place of RUN"
    parser.add_argument("--experiment", type=Path, metavar="OUT", help=experiment_help)
    parser.add_argument("--markdown", type=Path, metavar="PAGE", help="also the experiment as Markdown with PNG plots")
    known = parser.parse_args(argv)
    if (known.run is None) == (known.experiment is None):
        raise ValueError("expected either RUN or --experiment OUT")
    if known.experiment is None:
        if known.markdown is not None:
            raise ValueError("--markdown is the page of an experiment: it needs --experiment OUT")
        print(write_page(read_run(known.run), known.data))
        return
    print(write_experiment(known.experiment))
    if known.markdown is not None:
        for path in write_markdown(read_experiment(known.experiment), known.markdown):
            print(path)


if __name__ == "__main__":
    sys.exit(cli.run(main))
