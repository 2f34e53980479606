"""Writes the page of a run, RUN/report.html, or of an experiment: `python -m training.report RUN [--data.root ROOT]`,
`python -m training.report --experiment OUT [--markdown PAGE.md]`. Prints the paths of what it wrote."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from training.utils import cli
from training.utils.cli import DataRoot
from training.utils.locks import folder_lock


@dataclass(frozen=True)
class Arguments:
    """Arguments of the command."""

    # Folder of a run that was evaluated.
    run: Annotated[Path | None, tyro.conf.Positional, tyro.conf.arg(metavar="[RUN]")] = None
    # Where the data are now, if they were moved.
    data_root: Annotated[DataRoot, tyro.conf.arg(aliases=["--data"])] = None
    # The --out of `python -m training.experiment`, in place of RUN.
    experiment: Annotated[Path | None, tyro.conf.arg(metavar="OUT")] = None
    # Also the experiment as Markdown with PNG plots.
    markdown: Annotated[Path | None, tyro.conf.arg(metavar="PAGE")] = None


def main(argv: Sequence[str]) -> None:
    """Reads the run or the experiment, writes its page, prints where the page is. Raises what these raise."""
    arguments = cli.parse(Arguments, argv, "training.report", __doc__)
    if (arguments.run is None) == (arguments.experiment is None):
        raise ValueError("expected either RUN or --experiment OUT")
    if arguments.run is not None and arguments.markdown is not None:
        raise ValueError("--markdown is the page of an experiment: it needs --experiment OUT")
    # Not at the top: --help and wrong arguments need not wait for matplotlib.
    from training.evaluation.experiment_result import read_summary
    from training.evaluation.run_folder import read_run
    from training.report.experiment_page import write_experiment, write_markdown
    from training.report.run_page import write_page

    if arguments.run is not None:
        run = read_run(arguments.run)
        with folder_lock(run.folder):
            print(write_page(run, arguments.data_root))
        return
    assert arguments.experiment is not None
    print(write_experiment(arguments.experiment))
    if arguments.markdown is not None:
        for path in write_markdown(read_summary(arguments.experiment), arguments.markdown):
            print(path)


if __name__ == "__main__":
    sys.exit(cli.run(main))
