"""Styles of captions, generated descriptions, their checks, and a page about them."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from training.utils import cli

COMMANDS = {
    "styles": ("training.describe.styles.command", "clusters the captions of a data set by their style"),
    "generate": ("training.describe.generate", "generates two texts for every training image"),
    "export-requests": (
        "training.describe.batches.export_requests",
        "writes the requests of `generate` as files of a batch service or of `vllm run-batch`",
    ),
    "import-answers": ("training.describe.batches.import_answers", "reads the answers to exported requests"),
    "check": ("training.describe.check", "checks the texts of a file of descriptions"),
    "page": ("training.describe.page", "writes a page with images and their texts, for inspection"),
}


def main(argv: Sequence[str]) -> None:
    """Runs the command that the first word names, or lists all. Raises ValueError for an unknown name."""
    cli.dispatch(COMMANDS, argv, "training.describe", __doc__)


if __name__ == "__main__":
    sys.exit(cli.run(main))
