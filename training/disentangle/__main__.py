"""Measures how far identity and clothing came apart: `python -m training.disentangle RUN [RUN ...]`, or the rows of a table
of an experiment, `--experiment OUT [--table readings]`.

Writes RUN/disentangle.json and RUN/disentangle.npz, from the test split and its factors.jsonl. Several runs are also
compared: those that differ in nothing but their seed share a column. `--markdown FILE` writes the comparison as a page.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from training.utils import cli
from training.utils.io import atomic, read_json


@dataclass(frozen=True)
class Arguments:
    """Arguments of the command."""

    # Run folders of `python -m training.train`.
    runs: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="[RUN ...]")] = ()
    # The --out of `python -m training.experiment`, in place of RUN.
    experiment: Annotated[Path | None, tyro.conf.arg(metavar="OUT")] = None
    # Table of the experiment.
    table: str = "readings"
    # HSIC and CKA only; needs no factors.jsonl.
    dependence_only: bool = False
    # Page that gets the comparison, between its markers.
    markdown: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None


def main(argv: Sequence[str]) -> None:
    """Entry point; raises what `disentangle` and `compare` raise."""
    arguments = cli.parse(Arguments, argv, "training.disentangle", __doc__)
    if bool(arguments.runs) == (arguments.experiment is not None):
        raise ValueError("expected either RUN folders or --experiment OUT")
    labels = _rows(arguments.experiment, arguments.table) if arguments.experiment else None
    # Not at the top: --help and wrong arguments need not wait for torch.
    from rich.console import Console
    from rich.table import Table

    from training.disentangle.compare import compare, markdown
    from training.disentangle.run import RESULT

    results = {}
    for run_dir in [run for runs in labels.values() for run in runs] if labels else arguments.runs:
        results[run_dir], new = _disentangle(run_dir, arguments.dependence_only)
        print(f"{run_dir / RESULT}{'' if new else ' (measured before)'}")
    console = Console(soft_wrap=True)
    title, parts = compare(results, {run_dir: _evaluation(run_dir) for run_dir in results}, labels)
    console.print(title, highlight=False)
    for part in parts:
        table = Table(*part.headings)
        for row in part.rows:
            table.add_row(*row)
        console.print(part.sentence, table, sep="\n", highlight=False)
    if arguments.markdown:
        path = arguments.markdown
        page = markdown(title, parts, path.read_text(encoding="utf-8") if path.exists() else None)
        with atomic(path) as file:
            file.write(page.encode())
        print(arguments.markdown)


def _rows(experiment: Path, table: str) -> dict[str, list[Path]]:
    """The run folders of each finished row of a table, by the row's label. Raises FileNotFoundError without a summary.json,
    ValueError where the experiment has no such table, or none of its rows yet."""
    path = experiment / "summary.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: run `python -m training.experiment` first")
    summary = read_json(path)
    if table not in summary["tables"]:
        raise ValueError(f"--table: {path} has no table {table!r}, expected one of {', '.join(summary['tables'])}")
    rows = [row for row in summary["tables"][table]["rows"] if row["run"] is not None]
    if not rows:
        raise ValueError(f"--table: no row of {table} in {path} is finished")
    return {row["label"]: [Path(folder) for folder in summary["runs"][row["run"]]["folders"]] for row in rows}


def _disentangle(run_dir: Path, dependence_only: bool) -> tuple[dict, bool]:
    from rich.console import Console
    from rich.progress import Progress, TextColumn

    from training.disentangle.run import disentangle

    console = Console(stderr=True)
    columns = TextColumn("{task.fields[what]}"), *Progress.get_default_columns()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=None, what=str(run_dir))

        def show(what: str, done: int, total: int) -> None:
            bar.update(task, what=f"{run_dir}: {what}", completed=done, total=total)

        return disentangle(run_dir, dependence_only=dependence_only, progress=show)


def _evaluation(run_dir: Path) -> dict | None:
    path = run_dir / "eval.json"
    return read_json(path) if path.exists() else None


if __name__ == "__main__":
    sys.exit(cli.run(main))
