"""Results of an experiment, from the files of its runs: one dict, stored as summary.json and read by tables and pages."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from training.config import Config, to_dict
from training.config.ablations import FULL, REFERENCES, Row
from training.evaluation import significance
from training.evaluation.audit_guard import refuse_audit
from training.evaluation.metrics import METRICS
from training.utils.io import read_json

# Metrics that each query has a value of, and the array that holds it.
COMPARED = {"R1": "r1", "mAP": "ap"}


def run_folder(out: Path, key: str, seed: int) -> Path:
    """Folder of the run of a configuration (ablations.run_key) and seed in an experiment."""
    return out / key / f"seed{seed}"


def is_finished(folder: Path) -> bool:
    """True when a run is trained and evaluated."""
    return (folder / "eval.json").is_file()


def summarise(
    rows: Sequence[Row], titles: dict[str, str], seeds: Sequence[int], out: Path, base: Config
) -> dict[str, Any]:
    """Contents of summary.json for the rows of the tables `titles` (name: title).

    "tables": {name: {"title", "rows": [{"name", "label", "run"}]}}, "run" a key of "runs" or None while a seed of it is
    missing; "missing": [[label, seed]] of those; "runs": see `_run`, "comparison" with the base's run over the same seeds,
    or None; "data" by fingerprint, "versions", "seeds", "config" of the base, and "test", the words of the comparison.
    Raises ValueError when runs that are to be compared are of different data, and what reading the files raises.
    """
    runs: dict[str, dict[str, Any]] = {}
    missing: dict[tuple[str, int], None] = {}
    for row in rows:
        absent = [seed for seed in seeds if not is_finished(run_folder(out, row.key, seed))]
        missing |= dict.fromkeys((row.label, seed) for seed in absent)
        if not absent and row.key not in runs:
            runs[row.key] = _run(row, [run_folder(out, row.key, seed) for seed in seeds], base)
    evaluations = [read_json(run_folder(out, key, seeds[0]) / "eval.json") for key in runs]
    _compare(rows, runs, seeds, out)
    return {
        "recipe": base.recipe,
        "seeds": list(seeds),
        "config": to_dict(base),
        "test": significance.TEST,
        "data": {e["data"]["fingerprint"]: e["data"] for e in evaluations},
        "versions": evaluations[0]["versions"] if evaluations else {},
        "missing": [list(entry) for entry in missing],
        "tables": {
            name: {
                "title": title,
                "rows": [
                    {"name": row.name, "label": row.label, "run": row.key if row.key in runs else None}
                    for row in rows
                    if row.table == name
                ],
            }
            for name, title in titles.items()
        },
        "runs": runs,
    }


def _run(row: Row, folders: list[Path], base: Config) -> dict[str, Any]:
    """One configuration over the seeds: "recipe", "changes" of the base's fields, "data", "folders"; "metrics", "mean" and
    "std" (n - 1; None for one seed) in percent, "metrics_beta0", "beta", "chance", "ratio"; "threads" of the evaluation,
    "seconds" and "memory_mb" by phase; "parameters", "flops" and "speed" (see efficiency.measure). A list has a value for
    each seed.

    Raises ValueError when the runs are of different data.
    """
    evaluations = [read_json(folder / "eval.json") for folder in folders]
    for folder, evaluation in zip(folders, evaluations, strict=True):
        refuse_audit(evaluation, str(folder / "eval.json"))
    prints = {evaluation["data"]["fingerprint"] for evaluation in evaluations}
    if len(prints) > 1:
        raise ValueError(f"the runs of {row.label!r} are of different data, fingerprints {sorted(prints)}")
    values = {name: [e["metrics"][name] for e in evaluations] for name in METRICS}
    mean, chance = {name: statistics.fmean(column) for name, column in values.items()}, evaluations[0]["chance"]
    several = len(evaluations) > 1
    return {
        "recipe": row.config.recipe,
        "changes": _changes(to_dict(base), to_dict(row.config)),
        "data": prints.pop(),
        "folders": [str(folder) for folder in folders],
        "metrics": values,
        "mean": mean,
        "std": {name: statistics.stdev(column) if several else None for name, column in values.items()},
        "metrics_beta0": {name: [e["metrics_beta0"][name] for e in evaluations] for name in METRICS},
        "beta": [e["beta"] for e in evaluations],
        "chance": chance,
        "ratio": {name: mean[name] / chance[name] for name in METRICS},
        "threads": [e["versions"]["threads"] for e in evaluations],
        "seconds": {phase: [e["seconds"][phase] for e in evaluations] for phase in evaluations[0]["seconds"]},
        "memory_mb": {
            "training": [e["training_memory_mb"] for e in evaluations],
            "evaluation": [e["memory_mb"] for e in evaluations],
        },
        "parameters": evaluations[0]["efficiency"]["parameters"],
        "flops": evaluations[0]["efficiency"]["flops"],
        "speed": {
            kind: [e["efficiency"]["speed"][kind] for e in evaluations if e["efficiency"]["speed"][kind]] or None
            for kind in ("images", "pairs")
        },
        "comparison": None,
    }


def _changes(base: dict[str, Any], ours: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted names of the fields in which two configurations differ, but for the name, and our values."""
    found: dict[str, Any] = {}
    for name, value in ours.items():
        if isinstance(value, dict):
            found |= _changes(base[name], value, f"{prefix}{name}.")
        elif base[name] != value and prefix + name not in ("recipe", "seed"):
            found[prefix + name] = value
    return found


def _compare(rows: Sequence[Row], runs: dict[str, dict[str, Any]], seeds: Sequence[int], out: Path) -> None:
    """Sets "comparison" {"R1", "mAP"} of every run but those that the others of their table are compared with, in
    percentage points."""
    for table in dict.fromkeys(row.table for row in rows):
        name = REFERENCES.get(table, FULL)
        full = next((row for row in rows if row.name == name and row.key in runs), None)
        if full is None:
            continue
        reference = _queries(out, full.key, seeds)
        others = {row.key: row for row in rows if row.table == table and row.key in runs and row.key != full.key}
        for key, row in others.items():
            ours = _queries(out, key, seeds)
            if not _same_queries(row, full, runs, ours, reference):
                raise ValueError(
                    f"{runs[key]['recipe']} and the full model are of different data; their queries cannot be paired"
                )
            runs[key]["comparison"] = {
                metric: significance.compare(100.0 * ours[array], 100.0 * reference[array], reference["ids"])
                for metric, array in COMPARED.items()
            }


def _same_queries(
    row: Row, full: Row, runs: dict[str, dict[str, Any]], ours: dict[str, np.ndarray], reference: dict[str, np.ndarray]
) -> bool:
    """True for two runs of the same data, or (Table 4) of data that differs in its generated texts only, which no query
    has."""
    if runs[row.key]["data"] == runs[full.key]["data"]:
        return True
    texts_only = set(_changes(to_dict(full.config), to_dict(row.config))) == {"data.descriptions"}
    return texts_only and np.array_equal(ours["ids"], reference["ids"])


def _queries(out: Path, key: str, seeds: Sequence[int]) -> dict[str, np.ndarray]:
    """Arrays r1 and ap (S, Q) and ids (Q,) of a configuration. Raises FileNotFoundError where they are not stored."""
    stored = []
    for seed in seeds:
        path = run_folder(out, key, seed) / "eval-queries.npz"
        if not path.is_file():
            raise FileNotFoundError(f"{path} does not exist; move the eval.json beside it away to evaluate again")
        with np.load(path) as arrays:
            stored.append({name: arrays[name] for name in arrays})
    ids_Q = stored[0]["ids"]
    return {array: np.stack([s[array] for s in stored]) for array in COMPARED.values()} | {"ids": ids_Q}
