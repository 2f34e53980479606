"""Trains a recipe into a run folder: `python -m training.train RECIPE --out RUN [--resume] [--FIELD VALUE ...]`.

`--config FILE` in place of RECIPE trains the configuration of another run. Exit status 75 means that a SIGTERM has ended the
training after last.pt was written: the same command with --resume continues it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from training.config import Config, command_line
from training.config.command_line import RECIPE_HELP, ConfigFile
from training.utils import cli
from training.utils.cli import Device

if TYPE_CHECKING:
    from training.engine.checkpoint import RunProgress


@dataclass(frozen=True)
class Arguments:
    """Arguments of the command."""

    # Run folder; must be new or empty.
    out: Annotated[Path, tyro.conf.arg(metavar="RUN")]
    recipe: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="[RECIPE]", help=RECIPE_HELP)] = ""
    config: ConfigFile = None
    # Continue the run in RUN after its last checkpoint; start it where nothing was written yet.
    resume: bool = False
    # With --resume and a larger --optim.epochs: train longer than the run was begun for.
    extend: bool = False
    # Start from the weights of another run; layers that do not fit are named. A run that is continued has its own.
    init: Annotated[Path | None, tyro.conf.arg(metavar="RUN")] = None
    # Estimate the memory before the first step, and stop with what would fit where it does not.
    check_memory: bool = True
    # Take the micro-batches and recomputed activations that fit, where the configuration does not.
    fit: bool = False
    # Seconds between two lines about the progress where the output is no terminal; 0 for none.
    log_seconds: float = 30.0
    device: Device = "auto"


def base_config(arguments: Arguments) -> Config:
    """The configuration that the fields on the command line change. Raises ValueError without or with two of them."""
    if arguments.recipe and arguments.config:
        raise ValueError(f"expected RECIPE or --config FILE, got both: {arguments.recipe} and {arguments.config}")
    return command_line.get_config(arguments.recipe, arguments.config)


def main(argv: Sequence[str]) -> None:
    """Entry point; raises what `train` raises."""
    arguments, config = command_line.parse(Arguments, argv, "training.train", __doc__, base_config, shared=True)
    options = {name: value for name, value in vars(arguments).items() if name not in ("out", "recipe", "config")}
    train(config, arguments.out, **options)
    # torchrun numbers its processes: one of them speaks.
    if os.environ.get("RANK", "0") == "0":
        print(f"next: python -m training.evaluate {arguments.out}")


def train(config: Config, run_dir: Path, **options: Any) -> RunProgress:
    """`engine.train_run.train_run` with the fields of its RunOptions, the checkpoint selected by the protocol `dual`; raises
    what it raises."""
    # Not at the top: --help and errors of the command line need not wait for torch.
    from training.engine.train_run import RunOptions, train_run
    from training.evaluation import dual

    return train_run(config, run_dir, dual.validate, RunOptions(**options))


if __name__ == "__main__":
    sys.exit(cli.run(main))
