"""Bars on a log scale, ours beside the peers, one group per case."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.axes import Axes

from bench.harness.results import Row, milliseconds

COLOURS = {"ours": "#d1495b", "eager": "#7d8ca3", "compiled": "#3d5a80"}
NAMES = {"ours": "bdam_fast", "eager": "eager peers", "compiled": "torch.compile"}
# Inches per line: 9-point labels do not touch.
LINE = 0.21
Group = tuple[str, str, list[Row]]


def bars(groups: Sequence[Group], path: Path) -> None:
    """Draws (title, direction, rows) groups: forward on the left, everything else on the right."""
    left = [group for group in groups if group[1] == "forward"]
    right = [group for group in groups if group[1] != "forward"]
    columns = [column for column in (left, right) if column]
    lines = max(sum(len(_timed(rows)) + 2 for _, _, rows in column) for column in columns)
    figure, axes = pyplot.subplots(
        1, len(columns), figsize=(8.2 * len(columns), LINE * lines + 1.1), squeeze=False, layout="constrained"
    )
    for axis, column in zip(axes[0], columns, strict=True):
        _draw(axis, column, lines)
    handles = [pyplot.Rectangle((0, 0), 1, 1, color=COLOURS[kind]) for kind in NAMES]
    figure.legend(handles, list(NAMES.values()), loc="outside upper center", ncols=len(NAMES), frameon=False)
    figure.savefig(path, dpi=100, metadata={"Software": None})
    pyplot.close(figure)


def _timed(rows: Sequence[Row]) -> list[Row]:
    timed = [row for row in rows if row["median_ms"] and row["kind"] in COLOURS]
    return sorted(timed, key=lambda row: float(row["median_ms"]))


def _draw(axis: Axes, groups: Sequence[Group], lines: int) -> None:
    """One column: a title line, then a bar per variant with its name, time and ratio behind it."""
    values = [float(row["median_ms"]) for _, _, rows in groups for row in _timed(rows)]
    low, high = min(values) / 2, max(values)
    place = 0.0
    for title, direction, rows in groups:
        axis.text(low * 1.05, place, f"{title} · {direction}", fontsize=9, fontweight="bold", va="center")
        place += 1
        for row in _timed(rows):
            value = float(row["median_ms"])
            axis.barh(place, value - low, left=low, height=0.8, color=COLOURS[row["kind"]])
            ratio = "" if row["kind"] == "ours" else f", {float(row['times_ours']):.3g} ×"
            axis.text(
                value * 1.08,
                place,
                f"{row['variant']}  {milliseconds(row['median_ms'])}{ratio}",
                fontsize=8,
                va="center",
            )
            place += 1
        place += 1
    axis.set_xscale("log")
    # Room to the right of the longest bar for its label.
    axis.set_xlim(low, high * (high / low) ** 0.6)
    axis.set_ylim(lines - 0.5, -1)
    axis.set_yticks([])
    axis.set_xlabel("milliseconds, log scale")
    axis.spines[["top", "right", "left"]].set_visible(False)
