"""Pages of an experiment, made from its summary.json: a self-contained HTML page, and Markdown with PNG plots."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from training.config.ablations import FULL, REFERENCES
from training.evaluation.experiment_result import (
    COMPARED,
    Comparison,
    RowResult,
    Summary,
    TableRow,
    read_summary,
)
from training.evaluation.result import HEADINGS, METRICS, DataSummary, Throughput
from training.report import config_rows, plots, plots_paper, protocol_tables
from training.report import radar as fusions
from training.utils.io import write_bytes

HERE = Path(__file__).parent
PAPER: dict[str, Any] = json.loads((HERE / "paper.json").read_text(encoding="utf-8"))
# Two rows differ when p is below this.
LEVEL = 0.05


class Plot(NamedTuple):
    """A plot of a table: "differences" or "radar", its drawing function, size in inches, suffix of its file name."""

    kind: str
    draw: plots.Draw
    size: tuple[float, float]
    suffix: str = ""


def _plots(view: dict[str, Any]) -> list[Plot]:
    found, radar = [], view["radar"]
    if view["plotted"]:
        size = (6.4, 0.9 + 0.36 * len(view["plotted"]))
        found.append(Plot("differences", partial(plots.draw_differences, rows=view["plotted"]), size))
    # Two spokes make no area.
    if radar and len(radar["names"]) > 2:
        draw = partial(plots_paper.draw_radar, names=radar["names"], series=radar["series"])
        found.append(Plot("radar", draw, (5.4, 4.4), "-radar"))
    return found


def write_experiment(folder: Path) -> Path:
    """Writes FOLDER/report.html atomically and returns its path. Raises what `read_summary` raises."""
    summary = read_summary(folder)
    return write_bytes(folder / "report.html", build_experiment(summary, folder.resolve().name).encode())


def build_experiment(summary: Summary, name: str) -> str:
    """The page as one HTML text without any outside reference. The same summary always gives the same text."""
    views = _views(summary)
    for view in views:
        for kind, draw, size, _ in _plots(view):
            label, polar = f"{view['name']} {kind}", kind == "radar"
            view["plots"][kind] = plots.vector(draw, size, label=label, polar=polar)
    css = Markup((HERE / "page.css").read_text(encoding="utf-8"))
    return _render("experiment_page.html.j2", summary, views, name=name, css=css)


def write_markdown(summary: Summary, path: Path) -> list[Path]:
    """Writes the page as Markdown to `path`, and its plots as PNG beside it; returns all their paths, the page first."""
    views, paths = _views(summary), []
    for view in views:
        for kind, draw, size, suffix in _plots(view):
            image = path.with_name(f"{path.stem}-{view['name']}{suffix}.png")
            paths.append(write_bytes(image, plots.raster(draw, size, polar=kind == "radar")))
            view["plots"][kind] = image.name
    text = _render("experiment_page.md.j2", summary, views, name=path.stem, css="")
    return [write_bytes(path, text.encode()), *paths]


def _render(template: str, summary: Summary, views: list[dict[str, Any]], **values: Any) -> str:
    environment = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=template.endswith(".html.j2"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    data = [
        (fingerprint, f"{entry.name}, {entry.root}: {_counts(entry)}{_split(entry)}")
        for fingerprint, entry in summary.data.items()
    ]
    return environment.get_template(template).render(
        summary=summary,
        views=views,
        paper=PAPER["citation"],
        level=LEVEL,
        data=data,
        opposite=_opposite(views),
        changes=_changed(summary),
        config_rows=config_rows.rows(summary.config),
        version_rows=config_rows.rows(summary.versions),
        **values,
    )


def _split(data: DataSummary) -> str:
    """Source of the splits; evaluations of early versions lack it."""
    return f"; {data.split}" if data.split is not None else ""


def _counts(data: DataSummary) -> str:
    return ", ".join(f"{split} {n['ids']} ids / {n['images']} images" for split, n in data.counts.items())


def _changed(summary: Summary) -> list[tuple[str, str]]:
    """(recipe, its fields that differ from the full model's) of every run."""
    return [
        (run.recipe, ", ".join(f"{key} = {config_rows.show(value)}" for key, value in run.changes.items()) or "–")
        for run in summary.runs.values()
    ]


Rows = Sequence[tuple[TableRow, RowResult]]
# A row, its result, our differences to the full model, and the paper's, where it has them.
Compared = Sequence[tuple[TableRow, dict[str, Comparison], dict[str, float] | None]]


def _views(summary: Summary) -> list[dict[str, Any]]:
    """Contents of a page by table: parts {"title", "head", "rows"} of text, and the numbers of its plots."""
    views = []
    for name, table in summary.tables.items():
        rows = [(row, summary.runs[row.run]) for row in table.rows if row.run is not None]
        paper = PAPER["tables"].get(name, {})
        full = REFERENCES.get(name, FULL)
        compared = [
            (row, run.comparison, _paper_difference(paper, row.name, full)) for row, run in rows if run.comparison
        ]
        parts = (
            [_results(rows), *protocol_tables.of_table(name, rows), _every_value(rows, summary.seeds)] if rows else []
        )
        if compared:
            parts.append(_differences(compared, len(summary.seeds)))
        if rows:
            parts.append(_cost(rows, speed=name == fusions.TABLE))
        # One form of fusion alone is the best of itself.
        radar = name == fusions.TABLE and len(rows) > 1
        views.append(
            {
                "name": name,
                "title": table.title,
                "parts": parts,
                "missing": [row.label for row in table.rows if row.run is None],
                "plotted": [(row.label, ours["mAP"], paper and paper["mAP"]) for row, ours, paper in compared],
                "radar": fusions.radar({row.label: run for row, run in rows}) if radar else None,
                "plots": dict.fromkeys(("differences", "radar")),
                "opposite": [
                    (row.label, HEADINGS[metric], ours[metric], paper[metric])
                    for row, ours, paper in compared
                    for metric in COMPARED
                    if paper and _signs_differ(ours[metric], paper[metric])
                ],
            }
        )
    return views


def _paper_difference(paper: dict[str, dict[str, float]], name: str, full: str) -> dict[str, float] | None:
    """The paper's row minus its row `full`, where it has both."""
    if name not in paper or full not in paper:
        return None
    return {metric: paper[name][metric] - paper[full][metric] for metric in COMPARED}


def _signs_differ(ours: Comparison, paper: float) -> bool:
    return ours.delta == 0 or math.copysign(1, ours.delta) != math.copysign(1, paper)


def _certain(ours: Comparison) -> bool:
    return ours.p is not None and ours.p < LEVEL


def _opposite(views: list[dict[str, Any]]) -> list[str]:
    """A sentence for each difference whose sign is not the paper's."""
    return [
        f"{view['title']}, {label}: {metric} {ours.delta:+.2f} here ("
        f"{'p ' + format(ours.p, '.4f') if ours.p is not None else 'no test'}), {paper:+.2f} in the paper"
        for view in views
        for label, metric, ours, paper in view["opposite"]
    ]


def _part(title: str, head: list[str], rows: list[list[str]]) -> dict[str, Any]:
    return {"title": title, "head": head, "rows": rows}


def _results(results: Rows) -> dict[str, Any]:
    rows = []
    for row, run in results:
        spread = [f" ± {std:.2f}" if (std := run.std[m]) is not None else "" for m in METRICS]
        rows.append([row.label, *(f"{run.mean[m]:.2f}{s}" for m, s in zip(METRICS, spread, strict=True))])
    # Rows of one test split share their chance.
    chances = {tuple(run.chance.values()): (row.label, run.chance) for row, run in reversed(results)}
    for label, chance in reversed(chances.values()):
        name = "chance" if len(chances) == 1 else f"chance, {label}"
        rows.append([name, *(f"{chance[m]:.2f}" for m in METRICS)])
    title = "Test split, percent: mean ± standard deviation over the seeds"
    return _part(title, ["", *HEADINGS.values()], rows)


def _every_value(results: Rows, seeds: Sequence[int]) -> dict[str, Any]:
    def listed(values: Sequence[float]) -> str:
        return " · ".join(f"{value:.2f}" for value in values)

    rows = [[row.label, *(listed(run.metrics[m]) for m in METRICS), listed(run.beta)] for row, run in results]
    return _part(f"Every value, seeds {' · '.join(map(str, seeds))}", ["", *HEADINGS.values(), "β"], rows)


def _differences(compared: Compared, seeds: int) -> dict[str, Any]:
    head = [""]
    for metric in COMPARED:
        name = HEADINGS[metric]
        head += [f"Δ {name}", "95 % interval", "p", "seeds", f"paper's Δ {name}", "sign"]
    rows = []
    for row, comparison, paper in compared:
        cells = [row.label]
        for metric in COMPARED:
            ours = comparison[metric]
            tested = ours.p is not None
            cells += [f"{ours.delta:+.2f}", f"{ours.low:+.2f} … {ours.high:+.2f}" if tested else "–"]
            cells += [f"{ours.p:.4f}" if tested else "–", f"{ours.same_sign} of {seeds}"]
            if paper is None:
                cells += ["–", "–"]
            else:
                sign = "opposite" if _signs_differ(ours, paper[metric]) else "same"
                cells += [f"{paper[metric]:+.2f}", sign if _certain(ours) else f"{sign}, unsure"]
        rows.append(cells)
    return _part("Difference to the full model, percentage points", head, rows)


def _cost(results: Rows, speed: bool) -> dict[str, Any]:
    """speed: also images and pairs a second, which mean something only where the runs were evaluated alone."""
    head = ["", "training, s", "evaluation, s", "on threads", "memory of training, MB", "of evaluation, MB"]
    head += ["parameters", "of the fusion", "MFLOP a pair", "of the fusion"]
    rows = []
    for row, run in results:
        memory, flops = run.memory_mb, run.flops
        known = [value for value in memory.training if value is not None]
        cells = [row.label, *(f"{statistics.fmean(run.seconds[phase]):.1f}" for phase in ("training", "evaluation"))]
        cells += [" or ".join(sorted(set(run.threads))), f"{max(known):,.0f}" if known else "–"]
        cells += [f"{max(memory.evaluation):,.0f}", f"{run.parameters.total:,}", f"{run.parameters.fusion:,}"]
        cells += ["–", "–"] if flops is None else [f"{n / 1e6:,.3f}" for n in (flops.total, flops.fusion)]
        rows.append(cells + [_speed(measured) for measured in (run.speed.images, run.speed.pairs) if speed])
    head += ["images/s", "pairs/s through the fusion"] if speed else []
    return _part("Cost", head, rows)


def _speed(measured: Sequence[Throughput] | None) -> str:
    """Median of the seeds' medians, lowest 20th to highest 80th percentile; – without a measurement."""
    if not measured:
        return "–"
    middle = statistics.median(m.median for m in measured)
    return f"{middle:,.0f} ({min(m.low for m in measured):,.0f}–{max(m.high for m in measured):,.0f})"
