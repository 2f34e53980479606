"""Measures the disentanglement of identity and clothing: `python -m training.disentangle RUN [RUN ...]`, or the rows of a table
of an experiment, `--experiment OUT [--table readings]`.

Writes RUN/disentangle.json and RUN/disentangle.npz, from the test split and its factors.jsonl. Several runs are also
compared: runs that differ only in their seed share a column. `--markdown FILE` writes the comparison as a page. Under torchrun
the processes compute features in turn, to the same numbers.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from training.utils import cli
from training.utils.cli import DataRoot, Device
from training.utils.io import write_bytes

if TYPE_CHECKING:
    from training.evaluation.disentangle_result import Disentanglement


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
    data_root: DataRoot = None
    device: Device = "auto"


def main(argv: Sequence[str]) -> None:
    """Entry point; raises what `disentangle` and `compare` raise."""
    arguments = cli.parse(Arguments, argv, "training.disentangle", __doc__, shared=True)
    if bool(arguments.runs) == (arguments.experiment is not None):
        raise ValueError("expected either RUN folders or --experiment OUT")
    labels = _rows(arguments.experiment, arguments.table) if arguments.experiment else None
    # Not at the top: --help and wrong arguments need not wait for torch.
    from training.engine.distributed.shared_work import shared_work
    from training.evaluation.disentangle_result import RESULT

    results = {}
    with shared_work(arguments.device) as (ranks, device):
        for run_dir in [run for runs in labels.values() for run in runs] if labels else arguments.runs:
            options = {"data_root": arguments.data_root, "device": device, "ranks": ranks}
            results[run_dir], new = _disentangle(run_dir, arguments.dependence_only, **options)
            print(f"{run_dir / RESULT}{'' if new else ' (measured before)'}")
    if ranks.first:
        _compare(results, labels, arguments.markdown)


def _compare(
    results: dict[Path, Disentanglement], labels: dict[str, list[Path]] | None, page_path: Path | None
) -> None:
    """Prints the comparison of the runs, and writes it into a page."""
    from rich.table import Table

    from training.disentangle.compare import compare, markdown
    from training.evaluation.run_folder import Run
    from training.utils.terminal import make_console

    console = make_console()
    evaluations = {folder: run.evaluation if (run := Run(folder)).is_finished else None for folder in results}
    title, parts = compare(results, evaluations, labels)
    console.print(title, highlight=False)
    for part in parts:
        table = Table(*part.headings)
        for row in part.rows:
            table.add_row(*row)
        console.print(part.sentence, table, sep="\n", highlight=False)
    if page_path:
        page = markdown(title, parts, page_path.read_text(encoding="utf-8") if page_path.exists() else None)
        print(write_bytes(page_path, page.encode()))


def _rows(experiment: Path, table: str) -> dict[str, list[Path]]:
    """Run folders of each finished row of a table that has two branches, by the label of the row. Raises FileNotFoundError
    without summary.json, ValueError for a table that the experiment does not have or none of whose rows is finished."""
    from training.evaluation.experiment_result import SUMMARY, read_summary

    summary, path = read_summary(experiment), experiment / SUMMARY
    if table not in summary.tables:
        raise ValueError(f"--table: {path} has no table {table!r}, expected one of {', '.join(summary.tables)}")
    finished = {row.label: summary.runs[row.run] for row in summary.tables[table].rows if row.run is not None}
    # The floor has one embedding and nothing to compare it with.
    runs = {label: run for label, run in finished.items() if run.changes.get("model.architecture") != "dual-encoder"}
    if not runs:
        raise ValueError(f"--table: no row of {table} in {path} is finished")
    return {label: [Path(folder) for folder in run.folders] for label, run in runs.items()}


def _disentangle(run_dir: Path, dependence_only: bool, **options: Any) -> tuple[Disentanglement, bool]:
    """(result of a run, True if measured now); a run that another machine has done and kept has its result and no checkpoint."""
    from training.disentangle.run import disentangle
    from training.evaluation.run_folder import Run
    from training.utils.terminal import make_console, make_progress

    if (kept := Run(run_dir)).is_finished and not (run_dir / "best.pt").exists() and kept.disentanglement:
        return kept.disentanglement, False

    with make_progress(make_console(stderr=True), "{task.fields[step]}") as bar:
        task = bar.add_task("", total=None, step=str(run_dir))

        def show(step: str, done: int, total: int) -> None:
            bar.update(task, step=f"{run_dir}: {step}", completed=done, total=total)

        return disentangle(run_dir, dependence_only=dependence_only, progress=show, **options)


if __name__ == "__main__":
    sys.exit(cli.run(main))
