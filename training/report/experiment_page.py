"""Pages of an experiment, made from its summary.json: a self-contained HTML page, and Markdown with PNG plots."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from training.config.ablations import FULL, REFERENCES
from training.evaluation.experiment_result import COMPARED, Summary, TableRows, read_summary
from training.evaluation.result import HEADINGS, METRICS, DataSummary, Metrics, Throughput, beta_text
from training.evaluation.significance import LEVEL, POWER
from training.report import config_rows, learning_curves, plots, plots_paper, protocol_tables
from training.report import radar as fusions
from training.report.experiment_differences import Compared, Rows, differences, machines, noise_floor, opposite, word
from training.utils.io import write_bytes

HERE = Path(__file__).parent
PAPER: dict[str, Any] = json.loads((HERE / "paper.json").read_text(encoding="utf-8"))


# Below the tables.
NOISE = (
    "Noise floor: a difference below it says nothing. The smallest Δ is what a paired t-test over the seeds finds with "
    f"probability {POWER:.0%} at the level {LEVEL}, (t[1 − {LEVEL}/2] + t[{POWER}]) · s · √(2/n) for n seeds of standard "
    "deviation s, for a single row; Holm's correction asks for more. A row is not at plateau where R-1 of the validation "
    "split rises over the last fifth of the epochs by more than the standard deviation over the seeds, pooled over "
    "the rows: longer training may change its place in the table."
)


class Plot(NamedTuple):
    """A plot of a table: "differences", "curves" or "radar", its drawing function, size in inches, suffix of its file name."""

    kind: str
    draw: plots.Draw
    size: tuple[float, float]
    suffix: str = ""


def _plots(view: dict[str, Any]) -> list[Plot]:
    found, radar = [], view["radar"]
    if view["plotted"]:
        size = (6.4, 0.9 + 0.36 * len(view["plotted"]))
        found.append(Plot("differences", partial(plots.draw_differences, rows=view["plotted"]), size))
    if view["curves"]:
        draw = partial(learning_curves.draw, curves=view["curves"])
        found.append(Plot("curves", draw, (7.2, max(2.6, 0.7 + 0.24 * len(view["curves"]))), "-curves"))
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
        noise=NOISE,
        data=data,
        opposite=[text for view in views for text in view["opposite"]],
        unsure=sum(view["unsure"] for view in views),
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


def _views(summary: Summary) -> list[dict[str, Any]]:
    """Contents of a page by table: parts {"title", "head", "rows"} of text, and the numbers of its plots."""
    return [_view(name, table, summary) for name, table in summary.tables.items()]


def _view(name: str, table: TableRows, summary: Summary) -> dict[str, Any]:
    rows = [(row, summary.runs[row.run]) for row in table.rows if row.run is not None]
    paper, seeds = PAPER["tables"].get(name, {}), summary.seeds
    full = REFERENCES.get(name, FULL)
    compared = [(row, run.comparison, _paper_difference(paper, row.name, full)) for row, run in rows if run.comparison]
    sentences, unsure = opposite(compared)
    sentence, mixed = machines(rows, seeds) if rows else ("", False)
    # One form of fusion alone is the best of itself.
    radar = name == fusions.TABLE and len(rows) > 1
    return {
        "name": name,
        "title": table.title,
        "parts": _parts(name, table, rows, compared, summary),
        "missing": [row.label for row in table.rows if row.run is None],
        "machines": sentence,
        "mixed": mixed,
        "plotted": [
            (f"{row.label}{', unsure' * (word(row, 'mAP') == 'unsure')}", ours["mAP"], paper and paper["mAP"])
            for row, ours, paper in compared
        ],
        "curves": learning_curves.curves_of(rows),
        "radar": fusions.radar({row.label: run for row, run in rows}) if radar else None,
        "plots": dict.fromkeys(("differences", "curves", "radar")),
        "opposite": [f"{table.title}, {text}" for text in sentences],
        "unsure": unsure,
    }


def _parts(name: str, table: TableRows, rows: Rows, compared: Compared, summary: Summary) -> list[dict[str, Any]]:
    if not rows:
        return []
    seeds, oracle = summary.seeds, summary.oracle or {}
    parts = [_results(rows, oracle), *protocol_tables.of_table(name, rows, oracle), _every_value(rows, seeds)]
    if compared:
        parts.append(differences(compared, len(seeds)))
    if table.noise:
        parts.append(noise_floor(table.noise, len(seeds)))
    if flat := learning_curves.plateau(rows):
        parts.append(flat)
    return [*parts, _cost(rows, speed=name == fusions.TABLE)]


def _paper_difference(paper: dict[str, dict[str, float]], name: str, full: str) -> dict[str, float] | None:
    """The paper's row minus its row `full`, where it has both."""
    if name not in paper or full not in paper:
        return None
    return {metric: paper[name][metric] - paper[full][metric] for metric in COMPARED}


def _part(title: str, head: list[str], rows: list[list[str]]) -> dict[str, Any]:
    return {"title": title, "head": head, "rows": rows}


def _results(results: Rows, oracle: dict[str, Metrics]) -> dict[str, Any]:
    rows = []
    for row, run in results:
        spread = [f" ± {std:.2f}" if (std := run.std[m]) is not None else "" for m in METRICS]
        rows.append([row.label, *(f"{run.mean[m]:.2f}{s}" for m, s in zip(METRICS, spread, strict=True))])
    # Rows of one test split share their chance.
    chances = {tuple(run.chance.values()): (row.label, run.chance) for row, run in reversed(results)}
    for label, chance in reversed(chances.values()):
        name = "chance" if len(chances) == 1 else f"chance, {label}"
        rows.append([name, *(f"{chance[m]:.2f}" for m in METRICS)])
    if ceiling := oracle.get(protocol_tables.CEILINGS["dual"]):
        rows.append(["oracle, all words", *(f"{ceiling[m]:.2f}" for m in METRICS)])
    title = "Test split, percent: mean ± standard deviation over the seeds"
    return _part(title, ["", *HEADINGS.values()], rows)


def _every_value(results: Rows, seeds: Sequence[int]) -> dict[str, Any]:
    def listed(values: Sequence[float]) -> str:
        return " · ".join(f"{value:.2f}" for value in values)

    rows = [
        [row.label, *(listed(run.metrics[m]) for m in METRICS), " · ".join(map(beta_text, run.beta))]
        for row, run in results
    ]
    return _part(f"Every value, seeds {' · '.join(map(str, seeds))}", ["", *HEADINGS.values(), "β"], rows)


def _cost(results: Rows, speed: bool) -> dict[str, Any]:
    """speed: also images and pairs a second, which mean something only where the runs were evaluated alone."""
    head = ["", "training, s", "evaluation, s", "on threads", "memory of training, MB"]
    head += ["memory of evaluation, MB", "parameters", "parameters of the fusion", "MFLOP a pair"]
    head.append("MFLOP a pair of the fusion")
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
    return _part("Cost (times include the effect of other processes)", head, rows)


def _speed(measured: Sequence[Throughput] | None) -> str:
    """Median of the seeds' medians, lowest 20th to highest 80th percentile; – without a measurement."""
    if not measured:
        return "–"
    middle = statistics.median(m.median for m in measured)
    return f"{middle:,.0f} ({min(m.low for m in measured):,.0f}–{max(m.high for m in measured):,.0f})"
