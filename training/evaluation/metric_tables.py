"""The metrics of an evaluation as tables for a terminal."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from training.evaluation.audit_guard import refuse_audit
from training.evaluation.metrics import METRICS
from training.evaluation.run_evaluation import DIGITS

HEADINGS = {"R1": "R-1", "R5": "R-5", "R10": "R-10", "mAP": "mAP", "mINP": "mINP"}


def print_protocol(evaluation: dict[str, Any], console: Console) -> None:
    """Metrics of another protocol than dual, with what stands beside them; one line for paired-audit, never a table."""
    audit = evaluation.get("metrics_audit")
    if audit is not None:
        values = ", ".join(f"{HEADINGS[name]} {audit[name]:.2f}" for name in METRICS)
        console.print(
            f"paired-audit, not a text-to-image result: {values}; chance R-1 {evaluation['chance']['R1']:.2f}"
        )
        return
    names = {"metrics": evaluation["protocol"]} | {
        key: key.removeprefix("metrics_") for key in evaluation if key.startswith("metrics_")
    }
    parameters = ", ".join(f"{key} {value:g}" for key, value in evaluation["parameters"].items())
    _print_rows(
        evaluation,
        {label: evaluation[key] for key, label in names.items()},
        f" ({parameters})" * bool(parameters),
        console,
    )
    if "texts" in evaluation:
        path, sha256 = evaluation["texts"]["path"], evaluation["texts"]["sha256"]
        console.print(f"identity texts: {path}, SHA-256 {sha256[:DIGITS]}...", highlight=False, markup=False)
    if evaluation.get("note"):
        console.print(evaluation["note"])


def print_table(evaluation: dict[str, Any], console: Console) -> None:
    """Metrics of the test split at the chosen beta and at beta 0, chance, and the ratio of the first to chance."""
    refuse_audit(evaluation, "this evaluation")
    rows = {f"beta {evaluation['beta']:g} (validation)": evaluation["metrics"], "beta 0": evaluation["metrics_beta0"]}
    _print_rows(evaluation, rows, "", console)


def _print_rows(evaluation: dict[str, Any], rows: dict[str, dict[str, float]], what: str, console: Console) -> None:
    """One row of metrics each, chance, and the ratio of the first row to chance."""
    counts, chance = evaluation["counts"], evaluation["chance"]
    title = f"test{what}: {counts['queries']} queries, {counts['gallery']} images, {counts['ids']} identities"
    table = Table(title=title)
    table.add_column("percent")
    for name in METRICS:
        table.add_column(HEADINGS[name], justify="right")
    for label, values in (rows | {"chance": chance}).items():
        table.add_row(label, *(f"{values[name]:.2f}" for name in METRICS))
    first = next(iter(rows.values()))
    table.add_row("times chance", *(f"{first[name] / chance[name]:.1f}" for name in METRICS))
    console.print(table)
    if evaluation["ties"]:
        console.print("Tied scores occur: the values are expectations over the order of tied images.")
