"""Trains a recipe into a run folder: `python -m training.train RECIPE --out RUN [--resume] [--FIELD VALUE ...]`.

`--config FILE` in place of RECIPE trains the configuration of another run.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from training.config import Config, command_line
from training.config.command_line import RECIPE_HELP, ConfigFile
from training.utils import cli
from training.utils.cli import Device

if TYPE_CHECKING:
    from training.engine.trainer import RunProgress


@dataclass(frozen=True)
class Arguments:
    """Arguments of the command."""

    # Run folder; must be new or empty.
    out: Annotated[Path, tyro.conf.arg(metavar="RUN")]
    recipe: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="[RECIPE]", help=RECIPE_HELP)] = ""
    config: ConfigFile = None
    # Continue the run in RUN after its last checkpoint.
    resume: bool = False
    device: Device = "auto"


def base_config(arguments: Arguments) -> Config:
    """The configuration that the fields on the command line change. Raises ValueError without or with two of them."""
    if arguments.recipe and arguments.config:
        raise ValueError(f"expected RECIPE or --config FILE, got both: {arguments.recipe} and {arguments.config}")
    return command_line.get_config(arguments.recipe, arguments.config)


def main(argv: Sequence[str]) -> None:
    """Entry point; raises what `train` raises."""
    arguments, config = command_line.parse(Arguments, argv, "training.train", __doc__, base_config)
    train(config, arguments.out, resume=arguments.resume, device=arguments.device)
    print(f"next: python -m training.evaluate {arguments.out}")


def train(config: Config, run_dir: Path, *, resume: bool = False, device: str = "auto") -> RunProgress:
    """`engine.train_run.train_run`, the checkpoint selected by the protocol `dual`; raises what it raises."""
    # Not at the top: --help and errors of the command line need not wait for torch.
    from training.engine.train_run import train_run
    from training.evaluation import dual

    return train_run(config, run_dir, dual.validate, resume=resume, device=device)


if __name__ == "__main__":
    sys.exit(cli.run(main))
