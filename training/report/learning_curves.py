"""Learning curves of a table's rows, and the check that they have reached a plateau."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from training.evaluation.experiment_result import Curve, RowResult, TableRow
from training.evaluation.significance import pooled_deviation
from training.report.plots import DASHES, Colours, Series

# Part of the training, at its end, over which a curve must be flat.
LAST = 0.2


def mean_curve(curves: Sequence[Curve]) -> Series | None:
    """(epochs, R-1) of the mean over the seeds, at the epochs that all have; None without two such epochs."""
    common = sorted(set.intersection(*(set(curve.epochs) for curve in curves))) if curves else []
    if len(common) < 2:
        return None
    values = [[curve.R1[curve.epochs.index(epoch)] for epoch in common] for curve in curves]
    return common, np.mean(values, axis=0).tolist()


def rise(curve: Series) -> float:
    """R-1 at the end less R-1 when LAST of the epochs were to come, on the straight line between two validations."""
    epochs, values = curve
    return float(values[-1] - np.interp(epochs[-1] * (1 - LAST), epochs, values))


def plateau(rows: Sequence[tuple[TableRow, RowResult]]) -> dict[str, Any] | None:
    """Title, head and rows of the table of plateaus; None where no row has a curve.

    A row is at a plateau when its mean curve rises over its last fifth by no more than the noise floor: the standard
    deviation over the seeds of R-1 at the end, on the validation split, pooled over the rows.
    """
    known = curves_of(rows)
    if not known:
        return None
    ends = [[curve.R1[-1] for curve in run.curves] for row, run in rows if row.label in known and run.curves]
    floor = pooled_deviation(ends)
    cells = []
    for label, curve in known.items():
        gain = rise(curve)
        word = "–" if floor is None else "at plateau" if gain <= floor else "not at plateau"
        cells.append([label, f"{curve[1][-1]:.2f}", f"{gain:+.2f}", "–" if floor is None else f"{floor:.2f}", word])
    head = ["", "R-1 at the end", "rise over the last fifth", "noise floor", "plateau"]
    return {"title": "Learning curves, validation split, percent: mean over the seeds", "head": head, "rows": cells}


def curves_of(rows: Sequence[tuple[TableRow, RowResult]]) -> dict[str, Series]:
    """The mean curve of each row that has one, by label."""
    found = {row.label: mean_curve(run.curves) for row, run in rows if run.curves}
    return {label: curve for label, curve in found.items() if curve is not None}


def draw(axes: Axes, colours: Colours, *, curves: Mapping[str, Series]) -> None:
    """Draws one line per row: R-1 of the validation split over the epochs."""
    for i, (label, (epochs, values)) in enumerate(curves.items()):
        colour, dashes = colours.series[i % len(colours.series)], DASHES[i // len(colours.series) % len(DASHES)]
        axes.plot(epochs, values, color=colour, linestyle=dashes, linewidth=1.5, label=label)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.set_xlabel("epoch")
    axes.set_ylabel("R-1 of the validation split, %")
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), handlelength=2.4)
