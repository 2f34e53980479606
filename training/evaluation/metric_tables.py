"""Metrics of an evaluation as tables for a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields

from rich.console import Console
from rich.table import Table

from training.evaluation.audit_guard import refuse_audit
from training.evaluation.diagnosis.diagnosis_result import Diagnosis
from training.evaluation.result import (
    HEADINGS,
    METRICS,
    Evaluation,
    Metrics,
    OracleBounds,
    ProtocolEvaluation,
    beta_text,
)
from training.evaluation.run_evaluation import DIGITS
from training.utils.io import encode


def print_protocol(evaluation: ProtocolEvaluation, console: Console) -> None:
    """Prints the metrics of a protocol other than dual and those reported beside it; paired-audit as a line, not a table."""
    audit = evaluation.metrics_audit
    if audit is not None:
        values = ", ".join(f"{HEADINGS[name]} {audit[name]:.2f}" for name in METRICS)
        console.print(f"paired-audit, not a text-to-image result: {values}; chance R-1 {evaluation.chance['R1']:.2f}")
        return
    names = [f.name for f in fields(evaluation) if f.name.startswith("metrics")]
    rows = {name.removeprefix("metrics_"): values for name in names if (values := getattr(evaluation, name))}
    parameters = ", ".join(f"{key} {value:g}" for key, value in evaluation.parameters.items())
    rows = {evaluation.protocol: rows.pop("metrics"), **rows}
    _print_rows(evaluation, rows, f" ({parameters})" * bool(parameters), console)
    if evaluation.texts is not None:
        texts = evaluation.texts
        console.print(
            f"identity texts: {texts.path}, SHA-256 {texts.sha256[:DIGITS]}...", highlight=False, markup=False
        )
    if evaluation.note:
        console.print(evaluation.note)


def print_table(evaluation: Evaluation, console: Console, oracle: OracleBounds | None = None) -> None:
    """Prints the metrics of the test split at the chosen beta and at beta 0, those of an oracle, chance, and the ratio of the
    first to chance."""
    rows = {f"beta {beta_text(evaluation.beta)} (validation)": evaluation.metrics}
    rows |= {"beta 0": evaluation.metrics_beta0} if evaluation.beta else {}
    rows |= {} if oracle is None else oracle.rows
    _print_rows(evaluation, rows, "", console)


def print_diagnosis(diagnosis: Diagnosis, console: Console) -> None:
    """Prints how many values of a diagnosis are within their bounds, and each that is not."""
    values = diagnosis.values()
    known = [bound for bound in diagnosis.bounds() if bound.key in values]
    wrong = [bound for bound in known if not bound.holds(values[bound.key])]
    console.print(f"diagnosis: {len(known) - len(wrong)} of {len(known)} values within their bounds", highlight=False)
    for bound in wrong:
        value = f"{values[bound.key]:.3g}{bound.unit}"
        console.print(f"  {bound.name}: {value}, expected {bound.limits()}", highlight=False, markup=False, style="red")


def _print_rows(
    evaluation: Evaluation | ProtocolEvaluation, rows: Mapping[str, Metrics], parameters: str, console: Console
) -> None:
    """Prints rows of metrics, chance, and the ratio of the first row to chance."""
    refuse_audit(encode(evaluation), "this evaluation")
    counts, chance = evaluation.counts, evaluation.chance
    title = f"test{parameters}: {counts.queries} queries, {counts.gallery} images, {counts.ids} identities"
    table = Table(title=title)
    table.add_column("percent")
    for heading in HEADINGS.values():
        table.add_column(heading, justify="right")
    for label, values in {**rows, "chance": chance}.items():
        table.add_row(label, *(f"{values[name]:.2f}" for name in METRICS))
    first = next(iter(rows.values()))
    table.add_row("times chance", *(f"{first[name] / chance[name]:.1f}" for name in METRICS))
    console.print(table)
    if evaluation.ties:
        console.print("Tied scores occur: the values are expectations over the order of tied images.")
