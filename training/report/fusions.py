"""Fig. 5: what each form of fusion costs and finds, raw values beside the normalised radar.

The input is the summary.json of an experiment: "tables": {"fig5": {"title", "rows": [{"name", "label", "run"}]}}, "run" a
key of "runs" or None while it is missing; each run has, a list having one value a seed, "parameters" and "flops" (of one
image-text pair, or None) {"total", "fusion"}, "memory_mb" {"evaluation": [MB]}, "speed" {"images" and "pairs": [{"median",
"low", "high"}] or None}, items a second, and "mean" and "std" {"mAP"}, percent, std None for one seed.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from training.audit import refuse_audit
from training.report import figures

TABLE = "fig5"
# Fields of a run, with those inside them that are read.
_FIELDS = {"parameters": "total", "memory_mb": "evaluation", "speed": "images", "mean": "mAP", "std": "mAP"}


@dataclass(frozen=True)
class Axis:
    """A quantity of a run; of each the best row is 1 on the radar."""

    name: str
    better: str  # more, less
    read: Callable[[dict[str, Any]], float | None]
    show: Callable[[dict[str, Any]], str]


def read_fusions(path: Path) -> tuple[str, dict[str, dict[str, Any]], list[str]]:
    """Title, runs by their label, and the labels of rows that are not there yet, from a summary.json.

    Raises FileNotFoundError, or ValueError for a file without such a table, with a run that lacks a field, or with no
    finished row.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: `python -m training.experiment {TABLE}` writes it")
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    table = summary.get("tables", {}).get(TABLE) if isinstance(summary, dict) else None
    if table is None:
        raise ValueError(f"{path} has no table {TABLE!r}: `python -m training.experiment {TABLE}` measures it")
    found = {row["label"]: summary["runs"][row["run"]] for row in table["rows"] if row["run"] is not None}
    for label, run in found.items():
        refuse_audit(run, f"{path}: {label!r}")
        lacking = [name for name, inner in _FIELDS.items() if inner not in (run.get(name) or {})]
        if lacking:
            raise ValueError(f"{path}: {label!r} lacks the measurements {', '.join(lacking)}")
    if not found:
        raise ValueError(f"{path}: no row of the table {TABLE!r} is finished")
    return table["title"], found, [row["label"] for row in table["rows"] if row["run"] is None]


def _speed(kind: str) -> tuple[Callable[[dict[str, Any]], float | None], Callable[[dict[str, Any]], str]]:
    def read(run: dict[str, Any]) -> float | None:
        return statistics.median(s["median"] for s in run["speed"][kind]) if run["speed"].get(kind) else None

    def show(run: dict[str, Any]) -> str:
        if (middle := read(run)) is None:
            return "–"
        low, high = (f(s[key] for s in run["speed"][kind]) for f, key in ((min, "low"), (max, "high")))
        return f"{middle:,.1f} ({low:,.1f} – {high:,.1f})"

    return read, show


def _counted(key: str) -> tuple[Callable[[dict[str, Any]], float | None], Callable[[dict[str, Any]], str]]:
    def show(run: dict[str, Any]) -> str:
        counts = run.get(key)
        return f"{counts['total'] / 1e6:,.3f} M (fusion {counts.get('fusion', 0) / 1e6:,.3f} M)" if counts else "–"

    return lambda run: float(run[key]["total"]) if run.get(key) else None, show


def _found(run: dict[str, Any]) -> str:
    spread = run["std"]["mAP"]
    return f"{run['mean']['mAP']:.2f}" + (f" ± {spread:.2f}" if spread is not None else "")


def _memory(run: dict[str, Any]) -> float:
    return max(run["memory_mb"]["evaluation"])


AXES = (
    Axis("parameters", "less", *_counted("parameters")),
    Axis("FLOPs of a pair", "less", *_counted("flops")),
    Axis("peak memory", "less", _memory, lambda run: f"{_memory(run):,.0f} MB"),
    Axis("images/s", "more", *_speed("images")),
    Axis("pairs/s", "more", *_speed("pairs")),
    Axis("mAP", "more", lambda run: run["mean"]["mAP"], _found),
)


def normalise(runs: dict[str, dict[str, Any]]) -> tuple[list[str], dict[str, list[float]]]:
    """Names of the axes of which every run has a value above zero, and each run's values: best / own where less is
    better, own / best where more is."""
    names, series = [], {label: [] for label in runs}  # type: tuple[list[str], dict[str, list[float]]]
    for axis in AXES:
        values = {label: axis.read(run) for label, run in runs.items()}
        if any(value is None or value <= 0 for value in values.values()):
            continue
        names.append(axis.name)
        known = [value for value in values.values() if value is not None]
        for label, value in values.items():
            assert value is not None
            series[label].append(min(known) / value if axis.better == "less" else value / max(known))
    return names, series


def section(path: Path) -> dict[str, Any]:
    """What the template shows of a summary.json. Raises what `read_fusions` does."""
    title, runs, missing = read_fusions(path)
    names, series = normalise(runs)
    rows = [(label, [axis.show(run) for axis in AXES]) for label, run in runs.items()]
    scaled = [(label, [f"{value:.3f}" for value in values]) for label, values in series.items()]
    plot = figures.radar(names, series, label="radar of the forms of fusion") if len(names) > 2 else None
    headings = [f"{axis.name} ({axis.better} is better)" for axis in AXES]
    parts = {"title": title, "headings": headings, "rows": rows, "names": names, "scaled": scaled}
    return parts | {"plot": plot, "missing": missing, "source": path.name}


def build_page(path: Path) -> str:
    """One self-contained page of Fig. 5. Raises what `read_fusions` does."""
    folder = Path(__file__).parent
    environment = Environment(
        loader=FileSystemLoader(folder), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    css = Markup((folder / "page.css").read_text(encoding="utf-8"))
    return environment.get_template("fusions.html.j2").render(css=css, name=path.resolve().parent.name, **section(path))
