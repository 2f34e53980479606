"""What the files of a run folder say, read and checked: eval.json (needed), metrics.jsonl (curves), disentangle.json."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.evaluation.audit_guard import refuse_audit
from training.report.disentangle_section import read_disentangled

METRICS = ("R1", "R5", "R10", "mAP", "mINP")

# Fields that a line of metrics.jsonl needs, per kind, and their types.
_LINE_FIELDS: dict[str, dict[str, type | tuple[type, ...]]] = {
    "step": {"step": int, "loss": (int, float), "losses": dict, "weights": dict, "norms": dict},
    "validation": {"epoch": int, **{name: (int, float) for name in METRICS}},
}


@dataclass(frozen=True)
class Run:
    """One finished run: `evaluation` is eval.json, `steps` and `validations` the lines of metrics.jsonl in order.

    Both lists are None when metrics.jsonl is not there. A step or an epoch that was run again after a resume counts
    once, with its last values. `disentangled` is disentangle.json with the arrays beside it, or None.
    """

    folder: Path
    evaluation: dict[str, Any]
    steps: list[dict[str, Any]] | None
    validations: list[dict[str, Any]] | None
    disentangled: dict[str, Any] | None = None


def read_run(folder: Path) -> Run:
    """The run in `folder`.

    Raises FileNotFoundError when the folder or its eval.json is missing, ValueError when a file is not valid JSON, lacks
    a field that the page needs, or is no result of text-to-image retrieval.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such run folder")
    path = folder / "eval.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: run `python -m training.evaluate {folder}` first")
    evaluation = parse(path.read_text(encoding="utf-8"), str(path))
    refuse_audit(evaluation, str(path))
    _check_evaluation(evaluation, path)
    steps, validations = _read_metrics(folder / "metrics.jsonl")
    path, disentangled = folder / "disentangle.json", None
    if path.is_file():
        disentangled = read_disentangled(folder, evaluation, parse(path.read_text(encoding="utf-8"), str(path)))
    return Run(folder, evaluation, steps, validations, disentangled)


def parse(text: str, where: str) -> dict[str, Any]:
    """The JSON object in `text`. Raises ValueError that begins with `where`."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where} is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{where} must hold a JSON object, got {type(value).__name__}")
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _check_evaluation(evaluation: dict[str, Any], path: Path) -> None:
    for key in ("metrics", "metrics_beta0", "chance"):
        values = evaluation.get(key)
        if not isinstance(values, dict) or not all(_is_number(values.get(name)) for name in METRICS):
            raise ValueError(f"{path}: {key!r} must hold the finite numbers {', '.join(METRICS)}, got {values!r}")
    if not _is_number(evaluation.get("beta")):
        raise ValueError(f"{path}: 'beta' must be a finite number, got {evaluation.get('beta')!r}")
    counts = evaluation.get("counts")
    if not isinstance(counts, dict) or not all(_is_number(counts.get(key)) for key in ("queries", "gallery", "ids")):
        raise ValueError(f"{path}: 'counts' must hold the numbers queries, gallery, ids, got {counts!r}")
    config = evaluation.get("config")
    if not isinstance(config, dict) or not {"recipe", "seed", "data"} <= set(config):
        raise ValueError(f"{path}: 'config' must be the whole configuration of the run, got {config!r}")
    for i, example in enumerate(evaluation.get("examples") or []):
        _require(example, ("caption", "file_path", "id", "results"), f"{path}: examples[{i}]")
        for k, result in enumerate(example["results"]):
            _require(result, ("file_path", "id", "score", "correct"), f"{path}: examples[{i}].results[{k}]")
    for name, histogram in (evaluation.get("histograms") or {}).items():
        if histogram is not None:
            _require(histogram, ("edges", "counts", "mean", "std"), f"{path}: histograms.{name}")


def _require(value: Any, fields: tuple[str, ...], where: str) -> None:
    if not isinstance(value, dict) or not set(fields) <= set(value):
        raise ValueError(f"{where} must have the fields {', '.join(fields)}, got {value!r}")


def _read_metrics(path: Path) -> tuple[list[dict[str, Any]] | None, list[dict[str, Any]] | None]:
    if not path.is_file():
        return None, None
    steps: dict[int, dict[str, Any]] = {}
    validations: dict[int, dict[str, Any]] = {}
    for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        where = f"{path} line {number}"
        line = parse(text, where)
        kind = line.get("kind")
        if kind not in _LINE_FIELDS:
            raise ValueError(f"{where}: 'kind' must be one of {', '.join(_LINE_FIELDS)}, got {kind!r}")
        wrong = [key for key, types in _LINE_FIELDS[kind].items() if not isinstance(line.get(key), types)]
        if wrong:
            raise ValueError(f"{where}: a {kind} line lacks a valid {', '.join(map(repr, wrong))}")
        if kind == "step":
            steps[line["step"]] = line
        else:
            validations[line["epoch"]] = line
    return [steps[key] for key in sorted(steps)], [validations[key] for key in sorted(validations)]
