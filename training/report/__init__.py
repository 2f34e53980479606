"""Pages about one run or one experiment, made from the files of its folder; imports no torch."""

from training.report.experiment_page import build_experiment, read_experiment, write_experiment, write_markdown
from training.report.run_files import Run, read_run
from training.report.run_page import build_page, write_page

__all__ = [
    "Run",
    "build_experiment",
    "build_page",
    "read_experiment",
    "read_run",
    "write_experiment",
    "write_markdown",
    "write_page",
]
