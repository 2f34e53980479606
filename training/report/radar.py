"""Fig. 5: what each form of fusion costs and finds, a radar with the measured values beside it.

The input are runs as training.experiment.summary writes them, by the label of their row in the table "fig5".
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

TABLE = "fig5"
Run = dict[str, Any]


@dataclass(frozen=True)
class Axis:
    """A quantity of a run; of each the best row is 1 on the radar."""

    name: str
    better: str  # less, more
    read: Callable[[Run], float | None]
    show: Callable[[float], str]


def _total(key: str) -> Callable[[Run], float | None]:
    return lambda run: float(run[key]["total"]) if run[key] else None


def _speed(kind: str) -> Callable[[Run], float | None]:
    return lambda run: statistics.median(s["median"] for s in run["speed"][kind]) if run["speed"][kind] else None


AXES = (
    Axis("parameters", "less", _total("parameters"), "{:,.0f}".format),
    Axis("MFLOP a pair", "less", _total("flops"), lambda value: f"{value / 1e6:,.3f}"),
    Axis("MB of memory", "less", lambda run: max(run["memory_mb"]["evaluation"]), "{:,.0f}".format),
    Axis("images/s", "more", _speed("images"), "{:,.0f}".format),
    Axis("pairs/s", "more", _speed("pairs"), "{:,.0f}".format),
    Axis("mAP", "more", lambda run: run["mean"]["mAP"], "{:.2f}".format),
)


def normalise(runs: Mapping[str, Run]) -> tuple[list[str], dict[str, list[float]]]:
    """Names of the axes of which every run has a value above zero, and each run's values: best / own where less is
    better, own / best where more is."""
    names, series = [], {label: [] for label in runs}  # type: tuple[list[str], dict[str, list[float]]]
    for axis in AXES:
        values = {label: value for label, run in runs.items() if (value := axis.read(run)) is not None and value > 0}
        if len(values) < len(runs):
            continue
        names.append(axis.name)
        best = min(values.values()) if axis.better == "less" else max(values.values())
        for label, value in values.items():
            series[label].append(best / value if axis.better == "less" else value / best)
    return names, series


def radar(runs: Mapping[str, Run]) -> dict[str, Any]:
    """What a page shows: "names" and "series" of the plot as `normalise` gives them, and "head" and "rows" of the table, one
    row an axis, with each run's measured value and its radius in the plot."""
    names, series = normalise(runs)
    rows = []
    for axis in AXES:
        cells = [f"{axis.name}, {axis.better} is better"]
        for label, run in runs.items():
            value = axis.read(run)
            cells.append("–" if value is None else axis.show(value))
            cells.append(f"{series[label][names.index(axis.name)]:.3f}" if axis.name in names else "–")
        rows.append(cells)
    head = ["", *(text for label in runs for text in (label, "radius"))]
    return {"names": names, "series": series, "head": head, "rows": rows}
