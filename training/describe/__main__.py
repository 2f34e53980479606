"""`python -m training.describe COMMAND ...`: styles of captions, descriptions from a model, checks and a page to read them by."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from training.utils import cli

COMMANDS = {
    "styles": "clusters the captions of a data set by their style",
    "generate": "has two texts written for every training image",
    "check": "checks the texts of a file of descriptions",
    "page": "writes a page with images and their texts, to check by eye",
}


def main(argv: Sequence[str]) -> None:
    """Hands over to the command that the first word names. Raises ValueError for another word."""
    if not argv or argv[0] in ("-h", "--help"):
        print(__doc__.replace("COMMAND", "{" + ",".join(COMMANDS) + "}"))
        for name, does in COMMANDS.items():
            print(f"  {name:<10}{does}")
        raise SystemExit(0 if argv else 2)
    if argv[0] not in COMMANDS:
        raise ValueError(f"unknown command {argv[0]!r}, expected one of {', '.join(COMMANDS)}")
    importlib.import_module(f"training.describe.{argv[0]}").main(argv[1:])


if __name__ == "__main__":
    sys.exit(cli.run(main))
