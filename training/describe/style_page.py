"""HTML page of a clustering: a map of captions, the styles with examples, and the k-distance curve behind the radius."""

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
from training.describe.styles.clustering import Clustering
from training.report import plots
from training.utils.io import write_bytes

# Captions on the map; t-SNE of 2,000 takes seconds.
MAP_CAPTIONS = 2000


@dataclass(frozen=True)
class CaptionMap:
    """Positions of captions on the map."""

    # Indices of the captions shown, int64 (M,), and their positions, float32 (M, 2).
    chosen_M: np.ndarray
    positions_M2: np.ndarray


def project_captions(features_ND: np.ndarray, seed: int) -> CaptionMap:
    """Projects a random sample of the captions by t-SNE; features (N, D). The map is the same for every method."""
    count = min(MAP_CAPTIONS, len(features_ND))
    chosen_M = np.sort(np.random.default_rng(seed).choice(len(features_ND), count, replace=False))
    perplexity = min(30.0, (count - 1) / 3)
    tsne = TSNE(perplexity=perplexity, init="random", learning_rate="auto", random_state=seed)
    return CaptionMap(chosen_M, tsne.fit_transform(features_ND[chosen_M]))


def write_style_page(path: Path, table: dict[str, Any], clustering: Clustering, caption_map: CaptionMap) -> Path:
    """Writes the page of a styles.json with contents `table` atomically and returns its path."""
    folder = Path(__file__).parent
    environment = Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    image = plots.raster(
        lambda axes, colours: _draw(axes, clustering.styles_N[caption_map.chosen_M], caption_map), (6.4, 5.4)
    )
    html = environment.get_template("style_page.html.j2").render(
        css=Markup((Path(report.__file__).parent / "page.css").read_text(encoding="utf-8")),
        table=table,
        total=len(clustering.styles_N),
        shown=len(caption_map.chosen_M),
        image="data:image/png;base64," + base64.b64encode(image).decode("ascii"),
        curve=_curve(clustering) if len(clustering.k_distances_P) else None,
    )
    return write_bytes(path, html.encode())


def _draw(axes: Axes, styles_M: np.ndarray, caption_map: CaptionMap) -> None:
    palette = matplotlib.colormaps["tab20"]
    for style in np.unique(styles_M):
        inside = styles_M == style
        x, y = caption_map.positions_M2[inside].T
        axes.scatter(x, y, s=5, color=palette(int(style) % 20), label=str(style), linewidths=0)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.legend(title="style", loc="center left", bbox_to_anchor=(1.0, 0.5), markerscale=3)


def _curve(clustering: Clustering) -> Markup:
    series = {"k-distance": (list(range(len(clustering.k_distances_P))), clustering.k_distances_P.tolist())}
    return plots.lines(
        series, label="k-distance curve with its knee", x_label="captions", mark=clustering.details["knee"]
    )
