"""Plots of rows on a log scale: bars of ours beside the peers for every case, and ratios of a few cases."""

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
GREY = "#555555"
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


def ratios(cases: Sequence[tuple[str, Row, Row]], path: Path) -> None:
    """Draws one bar for each (title, our row, the peer's row): how many times as long the peer takes.

    1,400 pixels wide, legible at half of that.
    """
    figure, axis = pyplot.subplots(figsize=(7, 0.5 * len(cases) + 1.2), layout="constrained")
    values = [float(peer["median_ms"]) / float(own["median_ms"]) for _, own, peer in cases]
    axis.barh(range(len(cases)), [value - 1 for value in values], left=1, height=0.62, color=COLOURS["ours"])
    for place, (value, (title, own, peer)) in enumerate(zip(values, cases, strict=True)):
        axis.text(value * 1.06, place, f"{value:.3g} ×", fontsize=10, fontweight="bold", va="center")
        times = f"{milliseconds(own['median_ms'])}; {peer['variant']}: {milliseconds(peer['median_ms'])}"
        for text, offset, size, colour in ((title, -0.19, 9.5, "black"), (times, 0.21, 8.5, GREY)):
            position = (-0.02, place + offset)
            where = {"xycoords": ("axes fraction", "data"), "ha": "right", "va": "center"}
            axis.annotate(text, position, fontsize=size, color=colour, **where)
    axis.set_xscale("log")
    # Room to the right of the longest bar for its label.
    axis.set_xlim(1, max(values) ** 1.22)
    ticks = [tick for tick in (1, 2, 5, 10, 20, 50, 100) if tick <= max(values)]
    axis.set_xticks(ticks, [f"{tick} ×" for tick in ticks])
    axis.minorticks_off()
    axis.set_ylim(len(cases) - 0.5, -0.5)
    axis.set_yticks([])
    axis.grid(axis="x", color="#dddddd")
    axis.set_axisbelow(True)
    axis.spines[["top", "right", "bottom"]].set_visible(False)
    title = "Time of the fastest peer relative to bdam_fast (times: bdam_fast; peer)"
    figure.suptitle(title, fontsize=10, x=0.01, ha="left")
    figure.supxlabel(_conditions([own for _, own, _ in cases]), fontsize=8, color=GREY)
    figure.savefig(path, dpi=200, metadata={"Software": None})
    pyplot.close(figure)


def _conditions(rows: Sequence[Row]) -> str:
    """Machine, versions and shapes of our rows, in two lines."""
    first = rows[0]
    machine = (
        f"{first['machine']}, {first['threads']} threads, {first['isa']}, {first['dtype']}, torch {first['torch']}"
    )
    malloc = "" if first["malloc"] == "default" else ", malloc keeps freed memory"
    return f"{machine}{malloc}, log scale\n{'; '.join(dict.fromkeys(row['shape'] for row in rows))}"


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
