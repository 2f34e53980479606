"""Tables of the retrieval protocols: those of a run as rows, those of an experiment as columns."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from training.config.ablations import PROTOCOLS
from training.evaluation.experiment_result import COMPARED, Comparison, MetricValues, RowResult, TableRow
from training.evaluation.protocols.protocol_names import BESIDE_DUAL
from training.evaluation.result import HEADINGS, METRICS, Metrics, beta_text
from training.evaluation.run_folder import Run
from training.evaluation.significance import holm

# Ceiling of each protocol: the label of an oracle's row. The words of other clothes would mislead one in `other-outfit`.
CEILINGS = {
    "dual": "oracle, all words",
    "rerank": "oracle, all words",
    "identity": "oracle, identity texts",
    "other-outfit": "oracle, identity words, other outfits",
}


def of_run(run: Run) -> dict[str, Any]:
    """{"rows": name, note, metrics, chance of R-1 and of mAP, queries as text; "missing": protocols without a result}."""
    evaluation = run.evaluation
    counted = (evaluation.chance, evaluation.counts.queries)
    rows = [_row("dual", f"caption, β = {beta_text(evaluation.beta)}", evaluation.metrics, *counted)]
    for name, result in run.protocols.items():
        kept, metrics = (result.chance, result.counts.queries), result.metrics
        # An audit, which has none, is never read into `protocols`.
        assert metrics is not None
        if name == "rerank":
            rows.append(_row(name, f"caption, the best {result.parameters['k']:g} again by the fusion", metrics, *kept))
        elif name == "identity":
            rows.append(_row(name, "identity text, identity embedding only", metrics, *kept))
        else:
            outs = f"; {result.left_out:,} left out" if result.left_out else ""
            beta = f"β = {beta_text(result.parameters['beta'])}"
            rows.append(_row(name, f"caption, the person in other clothes{outs}, {beta}", metrics, *kept))
            if result.metrics_beta0 is not None:
                rows.append(_row(name, "the same, β = 0", result.metrics_beta0, *kept))
    return {"rows": rows, "missing": [name for name in BESIDE_DUAL if name not in run.protocols]}


def _row(name: str, note: str, metrics: Metrics, chance: Metrics, queries: int) -> dict[str, Any]:
    cells = [f"{metrics[m]:.2f}" for m in METRICS] + [f"{chance[m]:.2f}" for m in COMPARED] + [f"{queries:,}"]
    return {"name": name, "note": note, "cells": cells}


def of_table(
    table: str, rows: Sequence[tuple[TableRow, RowResult]], oracle: dict[str, Metrics]
) -> list[dict[str, Any]]:
    """Parts of a page: R-1 and mAP of each row by the protocols of the table, chance and ceiling, and the gain of rerank;
    nothing where only dual was measured. oracle: metrics by the label of an oracle's row."""
    wanted = PROTOCOLS.get(table, ())
    results = [run.protocols or {} for _, run in rows]
    names = [name for name in BESIDE_DUAL if name in wanted and any(name in values for values in results)]
    if not names:
        return []
    head = [f"{name} {HEADINGS[metric]}" for name in ("dual", *names) for metric in COMPARED]
    cells = []
    for (row, run), values in zip(rows, results, strict=True):
        measured = [run.metrics, *(values[n].metrics if n in values else None for n in names)]
        cells.append([row.label, *(_spread(each, metric) for each in measured for metric in COMPARED)])
    chances = [rows[0][1].chance, *(next(values[n].chance for values in results if n in values) for n in names)]
    cells.append(["chance", *(f"{chance[metric]:.2f}" for chance in chances for metric in COMPARED)])
    if oracle:
        ceilings = [oracle.get(CEILINGS[name]) for name in ("dual", *names)]
        cells.append(["oracle", *(f"{each[m]:.2f}" if each else "–" for each in ceilings for m in COMPARED)])
    title = "By protocol, percent, mean ± standard deviation: those in which the rows can differ"
    parts = [{"title": title, "head": ["", *head], "rows": cells}]
    gains = {row.label: c for row, run in rows if (c := _gain_of_rerank(run)) is not None}
    return [*parts, _rerank_part(gains)] if gains else parts


def _gain_of_rerank(run: RowResult) -> dict[str, Comparison] | None:
    rerank = (run.protocols or {}).get("rerank")
    return rerank.against_dual if rerank else None


def _rerank_part(gains: dict[str, dict[str, Comparison]]) -> dict[str, Any]:
    """Part of a page: difference of rerank to dual in the same runs; p is Holm's over the rows."""
    cells = {label: [label] for label in gains}
    for metric in COMPARED:
        corrected = holm([gain[metric].p for gain in gains.values()])
        for (label, gain), p in zip(gains.items(), corrected, strict=True):
            ours = gain[metric]
            interval = "–" if ours.low is None else f"{ours.low:+.2f} … {ours.high:+.2f}"
            cells[label] += [f"{ours.delta:+.2f}", interval, "–" if p is None else f"{p:.4f}"]
    head = [text for m in COMPARED for text in (f"Δ {HEADINGS[m]}", "95 % interval", "p, Holm")]
    return {"title": "rerank minus dual, percentage points", "head": ["", *head], "rows": [*cells.values()]}


def _spread(values: MetricValues | None, metric: str) -> str:
    if values is None:
        return "–"
    several = f" ± {statistics.stdev(values[metric]):.2f}" if len(values[metric]) > 1 else ""
    return f"{statistics.fmean(values[metric]):.2f}{several}"
