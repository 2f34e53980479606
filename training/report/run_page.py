"""Page of a run, from the files of its folder and the images of its data root."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from training.evaluation.result import HEADINGS, METRICS, Evaluation, Metrics, OracleBounds, beta_text
from training.evaluation.run_folder import Run, TrainingStep
from training.report import config_rows, diagnosis_section, disentangle_section, plots, protocol_tables
from training.report.thumbnails import thumbnail
from training.utils.io import write_bytes

# Queries on the page, and images of each.
EXAMPLES, RANKED = 10, 10
_HISTOGRAMS = (
    ("gate_id", "Identity gate g", "g"),
    ("gate_clo", "Clothing gate 1 − g", "1 − g"),
    ("fusion_image", "Fusion weight of the image", "weight of the image"),
    ("fusion_text", "Fusion weight of the text", "weight of the text"),
)


def write_page(run: Run, data_root: Path | None = None) -> Path:
    """Writes RUN/report.html atomically and returns its path; data_root: the data set's folder, if it was moved."""
    return write_bytes(run.folder / "report.html", build_page(run, data_root).encode())


def build_page(run: Run, data_root: Path | None = None) -> str:
    """The page as one HTML text without any outside reference. The same files always give the same text."""
    evaluation = run.evaluation
    config = evaluation.config
    root = data_root or Path(config["data"]["root"])
    templates = FileSystemLoader(Path(__file__).parent)
    environment = Environment(loader=templates, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    examples = _examples(evaluation, root / "imgs")
    return environment.get_template("run_page.html.j2").render(
        name=run.folder.resolve().name,
        css=Markup((Path(__file__).parent / "page.css").read_text(encoding="utf-8")),
        evaluation=evaluation,
        config=config,
        headings=HEADINGS,
        headline=_headline(evaluation, run.oracle),
        protocols=protocol_tables.of_run(run),
        diagnosis=diagnosis_section.section(run.diagnosis) if run.diagnosis else None,
        examples=examples,
        unreadable_images=sum(item["image"] is None for example in examples for item in example["results"]),
        image_folder=root / "imgs",
        training=_training(run),
        histograms=_histograms(evaluation),
        disentanglement=(
            disentangle_section.section(run.disentanglement, run.feature_arrays) if run.disentanglement else None
        ),
        calls=config_rows.call_rows(evaluation.calls),
        config_rows=config_rows.rows(config),
        command=config_rows.repeat_command(config, f"{run.folder.name}-again"),
        fact_groups=_fact_groups(evaluation),
    )


def _headline(evaluation: Evaluation, oracle: OracleBounds | None) -> list[dict[str, Any]]:
    def cells(values: Metrics) -> list[str]:
        return [f"{values[m]:.2f}" for m in METRICS]

    metrics, chance = evaluation.metrics, evaluation.chance
    beta = f"β = {beta_text(evaluation.beta)}"
    times = [f"{metrics[m] / chance[m]:.1f}×" if chance[m] > 0 else "–" for m in METRICS]
    ceiling = () if oracle is None else ((name, "", "quiet", cells(values)) for name, values in oracle.rows.items())
    identity = ("β = 0", "identity embedding only", "", cells(evaluation.metrics_beta0))
    rows = (
        (beta, "chosen on validation", "main", cells(metrics)),
        *((identity,) if evaluation.beta else ()),
        *ceiling,
        ("chance", "exact, random order", "quiet", cells(chance)),
        ("times chance", beta, "quiet", times),
    )
    return [dict(zip(("name", "note", "kind", "cells"), row, strict=True)) for row in rows]


def _examples(evaluation: Evaluation, folder: Path) -> list[dict[str, Any]]:
    image = cache(lambda file_path: thumbnail(folder / file_path))
    shown = []
    for example in evaluation.examples[:EXAMPLES]:
        results = [
            {**vars(result), "image": image(result.file_path), "described": result.file_path == example.file_path}
            for result in example.results[:RANKED]
        ]
        right = [rank for rank, result in enumerate(results, 1) if result["correct"]]
        shown.append({"caption": example.caption, "id": example.id, "results": results, "right": right})
    return shown


def _training(run: Run) -> dict[str, Any]:
    """Plots of metrics.jsonl, each None or empty without its numbers."""
    steps, validations = run.log.steps, run.log.validations
    shown: dict[str, Any] = {"losses": [], "weights": None, "norms": None, "validation": None, "best": None}
    if steps:
        shown["steps"] = len(steps)
        shown["binned"] = -(-len(steps) // plots.MAX_POINTS) if len(steps) > plots.MAX_POINTS else 1
        total = ([step.step for step in steps], [step.loss for step in steps])
        losses = {"total (weighted)": total, **_series(steps, "losses")}
        shown["losses"] = [
            (name, plots.lines({name: pair}, label=f"{name} loss", x_label="step", size=(3.5, 1.9), first_colour=i % 6))
            for i, (name, pair) in enumerate(losses.items())
        ]
        for key, label in (("weights", "task weights"), ("norms", "gradient norms")):
            series = _series(steps, key)
            if series:
                shown[key] = plots.lines(series, label=label, x_label="step", log=_needs_log_axis(series))
    if validations:
        epochs = [line["epoch"] for line in validations]
        curves = {HEADINGS[m]: (epochs, [line[m] for line in validations]) for m in METRICS}
        select_by = run.evaluation.config.get("eval", {}).get("select_by", "R1")
        averaged = {line["epoch"]: line[f"ema_{select_by}"] for line in validations if f"ema_{select_by}" in line}
        if averaged:
            curves[f"{HEADINGS[select_by]}, averaged weights"] = (list(averaged), list(averaged.values()))
        shown["best"] = _best(validations, select_by)
        mark = shown["best"]["epoch"]
        shown["validation"] = plots.lines(curves, label="validation metrics", x_label="epoch", mark=mark)
    return shown


def _best(validations: Sequence[dict[str, float]], select_by: str) -> dict[str, Any]:
    """The validation that selected the checkpoint, and which weights it was of where there are averaged ones: of equal values the
    first, in an epoch that of the weights themselves, as in training."""
    names = {select_by: "weights themselves", f"ema_{select_by}": "averaged weights"}
    found = [(line[key], line["epoch"], words) for line in validations for key, words in names.items() if key in line]
    value, epoch, words = max(found, key=lambda one: one[0])
    several = len(found) > len(validations)
    weights = f" of the {words}" if several else ""
    return {"epoch": epoch, "metric": HEADINGS[select_by], "value": value, "weights": weights}


def _series(steps: Sequence[TrainingStep], group: str) -> dict[str, plots.Series]:
    """Steps and values of each task in losses, weights or norms."""
    series: dict[str, tuple[list[float], list[float]]] = {}
    for step in steps:
        for name, value in getattr(step, group).items():
            xs, ys = series.setdefault(name, ([], []))
            xs.append(step.step)
            ys.append(value)
    return dict(series)


def _needs_log_axis(series: dict[str, plots.Series]) -> bool:
    """True for positive values that differ by more than a factor of 20."""
    values = [value for _, ys in series.values() for value in ys]
    return min(values) > 0 and max(values) / min(values) > 20


def _histograms(evaluation: Evaluation) -> list[dict[str, Any]]:
    shown = []
    for i, (key, title, x_label) in enumerate(_HISTOGRAMS):
        values = evaluation.histograms.get(key)
        plot: Markup | None = None
        if values and len(values.counts):
            plot = plots.histogram(values.edges, values.counts, values.mean, label=title, x_label=x_label, colour=i % 2)
        shown.append({"key": key, "title": title, "plot": plot, "values": values})
    return shown


def _fact_groups(evaluation: Evaluation) -> list[tuple[str, list[tuple[str, str]]]]:
    run = [(name, str(evaluation.config[name])) for name in ("recipe", "seed")]
    memory = evaluation.memory_mb
    peak = [] if memory is None else [("peak memory of the evaluation", f"{memory:,.0f} MB")]
    seconds = [(key, f"{text} s") for key, text in config_rows.rows(evaluation.seconds)]
    return [
        ("Run and checkpoint", run + config_rows.rows(evaluation.checkpoint)),
        ("Data", config_rows.rows(evaluation.data)),
        ("Versions and machine", config_rows.rows(evaluation.versions)),
        ("Time and memory", seconds + peak),
    ]
