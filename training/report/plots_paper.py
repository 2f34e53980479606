"""Plots of Fig. 4, Fig. 5 and the scores of the probes; inline SVG like `plots`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes

from training.report.plots import _INK, _RC, _SERIES, Colours, _figure, _svg

_MARKERS = ("o", "s", "^", "D", "v", "P")


def scatter(
    places: np.ndarray,
    values: Sequence[str],
    *,
    label: str,
    colours: Mapping[str, tuple[int, int, int]] | None = None,
    size: tuple[float, float] = (4.4, 4.0),
) -> Markup:
    """Scatter plot of points (n, 2) without axes, one colour a value, with a legend by frequency. colours: RGB of each value,
    0 to 255; without it, the six most frequent values have the colours of the page and a marker each, others are grey."""
    names, counts = np.unique(values, return_counts=True)
    names = names[np.argsort(-counts, kind="stable")]
    value_of = np.asarray(values)
    with matplotlib.rc_context(_RC):
        figure, axes = _figure(size)
        for i, name in enumerate(names.tolist()):
            x, y = places[value_of == name].T
            if colours is not None:
                fill, marker = "#" + "".join(f"{c:02x}" for c in colours.get(name, (128, 128, 128))), "o"
            else:
                fill, marker = (_SERIES[i], _MARKERS[i]) if i < len(_SERIES) else ("#888888", "o")
            # A thin outline in the page's ink keeps white and black visible on light and dark pages.
            axes.plot(x, y, marker, color=fill, markersize=4, markeredgecolor=_INK, markeredgewidth=0.3, label=name)
        axes.set_axis_off()
        axes.set_aspect("equal", "datalim")
        # Outside the axes, so that it hides no point.
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=5, handletextpad=0.1, columnspacing=0.8)
        return _svg(figure, label)


def dots(
    rows: Sequence[str],
    series: Mapping[str, Sequence[float | None]],
    *,
    label: str,
    x_label: str,
    groups: Sequence[int] = (),
) -> Markup:
    """Dot plot: one row per name, one marker per series, a line at zero; a line before each row number in `groups`."""
    with matplotlib.rc_context(_RC):
        figure, axes = _figure((6.6, 0.7 + 0.24 * len(rows)))
        y = np.arange(len(rows))
        for i, (name, values) in enumerate(series.items()):
            x = [np.nan if value is None else value for value in values]
            axes.plot(x, y, _MARKERS[i % 6], color=_SERIES[i % 6], markersize=5.5, alpha=0.85, label=name)
        axes.axvline(0.0, color=_INK, linewidth=0.9)
        for row in groups:
            axes.axhline(row - 0.5, color=_INK, linewidth=0.5, linestyle=(0, (2, 2)))
        axes.set_yticks(y, rows)
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_xlabel(x_label)
        axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=4, handletextpad=0.2, columnspacing=1.2)
        return _svg(figure, label)


def draw_radar(axes: Axes, colours: Colours, *, names: Sequence[str], series: Mapping[str, Sequence[float]]) -> None:
    """Draws a closed line per series on polar axes: one spoke per name, values in [0, 1], 1 outside."""
    polar: Any = axes
    angles = np.linspace(0, 2 * np.pi, len(names), endpoint=False)
    for i, (name, values) in enumerate(series.items()):
        style = {"color": colours.series[i % 6], "marker": _MARKERS[i % 6], "markersize": 4}
        polar.plot([*angles, angles[0]], [*values, values[0]], label=name, **style)
    polar.set_theta_offset(np.pi / 2)
    polar.set_xticks(angles, names)
    # Labels are centred; with less padding those at the sides would overlap the lines.
    polar.tick_params(axis="x", pad=22)
    polar.set_yticks([0.25, 0.5, 0.75, 1.0], ["", "0.5", "", "1"])
    polar.set_ylim(0.0, 1.05)
    polar.legend(loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=3)
