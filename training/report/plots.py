"""Plots as inline SVG: colours are CSS variables of the page, so one plot serves light and dark; no date, no font."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from training.evaluation.experiment_result import Comparison

# Placeholders for matplotlib; in the SVG text they are replaced by the CSS values.
_INK, _GRID = "#010101", "#020202"
_SERIES = tuple(f"#0303{i:02x}" for i in range(1, 7))
_CSS = {_INK: "currentColor", _GRID: "var(--line)", **{c: f"var(--c{i})" for i, c in enumerate(_SERIES, 1)}}
# Line styles in addition to colours, for readers who cannot distinguish the colours.
DASHES: tuple[tuple[float, tuple[float, ...] | None], ...] = (
    (0, None),
    (0, (5, 2)),
    (0, (1.5, 1.5)),
    (0, (6, 2, 1.5, 2)),
    (0, (9, 3)),
    (0, (3, 1, 1, 1, 1, 1)),
)
_RC: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "bdam_fast",
    "font.size": 9,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": _GRID,
    "grid.linewidth": 0.7,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "text.color": _INK,
    "legend.frameon": False,
    "legend.fontsize": 9,
}
# Points drawn per line: more would make the page of a long run too heavy, and a screen shows no more.
MAX_POINTS = 160

Series = tuple[Sequence[float], Sequence[float]]


def thin(xs: Sequence[float], ys: Sequence[float], points: int = MAX_POINTS) -> tuple[np.ndarray, np.ndarray]:
    """Means of x and y over at most `points` groups of neighbouring values; a short series is returned unchanged."""
    x, y = np.asarray(xs, dtype=float), np.asarray(ys, dtype=float)
    if len(x) <= points:
        return x, y
    starts = np.linspace(0, len(x), points, endpoint=False).astype(int)
    sizes = np.diff(np.append(starts, len(x)))
    return np.add.reduceat(x, starts) / sizes, np.add.reduceat(y, starts) / sizes


def lines(
    series: Mapping[str, Series],
    *,
    label: str,
    x_label: str,
    size: tuple[float, float] = (4.4, 2.5),
    log: bool = False,
    first_colour: int = 0,
    mark: float | None = None,
) -> Markup:
    """Line plot, one line per entry (name: (xs, ys)), with a legend above when there are several.

    `size` in inches of 72 SVG units, `first_colour` the slot of the first line, `mark` an x at which every line gets a
    dot. `label` is the text for screen readers.
    """
    with matplotlib.rc_context(_RC):
        figure, axes = _figure(size)
        for i, (name, (xs, ys)) in enumerate(series.items(), first_colour):
            x, y = thin(xs, ys)
            colour = _SERIES[i % len(_SERIES)]
            dashes = DASHES[(i - first_colour) % len(DASHES)]
            axes.plot(x, y, color=colour, linestyle=dashes, linewidth=1.5, label=name)
            if len(x) == 1 or mark in xs:
                at = [0] if len(x) == 1 else [list(xs).index(mark)]  # type: ignore[arg-type]
                axes.plot([xs[k] for k in at], [ys[k] for k in at], "o", color=colour, markersize=5)
        if log:
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        else:
            axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.set_xlabel(x_label)
        if len(series) > 1:
            axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=3, handlelength=2.4, columnspacing=1.2)
        return _svg(figure, label)


def histogram(
    edges: Sequence[float],
    counts: Sequence[float],
    mean: float,
    *,
    label: str,
    x_label: str,
    colour: int = 0,
    size: tuple[float, float] = (4.4, 2.0),
) -> Markup:
    """Histogram of counts (n) between edges (n + 1), as shares in percent, with a line at the mean."""
    heights = np.asarray(counts, dtype=float)
    shares = 100 * heights / max(heights.sum(), 1.0)
    with matplotlib.rc_context(_RC):
        figure, axes = _figure(size)
        axes.stairs(shares, edges, fill=True, color=_SERIES[colour], alpha=0.75)
        axes.axvline(mean, color=_INK, linewidth=1.2, linestyle=(0, (4, 2)))
        axes.set_xlim(edges[0], edges[-1])
        axes.yaxis.set_major_locator(MaxNLocator(4))
        axes.set_xlabel(x_label)
        axes.set_ylabel("share, %")
        return _svg(figure, label)


@dataclass(frozen=True)
class Colours:
    """Colours of ink, grid and series."""

    ink: str
    grid: str
    series: tuple[str, ...]


# Light colours of the page, for PNG files on white.
_LIGHT = Colours("#1c1d20", "#dedfe3", ("#0b63b5", "#c04e00", "#00806a", "#a3369a", "#7a6200", "#54585f"))
Draw = Callable[[Axes, Colours], None]


def vector(draw: Draw, size: tuple[float, float], *, label: str, polar: bool = False) -> Markup:
    """Inline SVG, in the page's colours, of the drawing by draw(axes, colours); `size` in inches of 72 SVG units."""
    with matplotlib.rc_context(_RC):
        figure, axes = _figure(size, polar=polar)
        draw(axes, Colours(_INK, _GRID, _SERIES))
        return _svg(figure, label)


def raster(draw: Draw, size: tuple[float, float], *, polar: bool = False) -> bytes:
    """PNG on white, 144 dots an inch. The same drawing always gives the same bytes."""
    real = {_INK: _LIGHT.ink, _GRID: _LIGHT.grid}
    with matplotlib.rc_context({key: real.get(str(value), value) for key, value in _RC.items()}):
        figure = Figure(figsize=size, layout="constrained", facecolor="white")
        FigureCanvasAgg(figure)
        draw(figure.add_subplot(polar=polar), _LIGHT)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=144, metadata={"Software": None})
    return buffer.getvalue()


def draw_differences(axes: Axes, colours: Colours, *, rows: Sequence[tuple[str, Comparison, float | None]]) -> None:
    """Draws differences of mAP to the reference row, one row (label, comparison, the paper's difference or None) below the
    other: mean with interval, each seed as a small dot, the paper's as a hollow diamond, or as a number at the edge when it
    is out of range."""
    names = {"here, 95 % interval", "each seed", "paper"}

    def once(name: str) -> str | None:
        """The name for the legend at its first call, then None."""
        if name not in names:
            return None
        names.remove(name)
        return name

    ours_all = [value for _, ours, _ in rows for value in (ours.low, ours.high, ours.delta, *ours.per_seed)]
    known = [0.0, *(value for value in ours_all if value is not None)]
    # Our differences fill the middle half: a large one of the paper would squeeze them into a line.
    room = max((max(known) - min(known)) / 2, 1e-3)
    low, high = min(known) - room, max(known) + room
    first, second, quiet = colours.series[0], colours.series[1], colours.series[5]
    for height, (_, ours, paper) in enumerate(rows):
        if ours.low is not None and ours.high is not None:
            axes.plot([ours.low, ours.high], [height, height], color=first, linewidth=2)
        axes.plot(ours.delta, height, "o", color=first, label=once("here, 95 % interval"))
        seeds = ours.per_seed
        axes.plot(seeds, [height + 0.18] * len(seeds), ".", color=quiet, label=once("each seed"))
        if paper is None:
            continue
        if low <= paper <= high:
            axes.plot(paper, height, "D", color=second, fillstyle="none", markersize=7, label=once("paper"))
        else:
            edge, side = (low, "left") if paper < low else (high, "right")
            text = f"◂ {paper:.1f}" if side == "left" else f"{paper:.1f} ▸"
            axes.text(edge, height, text, color=second, ha=side, va="center")
    axes.set_xlim(low, high)
    axes.axvline(0, color=colours.ink, linewidth=0.8)
    axes.set_yticks(range(len(rows)), [label for label, *_ in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlabel("Δ mAP to the reference row, percentage points")
    axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=3, columnspacing=1.2)


def _figure(size: tuple[float, float], *, polar: bool = False) -> tuple[Figure, Axes]:
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasSVG(figure)
    return figure, figure.add_subplot(polar=polar)


def _svg(figure: Figure, label: str) -> Markup:
    buffer = io.StringIO()
    nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
    figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    text = buffer.getvalue()
    text = re.sub(r"<(metadata|style).*?</\1>", "", text[text.index("<svg") :], flags=re.DOTALL)
    # Ids of one plot must not collide with those of another plot on the same page.
    prefix = "p" + re.sub(r"\W+", "-", label.lower())
    used = set(re.findall(r"(?:href=\"#|url\(#)([^\")]+)", text))
    text = re.sub(r" id=\"([^\"]+)\"", lambda m: f' id="{prefix}-{m[1]}"' if m[1] in used else "", text)
    text = re.sub(r"(href=\"#|url\(#)", rf"\g<1>{prefix}-", text)
    for placeholder, css in _CSS.items():
        text = text.replace(placeholder, css)
    text = re.sub(r"<svg [^>]*?viewBox=\"([^\"]+)\"[^>]*>", _opening(label), text, count=1)
    return Markup(re.sub(r"\s*\n\s*", "\n", text))


def _opening(label: str) -> str:
    name = str(Markup.escape(label)).replace("\\", r"\\")
    xlink = 'xmlns:xlink="http://www.w3.org/1999/xlink"'
    return rf'<svg viewBox="\1" role="img" aria-label="{name}" {xlink} stroke-linejoin="round">'
