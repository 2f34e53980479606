"""The page about a clustering: a map of captions, the styles with examples, and the curve that the radius comes from."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.axes import Axes
from sklearn.manifold import TSNE

from training import report
from training.describe.styles.clustering import Styles
from training.report import plots
from training.report.run_page import write_whole

# Captions on the map; t-SNE of 2,000 takes seconds.
SHOWN = 2000


@dataclass(frozen=True)
class Map:
    """Where captions lie on the map."""

    # Captions shown, as indices (M,), and their places (M, 2).
    chosen_M: np.ndarray
    places_M2: np.ndarray


def draw_map(features_ND: np.ndarray, seed: int) -> Map:
    """t-SNE of a random sample of the captions; the same for every method."""
    count = min(SHOWN, len(features_ND))
    chosen_M = np.sort(np.random.default_rng(seed).choice(len(features_ND), count, replace=False))
    perplexity = min(30.0, (count - 1) / 3)
    tsne = TSNE(perplexity=perplexity, init="random", learning_rate="auto", random_state=seed)
    return Map(chosen_M, tsne.fit_transform(features_ND[chosen_M]))


def write_style_page(path: Path, table: dict[str, Any], styles: Styles, drawn: Map) -> Path:
    """Writes the page about the contents `table` of a styles.json in one move and returns its path."""
    folder = Path(__file__).parent
    environment = Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    picture = plots.raster(lambda axes, colours: _draw(axes, styles.styles_N[drawn.chosen_M], drawn), (6.4, 5.4))
    html = environment.get_template("style_page.html.j2").render(
        css=Markup((Path(report.__file__).parent / "page.css").read_text(encoding="utf-8")),
        table=table,
        total=len(styles.styles_N),
        shown=len(drawn.chosen_M),
        picture="data:image/png;base64," + base64.b64encode(picture).decode("ascii"),
        curve=_curve(styles) if len(styles.curve) else None,
    )
    return write_whole(path, html.encode())


def _draw(axes: Axes, styles_M: np.ndarray, drawn: Map) -> None:
    palette = matplotlib.colormaps["tab20"]
    for style in np.unique(styles_M):
        inside = styles_M == style
        x, y = drawn.places_M2[inside].T
        axes.scatter(x, y, s=5, color=palette(int(style) % 20), label=str(style), linewidths=0)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.legend(title="style", loc="center left", bbox_to_anchor=(1.0, 0.5), markerscale=3)


def _curve(styles: Styles) -> Markup:
    series = {"k-distance": (list(range(len(styles.curve))), styles.curve.tolist())}
    return plots.lines(series, label="k-distance curve with its knee", x_label="captions", mark=styles.found["knee"])
