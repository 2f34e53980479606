"""`python -m training.describe COMMAND ...`: styles of captions, generated descriptions, their checks, and a page about them."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from training.utils import cli

COMMANDS = {
    "styles": "clusters the captions of a data set by their style",
    "generate": "generates two texts for every training image",
    "check": "checks the texts of a file of descriptions",
    "page": "writes a page with images and their texts, for inspection",
}


def main(argv: Sequence[str]) -> None:
    """Runs the command named by the first word. Raises ValueError for an unknown one."""
    if not argv or argv[0] in ("-h", "--help"):
        print(__doc__.replace("COMMAND", "{" + ",".join(COMMANDS) + "}"))
        for name, does in COMMANDS.items():
            print(f"  {name:<10}{does}")
        raise SystemExit(0 if argv else 2)
    if argv[0] not in COMMANDS:
        raise ValueError(f"unknown command {argv[0]!r}, expected one of {', '.join(COMMANDS)}")
    module = "styles.command" if argv[0] == "styles" else argv[0]
    importlib.import_module(f"training.describe.{module}").main(argv[1:])


if __name__ == "__main__":
    sys.exit(cli.run(main))
