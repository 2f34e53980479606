"""One HTML page about one run, made from the files of its folder; imports no torch."""

from training.report.page import build_page, write_page
from training.report.run import Run, read_run

__all__ = ["Run", "build_page", "read_run", "write_page"]
