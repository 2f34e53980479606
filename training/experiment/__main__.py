"""Runs tables of the paper, or a recipe, over several seeds: `python -m training.experiment table1 --seeds 0 1 2 3 4`.

A configuration that two rows or two tables share is trained once, an interrupted run is continued, the test split of each run
is evaluated once. Writes OUT/summary.json after every call; `python -m training.report --experiment OUT` writes its page.
`--results FOLDER` keeps a small file of each finished run and reads those that are there instead of training again, so
that another machine goes on where this one stops. Each run is a process of `python -m training.train`; its log,
OUT/KEY/seedN.log, begins with the command line.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from training.config import Config, command_line
from training.config.ablations import TITLES
from training.config.command_line import ConfigFile
from training.config.recipes import RECIPES
from training.experiment.plan import ALL, plan
from training.utils import cli
from training.utils.cli import Device
from training.utils.locks import folder_lock
from training.utils.preemption import preemption

if TYPE_CHECKING:
    from rich.console import Console

    from training.config.ablations import Row

# Recipe that the tables' rows start from, where none is given.
BASES = {"table5": "cuhk-pedes"}
DEFAULT_BASE = "synthetic-tables"
# Columns of the output to a file or a pipe.
WIDTH = 150
EXPERIMENT_HELP = f"one of {', '.join(TITLES)}, all ({', '.join(ALL)}), or a recipe ({', '.join(RECIPES)})"


@dataclass(frozen=True)
class Arguments:
    """Arguments of the command."""

    experiment: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="[EXPERIMENT]", help=EXPERIMENT_HELP)] = ""
    # Recipe that the rows change; synthetic-tables by default, for table5 cuhk-pedes.
    base: Annotated[str, tyro.conf.arg(metavar="RECIPE")] = ""
    config: ConfigFile = None
    # Seeds of each configuration.
    seeds: Annotated[tuple[int, ...], tyro.conf.arg(metavar="N ...")] = (0, 1, 2, 3, 4)
    # Data folder, short for --data.root ROOT; for table5 the folder that holds the folders of the data sets.
    data: Annotated[Path | None, tyro.conf.arg(metavar="ROOT")] = None
    # Folder of the runs; runs/RECIPE by default.
    out: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None
    # Only these rows, e.g. full no-gate.
    rows: Annotated[tuple[str, ...], tyro.conf.arg(metavar="ROW ...")] = ()
    # Runs at a time.
    jobs: int = 1
    # Threads of each run, equal for all rows; by default those of the runs that are finished, else an equal part of the CPUs.
    threads: int | None = None
    # Folder that keeps finished runs, 17 to 50 kB each; they are read from there instead of being trained again.
    results: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None
    device: Device = "auto"
    # Only print what would run and how long it would take.
    estimate: bool = False
    # Train nothing: only write the summary of the runs that are finished.
    finished: bool = False


def main(argv: Sequence[str]) -> None:
    """Entry point; raises what `plan`, `missing_jobs` and `run_experiment` raise."""
    arguments, base = command_line.parse(Arguments, argv, "training.experiment", __doc__, _base_of)
    experiment, data = arguments.experiment, arguments.data
    if data and experiment != "table5":
        base = replace(base, data=replace(base.data, root=str(data)))
    out = arguments.out or Path(f"runs/{base.recipe}")
    titles, rows = plan(experiment, base, data, arguments.rows, out)
    if arguments.jobs < 1:
        raise ValueError(f"--jobs must be at least 1, got {arguments.jobs}")
    if arguments.threads is not None and arguments.threads < 1:
        raise ValueError(f"--threads must be at least 1, got {arguments.threads}")
    if not arguments.seeds or len(set(arguments.seeds)) != len(arguments.seeds):
        raise ValueError(f"--seeds must be different numbers, got {list(arguments.seeds)}")
    if arguments.estimate and arguments.finished:
        raise ValueError("--estimate says how long the missing runs take, --finished leaves them out: give one of them")
    # Not at the top: --help and errors of the command line need not wait for torch.
    from training.engine.device import select_device
    from training.utils.terminal import make_console

    select_device(arguments.device)
    console = make_console()
    if not console.is_terminal:
        # A file or a pipe has room for whole rows.
        console = make_console(width=WIDTH)
    command = shlex.join(["python", "-m", "training.experiment", *argv])
    # A SIGTERM ends this process by an exception, so that the runs in progress get one too and save.
    with preemption(), folder_lock(out):
        _run(arguments, base, out, titles, rows, command, console)


def _run(
    arguments: Arguments,
    base: Config,
    out: Path,
    titles: dict[str, str],
    rows: list[Row],
    command: str,
    console: Console,
) -> None:
    """Runs what is missing and prints the summary."""
    import torch

    from training.experiment.child_process import run_command
    from training.experiment.jobs import missing_jobs, threads_of
    from training.experiment.kept_runs import exchange
    from training.experiment.scheduler import run_experiment
    from training.experiment.style_texts import with_texts
    from training.experiment.summary_table import print_summary
    from training.models.pretrained import with_image_size

    # The key of a run is that of the whole configuration, the size of its images included.
    base, rows = with_image_size(base), [replace(row, config=with_image_size(row.config)) for row in rows]
    jobs = arguments.jobs
    rows = with_texts(rows, console)
    if arguments.results:
        exchange(rows, arguments.seeds, out, arguments.results, console)
    known = arguments.threads or threads_of(rows, arguments.seeds, out)
    threads = known or max(1, torch.get_num_threads() // jobs)
    console.print(f"{threads} threads a run, {jobs} at a time", highlight=False)
    launch = partial(run_command, threads=threads)
    ask = partial(missing_jobs, rows, arguments.seeds, out, console, launch, jobs, arguments.device)
    missing = [] if arguments.finished else ask()
    if arguments.estimate:
        return
    run = partial(run_experiment, launch=launch, parallel=jobs, command=command, results=arguments.results)
    summary = run(missing, rows, titles, arguments.seeds, out, base, console)
    print_summary(summary, console)
    print(out / "summary.json")


def _base_of(arguments: Arguments) -> Config:
    """The configuration that a command line starts from. Raises ValueError where --base has no table to go with."""
    experiment, base = arguments.experiment, arguments.base
    if experiment in (*TITLES, "all"):
        return command_line.get_config(base or BASES.get(experiment, DEFAULT_BASE), arguments.config)
    if base:
        raise ValueError(f"--base is for {', '.join(TITLES)} and all, got it with {experiment!r}")
    return command_line.get_config(experiment, arguments.config)


if __name__ == "__main__":
    sys.exit(cli.run(main))
