"""The summary of an experiment as tables for a terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from training.evaluation.experiment_result import COMPARED, RowResult, Summary, Verdict
from training.evaluation.result import HEADINGS, METRICS


def print_summary(summary: Summary, console: Console) -> None:
    """Each table: metrics as mean ± standard deviation over every value, difference to the reference row with p
    after Holm's correction and verdict, cost. Rows that are not finished are "pending"."""
    for entry in summary.tables.values():
        table = Table(title=f"{entry.title}; {summary.recipe}, test split, percent")
        for name in (
            "row",
            *HEADINGS.values(),
            *(f"Δ {HEADINGS[metric]}" for metric in COMPARED),
            "training",
            "memory",
        ):
            table.add_column(name, justify="left" if name == "row" else "right")
        chances: dict[tuple[float, ...], tuple[str, dict[str, float]]] = {}
        for row in entry.rows:
            run = None if row.run is None else summary.runs[row.run]
            table.add_row(row.label, *(["pending"] if run is None else _cells(run, row.verdicts)))
            if run is not None:
                chances.setdefault(tuple(run.chance.values()), (row.label, run.chance))
        for label, chance in chances.values():
            name = "chance" if len(chances) == 1 else f"chance, {label}"
            table.add_row(name, *(f"{chance[metric]:.2f}" for metric in METRICS))
        console.print(table)
    if any(run.comparison for run in summary.runs.values()):
        console.print(summary.test, highlight=False)


def _cells(run: RowResult, verdicts: dict[str, Verdict] | None) -> list[str]:
    cells = []
    for name in METRICS:
        spread = "" if run.std[name] is None else f" ± {run.std[name]:.2f}"
        values = " ".join(f"{value:.2f}" for value in run.metrics[name])
        cells.append(f"{run.mean[name]:.2f}{spread}\n{values}")
    for name in COMPARED:
        test = run.comparison and run.comparison[name]
        verdict = verdicts and verdicts[name]
        p = "" if not verdict or verdict.p is None else f"p {verdict.p:.4f}, "
        cells.append(f"{test.delta:+.2f}\n{p}{verdict.word}" if test and verdict else "")
    training = sum(run.seconds["training"]) / len(run.seconds["training"])
    memory = [value for value in run.memory_mb.training if value is not None]
    return [*cells, f"{training:.0f} s", f"{max(memory):,.0f} MB" if memory else ""]
