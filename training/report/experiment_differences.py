"""Differences of a table's rows to its reference row: verdicts, the paper's signs, the noise floor, the machines of the runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from training.evaluation.experiment_result import COMPARED, Comparison, NoiseFloor, RowResult, TableRow
from training.evaluation.result import HEADINGS
from training.utils.machine import machine_name

Rows = Sequence[tuple[TableRow, RowResult]]
# A row, its result, our differences to the reference row, and the paper's, where it has them.
Compared = Sequence[tuple[TableRow, dict[str, Comparison], dict[str, float] | None]]


def word(row: TableRow, metric: str) -> str:
    """Verdict on a row's difference: better, worse or unsure, which it is in files of early versions too."""
    return row.verdicts[metric].word if row.verdicts else "unsure"


def signs_differ(ours: Comparison, paper: float) -> bool:
    """True where our difference has not the sign of the paper's."""
    return ours.delta == 0 or math.copysign(1, ours.delta) != math.copysign(1, paper)


def differences(compared: Compared, seeds: int) -> dict[str, Any]:
    """Title, head and rows of the table of differences; a difference that is unsure has no sign to compare."""
    head = [""]
    for metric in COMPARED:
        name = HEADINGS[metric]
        head += [f"Δ {name}", "95 % interval", "p", "p, Holm", "verdict", "seeds", f"paper's Δ {name}", "sign"]
    rows = []
    for row, comparison, paper in compared:
        cells = [row.label]
        for metric in COMPARED:
            ours, corrected = comparison[metric], row.verdicts[metric].p if row.verdicts else None
            cells += [f"{ours.delta:+.2f}", "–" if ours.low is None else f"{ours.low:+.2f} … {ours.high:+.2f}"]
            cells += ["–" if p is None else f"{p:.4f}" for p in (ours.p, corrected)]
            cells += [word(row, metric), f"{ours.same_sign} of {seeds}"]
            if paper is None:
                cells += ["–", "–"]
                continue
            sign = "opposite" if signs_differ(ours, paper[metric]) else "same"
            cells += [f"{paper[metric]:+.2f}", "unsure" if word(row, metric) == "unsure" else sign]
        rows.append(cells)
    return {"title": "Difference to the reference row, percentage points", "head": head, "rows": rows}


def noise_floor(noise: dict[str, NoiseFloor], seeds: int) -> dict[str, Any]:
    """Title, head and rows of the table of noise floors."""
    head = ["", "standard deviation over the seeds, pooled over the rows", f"smallest Δ that {seeds} seeds distinguish"]
    head.append("largest Δ of a run to the same run on another machine")
    rows = []
    for metric in COMPARED:
        floor = noise[metric]
        values = (floor.deviation, floor.distinguishable, floor.machines)
        rows.append([HEADINGS[metric], *("–" if value is None else f"{value:.2f}" for value in values)])
    return {"title": "Noise floor, percentage points", "head": head, "rows": rows}


def opposite(compared: Compared) -> tuple[list[str], int]:
    """(texts of the differences whose sign is surely not the paper's, number of those that have another sign and are
    unsure)."""
    texts, unsure = [], 0
    for row, comparison, paper in compared:
        for metric in COMPARED:
            ours = comparison[metric]
            if not paper or not signs_differ(ours, paper[metric]):
                continue
            if word(row, metric) == "unsure" or row.verdicts is None:
                unsure += 1
                continue
            p = f"p {row.verdicts[metric].p:.4f} after Holm's correction"
            here = f"{HEADINGS[metric]} {ours.delta:+.2f} here ({p})"
            texts.append(f"{row.label}: {here}, {paper[metric]:+.2f} in the paper")
    return texts, unsure


def machines(rows: Rows, seeds: Sequence[int]) -> tuple[str, bool]:
    """(sentence about the processors and threads that the runs of a table were trained on, True where they differ)."""
    runs: dict[str, dict[str, list[str]]] = {}
    for row, run in rows:
        names = run.machines or [machine_name({"threads": threads}) for threads in run.threads]
        for seed, name in zip(seeds, names, strict=True):
            runs.setdefault(name, {}).setdefault(row.label, []).append(str(seed))
    if len(runs) == 1:
        return f"All rows: {next(iter(runs))}.", False
    parts = []
    for name, labels in runs.items():
        texts = [
            label if len(ran) == len(seeds) else f"{label} (seed{'s' * (len(ran) > 1)} {', '.join(ran)})"
            for label, ran in labels.items()
        ]
        parts.append(f"{name}: {', '.join(texts)}")
    return f"The runs are from different machines, which round differently: {'; '.join(parts)}.", True
