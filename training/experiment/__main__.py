"""Runs tables of the paper, or a recipe, over several seeds: `python -m training.experiment table1 --seeds 0 1 2`.

What is there already is kept: a configuration that two rows or two tables share is trained once, a run that was
interrupted is continued, the test split of each run is evaluated once. Writes OUT/summary.json after every run; the page
is `python -m training.report --experiment OUT`.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from training.config import Config, to_dict
from training.config.ablations import ABLATIONS, FULL, TITLES, Row, table_rows
from training.config.recipes import RECIPES
from training.data.datasets import read_dataset
from training.evaluation.metrics import METRICS
from training.experiment import isolated
from training.experiment import jobs as runner
from training.experiment.scheduler import Launch, Run, minutes, run_all
from training.experiment.style_texts import with_texts
from training.experiment.summary import is_finished, run_folder, summarise
from training.utils import cli
from training.utils.io import read_json, write_json

HEADINGS = {"R1": "R-1", "R5": "R-5", "R10": "R-10", "mAP": "mAP", "mINP": "mINP"}
# Recipe that the tables' rows start from, where none is given.
BASES = {"table5": "cuhk-pedes"}
DEFAULT_BASE = "synthetic-tables"
# Tables of the experiment "all": those whose rows share one data set and its texts.
ALL = tuple(table for table in ABLATIONS if table != "table4")
# Columns of what is written into a file or a pipe.
WIDTH = 150
# Seconds that a run's two processes need to import everything.
IMPORTS = 10.0


def main(argv: Sequence[str]) -> None:
    """Entry point; raises what `run_experiment` raises."""
    parser = cli.parser("experiment", __doc__)
    names = f"{', '.join(TITLES)}, all ({', '.join(ALL)}), or a recipe ({', '.join(RECIPES)})"
    parser.add_argument("experiment", metavar="EXPERIMENT", help=f"one of {names}")
    base_help = f"recipe that the rows change; default: {DEFAULT_BASE}, for table5 {BASES['table5']}"
    parser.add_argument("--base", metavar="RECIPE", help=base_help)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="N", help="default: 0 1 2")
    data_help = "data folder, short for --data.root ROOT; for table5 the folder that holds the data sets' folders"
    parser.add_argument("--data", metavar="ROOT", help=data_help)
    parser.add_argument("--out", metavar="FOLDER", help="folder of the runs; default: runs/RECIPE")
    parser.add_argument("--rows", nargs="+", metavar="ROW", help="only these rows, e.g. full no-gate")
    jobs_help = "runs at a time, each with an equal part of the threads; default: 1"
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help=jobs_help)
    parser.add_argument("--estimate", action="store_true", help="only say what would run and how long it would take")
    known, base = cli.parse(parser, argv, _base_of)
    if known.data and known.experiment != "table5":
        base = replace(base, data=replace(base.data, root=known.data))
    out, console = Path(known.out or f"runs/{base.recipe}"), Console(soft_wrap=True)
    titles, rows = plan(known.experiment, base, Path(known.data) if known.data else None, known.rows, out)
    if not console.is_terminal:
        # A file or a pipe has room for whole rows.
        console = Console(soft_wrap=True, width=WIDTH)
    if known.jobs < 1:
        raise ValueError(f"--jobs must be at least 1, got {known.jobs}")
    rows = with_texts(rows, console)
    launch = partial(isolated.isolated, threads=max(1, torch.get_num_threads() // known.jobs))
    runs = missing_runs(rows, known.seeds, out, console, launch, known.jobs)
    if known.estimate:
        return
    command = shlex.join(["python", "-m", "training.experiment", *argv])
    summary = run_experiment(
        runs, rows, titles, known.seeds, out, base, console, launch=launch, jobs=known.jobs, command=command
    )
    print_summary(summary, console)
    print(out / "summary.json")


def _base_of(known: argparse.Namespace) -> str:
    """The recipe that a command line starts from. Raises ValueError where --base has no table to go with."""
    if known.experiment in (*TITLES, "all"):
        return known.base or BASES.get(known.experiment, DEFAULT_BASE)
    if known.base:
        raise ValueError(f"--base is for {', '.join(TITLES)} and all, got it with {known.experiment!r}")
    return known.experiment


def plan(
    experiment: str,
    base: Config,
    data_sets: Path | None = None,
    only: Sequence[str] | None = None,
    out: Path | None = None,
) -> tuple[dict[str, str], list[Row]]:
    """(title of each table, rows) of an experiment: one of TITLES, "all", or the name of the recipe `base`.

    only: names of the rows to keep, in the tables that have one beside the full model. data_sets, out: see
    `tables.table_rows`. Raises ValueError for a name that no row has.
    """
    if experiment == "all":
        tables = [*ALL]
    elif experiment in TITLES:
        tables = [experiment]
    else:
        return {"recipe": base.recipe}, [Row("recipe", FULL, base.recipe, base)]
    rows = table_rows(tables, base, data_sets, out)
    for name in only or ():
        if name not in {row.name for row in rows}:
            known = dict.fromkeys(row.name for row in rows)
            raise ValueError(f"--rows: {experiment} has no row {name!r}, expected some of {', '.join(known)}")
    kept = [row for row in rows if not only or row.name in only]
    # The full model belongs to most tables; one that has lost all its other rows says nothing.
    told = {row.table for row in kept if row.name != FULL} or {*tables}
    return {table: TITLES[table] for table in tables if table in told}, [row for row in kept if row.table in told]


def missing_runs(
    rows: Sequence[Row], seeds: Sequence[int], out: Path, console: Console, launch: Launch, jobs: int = 1
) -> list[Run]:
    """The runs that are not finished, once for each configuration and seed, with the seconds that each will take; says so,
    and how long all take, `jobs` at a time.

    A configuration that another seed has finished will take as long as that; others are timed for a few steps. Raises
    ValueError for a seed given twice, and what reading the data and a training step raise.
    """
    if len(set(seeds)) != len(seeds):
        raise ValueError(f"--seeds must be different, got {list(seeds)}")
    # The first row of several that share a run names it.
    configurations: dict[str, Row] = {}
    for row in rows:
        configurations.setdefault(row.key, row)
    everything = [Run(row, seed, run_folder(out, row.key, seed)) for row in configurations.values() for seed in seeds]
    runs = [run for run in everything if not is_finished(run.folder)]
    done = len(everything) - len(runs)
    text = f"{len(rows)} rows are {len(configurations)} configurations x {len(seeds)} seeds = {len(everything)} runs"
    console.print(f"{text}; {done} are there, {len(runs)} to run", highlight=False)
    for data in {run.row.config.data for run in runs}:
        # Data that cannot be read is found out before anything is written.
        read_dataset(data)
    if runs:
        seconds = _estimate({run.row.key: run.row for run in runs}, seeds, out, launch)
        runs = [run._replace(seconds=seconds[run.row.key]) for run in runs]
        total = sum(run.seconds for run in runs)
        longest = max(runs, key=lambda run: run.seconds)
        each = f"{total / len(runs):.0f} s each, at most {longest.seconds:.0f} s ({longest.row.label})"
        text = f"about {minutes(total / jobs)} in all: {each}{f', {jobs} at a time' if jobs > 1 else ''}"
        console.print(f"{text}; {out} can be continued at any time", highlight=False)
    return runs


def _estimate(rows: dict[str, Row], seeds: Sequence[int], out: Path, launch: Launch) -> dict[str, float]:
    finished = {
        key: read_json(folder / "eval.json")["seconds"]
        for key in rows
        for seed in seeds
        if is_finished(folder := run_folder(out, key, seed))
    }
    unknown = [key for key in rows if key not in finished]
    out.mkdir(parents=True, exist_ok=True)
    timed = [to_dict(rows[key].config) for key in unknown]
    measured = launch(runner.time_configurations, timed, log=out / "timing.log") if timed else []
    parts = finished | dict(zip(unknown, measured, strict=True))
    return {key: IMPORTS + sum(parts[key].values()) for key in rows}


def run_experiment(
    runs: Sequence[Run],
    rows: Sequence[Row],
    titles: dict[str, str],
    seeds: Sequence[int],
    out: Path,
    base: Config,
    console: Console,
    *,
    launch: Launch,
    jobs: int = 1,
    command: str = "",
) -> dict[str, Any]:
    """Does the missing `runs` and returns the contents of OUT/summary.json (summary.summarise, and the command).

    The summary is written too when a run fails, over what is finished. Raises RuntimeError naming the run that failed.
    """
    try:
        run_all(runs, console, launch, jobs)
    finally:
        out.mkdir(parents=True, exist_ok=True)
        summary = {"command": command} | summarise(rows, titles, seeds, out, base)
        write_json(out / "summary.json", summary)
    return summary


def print_summary(summary: dict[str, Any], console: Console) -> None:
    """Each table: metrics as mean ± standard deviation over every value, difference to the full model with its paired test,
    cost. Rows that are not finished say so."""
    for entry in summary["tables"].values():
        table = Table(title=f"{entry['title']}; {summary['recipe']}, test split, percent")
        for name in ("row", *HEADINGS.values(), "Δ R-1", "Δ mAP", "training", "memory"):
            table.add_column(name, justify="left" if name == "row" else "right")
        chances: dict[tuple[float, ...], tuple[str, dict[str, float]]] = {}
        for row in entry["rows"]:
            run = summary["runs"].get(row["run"])
            table.add_row(row["label"], *(["not there yet"] if run is None else _cells(run)))
            if run is not None:
                chances.setdefault(tuple(run["chance"].values()), (row["label"], run["chance"]))
        for label, chance in chances.values():
            name = "chance" if len(chances) == 1 else f"chance, {label}"
            table.add_row(name, *(f"{chance[metric]:.2f}" for metric in METRICS))
        console.print(table)
    if any(run["comparison"] for run in summary["runs"].values()):
        console.print(summary["test"], highlight=False)


def _cells(run: dict[str, Any]) -> list[str]:
    cells = []
    for name in METRICS:
        spread = "" if run["std"][name] is None else f" ± {run['std'][name]:.2f}"
        values = " ".join(f"{value:.2f}" for value in run["metrics"][name])
        cells.append(f"{run['mean'][name]:.2f}{spread}\n{values}")
    for name in ("R1", "mAP"):
        test = run["comparison"] and run["comparison"][name]
        p = "" if not test or test["p"] is None else f"\np {test['p']:.4f}"
        cells.append(f"{test['delta']:+.2f}{p}" if test else "")
    training = sum(run["seconds"]["training"]) / len(run["seconds"]["training"])
    memory = [value for value in run["memory_mb"]["training"] if value is not None]
    return [*cells, f"{training:.0f} s", f"{max(memory):,.0f} MB" if memory else ""]


if __name__ == "__main__":
    sys.exit(cli.run(main))
