"""Pages about an experiment, made from its summary.json: one self-contained HTML page, and Markdown with PNG plots."""

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
from training.evaluation.audit_guard import refuse_audit
from training.report import config_rows, plots, plots_paper
from training.report import radar as fusions
from training.report.run_files import METRICS, parse
from training.report.run_page import METRIC_NAMES, write_whole

HERE = Path(__file__).parent
PAPER: dict[str, Any] = json.loads((HERE / "paper.json").read_text(encoding="utf-8"))
# Two rows differ for us when p is below this.
LEVEL = 0.05
_FIELDS = ("command", "recipe", "seeds", "config", "test", "data", "versions", "missing", "tables", "runs")
# Fields of a run, with those inside them that are read by name.
_RUN_FIELDS: dict[str, tuple[str, ...]] = {
    **{name: () for name in ("recipe", "changes", "data", "beta", "threads", "flops", "comparison")},
    **dict.fromkeys(("metrics", "mean", "std", "chance"), METRICS),
    "seconds": ("training", "evaluation"),
    "memory_mb": ("training", "evaluation"),
    "parameters": ("total", "fusion"),
    "speed": ("images", "pairs"),
}
COMPARED = ("R1", "mAP")


def read_experiment(folder: Path) -> dict[str, Any]:
    """summary.json of an experiment. Raises FileNotFoundError, or ValueError when it is damaged or of another kind, or has a
    run of the protocol paired-audit."""
    path = folder / "summary.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: run `python -m training.experiment` first")
    summary = parse(path.read_text(encoding="utf-8"), str(path))
    lacking = [name for name in _FIELDS if name not in summary]
    if lacking:
        raise ValueError(f"{path} is not the summary of an experiment: it lacks {', '.join(lacking)}")
    for key, run in summary["runs"].items():
        refuse_audit(run, f"{path}: the run {key}")
        held = {name: set(run[name] or ()) for name in _RUN_FIELDS if name in run and _RUN_FIELDS[name]}
        lacking = [n for n, inner in _RUN_FIELDS.items() if n not in run or not set(inner) <= held.get(n, set())]
        if lacking:
            raise ValueError(f"{path}: the run {key} lacks the measurements {', '.join(lacking)}")
    return summary


class Picture(NamedTuple):
    """A plot of a table: "differences" or "radar", what draws it, its size in inches, and the end of its file's name."""

    kind: str
    draw: plots.Draw
    size: tuple[float, float]
    suffix: str = ""


def _pictures(view: dict[str, Any]) -> list[Picture]:
    pictures, radar = [], view["radar"]
    if view["plotted"]:
        size = (6.4, 0.9 + 0.36 * len(view["plotted"]))
        pictures.append(Picture("differences", partial(plots.draw_differences, rows=view["plotted"]), size))
    # Two spokes make no area.
    if radar and len(radar["names"]) > 2:
        draw = partial(plots_paper.draw_radar, names=radar["names"], series=radar["series"])
        pictures.append(Picture("radar", draw, (5.4, 4.4), "-radar"))
    return pictures


def write_experiment(folder: Path) -> Path:
    """Writes FOLDER/report.html in one move and returns its path."""
    summary = read_experiment(folder)
    return write_whole(folder / "report.html", build_experiment(summary, folder.resolve().name).encode())


def build_experiment(summary: dict[str, Any], name: str) -> str:
    """The page as one HTML text without any outside reference. The same summary always gives the same text."""
    views = _views(summary)
    for view in views:
        for kind, draw, size, _ in _pictures(view):
            label, polar = f"{view['name']} {kind}", kind == "radar"
            view["plots"][kind] = plots.vector(draw, size, label=label, polar=polar)
    css = Markup((HERE / "page.css").read_text(encoding="utf-8"))
    return _render("experiment_page.html.j2", summary, views, name=name, css=css)


def write_markdown(summary: dict[str, Any], path: Path) -> list[Path]:
    """Writes the page as Markdown to `path`, and its plots as PNG beside it; returns all their paths, the page first."""
    views, written = _views(summary), []
    for view in views:
        for kind, draw, size, suffix in _pictures(view):
            image = path.with_name(f"{path.stem}-{view['name']}{suffix}.png")
            written.append(write_whole(image, plots.raster(draw, size, polar=kind == "radar")))
            view["plots"][kind] = image.name
    text = _render("experiment_page.md.j2", summary, views, name=path.stem, css="")
    return [write_whole(path, text.encode()), *written]


def _render(template: str, summary: dict[str, Any], views: list[dict[str, Any]], **values: Any) -> str:
    environment = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=template.endswith(".html.j2"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    data = [
        (fingerprint, f"{entry['name']}, {entry['root']}: {_counts(entry['counts'])}{_split(entry)}")
        for fingerprint, entry in summary["data"].items()
    ]
    return environment.get_template(template).render(
        summary=summary,
        views=views,
        paper=PAPER["citation"],
        level=LEVEL,
        data=data,
        opposite=_opposite(views),
        changes=_changed(summary),
        config_rows=config_rows.rows(summary["config"]),
        version_rows=config_rows.rows(summary["versions"]),
        **values,
    )


def _split(entry: dict[str, Any]) -> str:
    """Where the splits come from; evaluations of earlier versions do not say it."""
    return f"; {entry['split']}" if "split" in entry else ""


def _counts(counts: dict[str, Any]) -> str:
    return ", ".join(f"{split} {n['ids']} ids / {n['images']} images" for split, n in counts.items())


def _changed(summary: dict[str, Any]) -> list[tuple[str, str]]:
    """(recipe, its fields that differ from the full model's) of every run."""
    return [
        (run["recipe"], ", ".join(f"{key} = {config_rows.show(value)}" for key, value in run["changes"].items()) or "–")
        for run in summary["runs"].values()
    ]


def _views(summary: dict[str, Any]) -> list[dict[str, Any]]:
    """What a page shows of each table: parts {"title", "head", "rows"} of text, and the numbers of its plot."""
    views = []
    for name, table in summary["tables"].items():
        found = [(row, summary["runs"][row["run"]]) for row in table["rows"] if row["run"] is not None]
        paper = PAPER["tables"].get(name, {})
        full = REFERENCES.get(name, FULL)
        compared = [(row, run, _paper_difference(paper, row["name"], full)) for row, run in found if run["comparison"]]
        parts = [_results(found), _every_value(found, summary["seeds"])] if found else []
        if compared:
            parts.append(_differences(compared, len(summary["seeds"])))
        if found:
            parts.append(_cost(found, speed=name == fusions.TABLE))
        # One form of fusion alone is the best of itself.
        radar = name == fusions.TABLE and len(found) > 1
        views.append(
            {
                "name": name,
                "title": table["title"],
                "parts": parts,
                "missing": [row["label"] for row in table["rows"] if row["run"] is None],
                "plotted": [
                    (row["label"], run["comparison"]["mAP"], paper and paper["mAP"]) for row, run, paper in compared
                ],
                "radar": fusions.radar({row["label"]: run for row, run in found}) if radar else None,
                "plots": dict.fromkeys(("differences", "radar")),
                "opposite": [
                    (row["label"], METRIC_NAMES[metric], run["comparison"][metric], paper[metric])
                    for row, run, paper in compared
                    for metric in COMPARED
                    if paper and _differs(run["comparison"][metric], paper[metric])
                ],
            }
        )
    return views


def _paper_difference(paper: dict[str, dict[str, float]], name: str, full: str) -> dict[str, float] | None:
    """The paper's row minus its row `full`, where it has both."""
    if name not in paper or full not in paper:
        return None
    return {metric: paper[name][metric] - paper[full][metric] for metric in COMPARED}


def _differs(ours: dict[str, Any], paper: float) -> bool:
    """Whether our difference has another sign than the paper's."""
    return ours["delta"] == 0 or math.copysign(1, ours["delta"]) != math.copysign(1, paper)


def _certain(ours: dict[str, Any]) -> bool:
    return ours["p"] is not None and ours["p"] < LEVEL


def _opposite(views: list[dict[str, Any]]) -> list[str]:
    """A sentence for each difference whose sign is not the paper's."""
    return [
        f"{view['title']}, {label}: {metric} {ours['delta']:+.2f} here ("
        f"{'p ' + format(ours['p'], '.4f') if ours['p'] is not None else 'no test'}), {paper:+.2f} in the paper"
        for view in views
        for label, metric, ours, paper in view["opposite"]
    ]


Found = Sequence[tuple[dict[str, Any], dict[str, Any]]]


def _part(title: str, head: list[str], rows: list[list[str]]) -> dict[str, Any]:
    return {"title": title, "head": head, "rows": rows}


def _results(found: Found) -> dict[str, Any]:
    rows = []
    for row, run in found:
        spread = [f" ± {run['std'][m]:.2f}" if run["std"][m] is not None else "" for m in METRICS]
        rows.append([row["label"], *(f"{run['mean'][m]:.2f}{s}" for m, s in zip(METRICS, spread, strict=True))])
    # Rows of one test split share their chance.
    chances = {tuple(run["chance"].values()): (row["label"], run["chance"]) for row, run in reversed(found)}
    for label, chance in reversed(chances.values()):
        name = "chance" if len(chances) == 1 else f"chance, {label}"
        rows.append([name, *(f"{chance[m]:.2f}" for m in METRICS)])
    title = "Test split, percent: mean ± standard deviation over the seeds"
    return _part(title, ["", *METRIC_NAMES.values()], rows)


def _every_value(found: Found, seeds: Sequence[int]) -> dict[str, Any]:
    def listed(values: Sequence[float]) -> str:
        return " · ".join(f"{value:.2f}" for value in values)

    columns = [METRIC_NAMES[m] for m in METRICS]
    rows = [[row["label"], *(listed(run["metrics"][m]) for m in METRICS), listed(run["beta"])] for row, run in found]
    return _part(f"Every value, seeds {' · '.join(map(str, seeds))}", ["", *columns, "β"], rows)


def _differences(
    compared: Sequence[tuple[dict[str, Any], dict[str, Any], dict[str, float] | None]], seeds: int
) -> dict[str, Any]:
    head = [""]
    for metric in COMPARED:
        name = METRIC_NAMES[metric]
        head += [f"Δ {name}", "95 % interval", "p", "seeds", f"paper's Δ {name}", "sign"]
    rows = []
    for row, run, paper in compared:
        cells = [row["label"]]
        for metric in COMPARED:
            ours = run["comparison"][metric]
            tested = ours["p"] is not None
            cells += [f"{ours['delta']:+.2f}", f"{ours['low']:+.2f} … {ours['high']:+.2f}" if tested else "–"]
            cells += [f"{ours['p']:.4f}" if tested else "–", f"{ours['same_sign']} of {seeds}"]
            if paper is None:
                cells += ["–", "–"]
            else:
                sign = "opposite" if _differs(ours, paper[metric]) else "same"
                cells += [f"{paper[metric]:+.2f}", sign if _certain(ours) else f"{sign}, unsure"]
        rows.append(cells)
    return _part("Difference to the full model, percentage points", head, rows)


def _cost(found: Found, speed: bool) -> dict[str, Any]:
    """speed: images and pairs a second too, which are worth reading where the runs were evaluated alone only."""
    head = ["", "training, s", "evaluation, s", "on threads", "memory of training, MB", "of evaluation, MB"]
    head += ["parameters", "of the fusion", "MFLOP a pair", "of the fusion"]
    rows = []
    for row, run in found:
        seconds, flops, memory = run["seconds"], run["flops"], run["memory_mb"]
        known = [value for value in memory["training"] if value is not None]
        cells = [row["label"], _mean(seconds["training"]), _mean(seconds["evaluation"])]
        cells += [" or ".join(sorted(set(run["threads"]))), f"{max(known):,.0f}" if known else "–"]
        cells += [f"{max(memory['evaluation']):,.0f}", *(f"{run['parameters'][k]:,}" for k in ("total", "fusion"))]
        cells += ["–", "–"] if flops is None else [f"{flops[key] / 1e6:,.3f}" for key in ("total", "fusion")]
        rows.append(cells + [_speed(run["speed"][kind]) for kind in ("images", "pairs") if speed])
    head += ["images/s", "pairs/s through the fusion"] if speed else []
    return _part("Cost", head, rows)


def _mean(values: Sequence[float]) -> str:
    return f"{sum(values) / len(values):.1f}"


def _speed(measured: Sequence[dict[str, Any]] | None) -> str:
    """Median over the seeds' medians, from the lowest 20th to the highest 80th percentile."""
    if not measured:
        return "–"
    middle = statistics.median(m["median"] for m in measured)
    return f"{middle:,.0f} ({min(m['low'] for m in measured):,.0f}–{max(m['high'] for m in measured):,.0f})"
