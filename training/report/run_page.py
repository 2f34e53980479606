"""The page: everything it shows is taken from a `Run` and the images of its data root."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from training.report import config_rows, disentangle_section, plots
from training.report.run_files import METRICS, Run
from training.report.thumbnails import thumbnail

EXAMPLES = 10
METRIC_NAMES = {"R1": "R-1", "R5": "R-5", "R10": "R-10", "mAP": "mAP", "mINP": "mINP"}
_HISTOGRAMS = (
    ("gate_id", "Identity gate g", "g"),
    ("gate_clo", "Clothing gate 1 − g", "1 − g"),
    ("fusion_image", "Fusion weight of the image", "weight of the image"),
    ("fusion_text", "Fusion weight of the text", "weight of the text"),
)


def write_page(run: Run, data_root: Path | None = None) -> Path:
    """Writes RUN/report.html in one move and returns its path; `data_root` where the data set was moved since."""
    return write_whole(run.folder / "report.html", build_page(run, data_root).encode())


def write_whole(path: Path, content: bytes) -> Path:
    """Writes a file in one move and returns its path."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=path.suffix)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    return path


def build_page(run: Run, data_root: Path | None = None) -> str:
    """The page as one HTML text without any outside reference. The same files always give the same text."""
    evaluation = run.evaluation
    config = evaluation["config"]
    root = data_root or Path(config["data"]["root"])
    templates = FileSystemLoader(Path(__file__).parent)
    environment = Environment(loader=templates, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    examples = _examples(evaluation, root / "imgs")
    return environment.get_template("run_page.html.j2").render(
        name=run.folder.resolve().name,
        css=Markup((Path(__file__).parent / "page.css").read_text(encoding="utf-8")),
        evaluation=evaluation,
        config=config,
        metric_names=METRIC_NAMES,
        headline=_headline(evaluation),
        examples=examples,
        lost_images=sum(item["image"] is None for example in examples for item in example["results"]),
        image_folder=root / "imgs",
        training=_training(run),
        histograms=_histograms(evaluation),
        apart=disentangle_section.section(run.disentangled) if run.disentangled else None,
        calls=config_rows.call_rows(evaluation.get("calls")),
        config_rows=config_rows.rows(config),
        command=config_rows.repeat_command(config, f"{run.folder.name}-again"),
        fact_groups=_fact_groups(evaluation, config),
    )


def _headline(evaluation: dict[str, Any]) -> list[dict[str, Any]]:
    metrics, beta0, chance = (evaluation[key] for key in ("metrics", "metrics_beta0", "chance"))
    beta = f"β = {evaluation['beta']:g}"
    times = [f"{metrics[m] / chance[m]:.1f}×" if chance[m] > 0 else "–" for m in METRICS]
    rows = (
        (beta, "chosen on validation", "main", [f"{metrics[m]:.2f}" for m in METRICS]),
        ("β = 0", "identity embedding only", "", [f"{beta0[m]:.2f}" for m in METRICS]),
        ("chance", "exact, random order", "quiet", [f"{chance[m]:.2f}" for m in METRICS]),
        ("times chance", beta, "quiet", times),
    )
    return [dict(zip(("name", "note", "kind", "cells"), row, strict=True)) for row in rows]


def _examples(evaluation: dict[str, Any], folder: Path) -> list[dict[str, Any]]:
    seen: dict[str, str | None] = {}

    def image(file_path: str) -> str | None:
        if file_path not in seen:
            seen[file_path] = thumbnail(folder / file_path)
        return seen[file_path]

    shown = []
    for example in (evaluation.get("examples") or [])[:EXAMPLES]:
        results = [
            {**result, "image": image(result["file_path"]), "described": result["file_path"] == example["file_path"]}
            for result in example["results"][:10]
        ]
        right = [rank for rank, result in enumerate(results, 1) if result["correct"]]
        shown.append({**example, "results": results, "right": right})
    return shown


def _training(run: Run) -> dict[str, Any]:
    """Plots of metrics.jsonl, each None when its numbers are not there."""
    plotted: dict[str, Any] = {"losses": [], "weights": None, "norms": None, "validation": None, "best": None}
    if run.steps:
        steps = [line["step"] for line in run.steps]
        plotted["steps"] = len(steps)
        plotted["binned"] = -(-len(steps) // plots.MAX_POINTS) if len(steps) > plots.MAX_POINTS else 1
        total = (steps, [line["loss"] for line in run.steps])
        losses = {"total (weighted)": total, **_series(run.steps, "losses")}
        plotted["losses"] = [
            (name, plots.lines({name: pair}, label=f"{name} loss", x_label="step", size=(3.5, 1.9), first_colour=i % 6))
            for i, (name, pair) in enumerate(losses.items())
        ]
        for key, label in (("weights", "task weights"), ("norms", "gradient norms")):
            series = _series(run.steps, key)
            if series:
                plotted[key] = plots.lines(series, label=label, x_label="step", log=_spread(series))
    if run.validations:
        epochs = [line["epoch"] for line in run.validations]
        curves = {METRIC_NAMES[m]: (epochs, [line[m] for line in run.validations]) for m in METRICS}
        select_by = run.evaluation["config"].get("eval", {}).get("select_by", "R1")
        best = max(run.validations, key=lambda line: line[select_by])
        plotted["best"] = {"epoch": best["epoch"], "metric": METRIC_NAMES[select_by], "value": best[select_by]}
        plotted["validation"] = plots.lines(curves, label="validation metrics", x_label="epoch", mark=best["epoch"])
    return plotted


def _series(steps: list[dict[str, Any]], key: str) -> dict[str, plots.Series]:
    series: dict[str, tuple[list[float], list[float]]] = {}
    for line in steps:
        for name, value in line[key].items():
            xs, ys = series.setdefault(name, ([], []))
            xs.append(line["step"])
            ys.append(value)
    return dict(series)


def _spread(series: dict[str, plots.Series]) -> bool:
    """Whether the values are all positive and differ by more than a factor of 20, so that a log axis reads better."""
    values = [value for _, ys in series.values() for value in ys]
    return min(values) > 0 and max(values) / min(values) > 20


def _histograms(evaluation: dict[str, Any]) -> list[dict[str, Any]]:
    given = evaluation.get("histograms") or {}
    shown = []
    for i, (key, title, x_label) in enumerate(_HISTOGRAMS):
        values = given.get(key)
        plot: Markup | None = None
        if values and len(values["counts"]):
            plot = plots.histogram(
                values["edges"], values["counts"], values["mean"], label=title, x_label=x_label, colour=i % 2
            )
        shown.append({"key": key, "title": title, "plot": plot, "values": values})
    return shown


def _fact_groups(evaluation: dict[str, Any], config: dict[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    run = [("recipe", str(config["recipe"])), ("seed", str(config["seed"]))]
    memory = evaluation.get("memory_mb")
    peak = [] if memory is None else [("peak memory of the evaluation", f"{memory:,.0f} MB")]
    seconds = [(key, f"{text} s") for key, text in config_rows.rows(evaluation.get("seconds"))]
    return [
        ("Run and checkpoint", run + config_rows.rows(evaluation.get("checkpoint"))),
        ("Data", config_rows.rows(evaluation.get("data"))),
        (
            "Versions and machine",
            config_rows.rows(evaluation.get("versions")) + config_rows.rows(evaluation.get("machine")),
        ),
        ("Time and memory", seconds + peak),
    ]
