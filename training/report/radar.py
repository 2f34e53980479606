"""Fig. 5: cost and accuracy of each form of fusion, a radar with the measured values beside it."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from training.evaluation.experiment_result import RowResult
from training.evaluation.result import Throughput

TABLE = "fig5"


@dataclass(frozen=True)
class Axis:
    """A quantity of a row; the best row has radius 1."""

    name: str
    better: Literal["less", "more"]
    read: Callable[[RowResult], float | None]
    show: Callable[[float], str]


def _median(measured: Sequence[Throughput] | None) -> float | None:
    return statistics.median(m.median for m in measured) if measured else None


AXES = (
    Axis("parameters", "less", lambda row: float(row.parameters.total), "{:,.0f}".format),
    Axis(
        "MFLOP a pair", "less", lambda row: float(row.flops.total) if row.flops else None, lambda n: f"{n / 1e6:,.3f}"
    ),
    Axis("MB of memory", "less", lambda row: max(row.memory_mb.evaluation), "{:,.0f}".format),
    Axis("images/s", "more", lambda row: _median(row.speed.images), "{:,.0f}".format),
    Axis("pairs/s", "more", lambda row: _median(row.speed.pairs), "{:,.0f}".format),
    Axis("mAP", "more", lambda row: row.mean["mAP"], "{:.2f}".format),
)


def normalise(rows: Mapping[str, RowResult]) -> tuple[list[str], dict[str, list[float]]]:
    """Names of the axes on which every row has a value above zero, and each row's radii: best / own where less is better,
    own / best where more is. `rows` are keyed by label."""
    names, series = [], {label: [] for label in rows}  # type: tuple[list[str], dict[str, list[float]]]
    for axis in AXES:
        values = {label: value for label, row in rows.items() if (value := axis.read(row)) is not None and value > 0}
        if len(values) < len(rows):
            continue
        names.append(axis.name)
        best = min(values.values()) if axis.better == "less" else max(values.values())
        for label, value in values.items():
            series[label].append(best / value if axis.better == "less" else value / best)
    return names, series


def radar(rows: Mapping[str, RowResult]) -> dict[str, Any]:
    """Values of the template: names and series of the plot as `normalise` returns them, and head and rows of the table, one
    row an axis, with the measured value and the radius of each row of the experiment."""
    names, series = normalise(rows)
    cells = []
    for axis in AXES:
        line = [f"{axis.name}, {axis.better} is better"]
        for label, row in rows.items():
            value = axis.read(row)
            line.append("–" if value is None else axis.show(value))
            line.append(f"{series[label][names.index(axis.name)]:.3f}" if axis.name in names else "–")
        cells.append(line)
    head = ["", *(text for label in rows for text in (label, "radius"))]
    return {"names": names, "series": series, "head": head, "rows": cells}
