"""Results of an experiment, from the files of its runs, stored as summary.json and read by tables and pages."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from training.config import Config, to_dict
from training.config.ablations import FULL, REFERENCES, Row
from training.evaluation import significance
from training.evaluation.experiment_result import (
    Comparison,
    Curve,
    NoiseFloor,
    PhaseMemory,
    ProtocolValues,
    RowResult,
    SpeedBySeed,
    Summary,
    TableRow,
    TableRows,
    Verdict,
)
from training.evaluation.result import METRICS, Metrics
from training.evaluation.run_folder import EVALUATION, Run

# Metrics compared query by query, and their arrays in eval-queries.npz.
COMPARED = {"R1": "r1", "mAP": "ap"}

# Metrics of the same runs, by key and seed, trained on another processor or another number of threads.
Twins = Mapping[tuple[str, int], Sequence[Metrics]]
T = TypeVar("T")


def run_folder(out: Path, key: str, seed: int) -> Path:
    """Folder of the run of a configuration (ablations.run_key) and seed in an experiment."""
    return out / key / f"seed{seed}"


def summarise(
    rows: Sequence[Row],
    titles: dict[str, str],
    seeds: Sequence[int],
    out: Path,
    base: Config,
    command: str = "",
    twins: Twins | None = None,
) -> Summary:
    """Results of the rows of the tables `titles` (name: title), each compared with its table's reference row over the same seeds.

    Raises ValueError for runs of different data in one comparison or a measurement that a run lacks, and what reading the
    files raises.
    """
    runs: dict[str, list[Run]] = {}
    results: dict[str, RowResult] = {}
    missing: dict[tuple[str, int], None] = {}
    for row in rows:
        runs[row.key] = [Run(run_folder(out, row.key, seed)) for seed in seeds]
        absent = [seed for seed, run in zip(seeds, runs[row.key], strict=True) if not run.is_finished]
        missing |= dict.fromkeys((row.label, seed) for seed in absent)
        if not absent and row.key not in results:
            results[row.key] = _row_result(row, runs[row.key], base)
    evaluations = [runs[key][0].evaluation for key in results]
    data = [_required(runs[key][0], "data", runs[key][0].evaluation.data) for key in results]
    results = _with_comparisons(rows, results, runs)
    tables = {}
    for name, title in titles.items():
        own = [row for row in rows if row.table == name]
        noise = _noise(list(dict.fromkeys(row.key for row in own if row.key in results)), results, seeds, twins or {})
        tables[name] = TableRows(title=title, rows=_table_rows(own, results), noise=noise)
    return Summary(
        command=command,
        recipe=base.recipe,
        seeds=list(seeds),
        config=to_dict(base),
        test=significance.TEST,
        data={entry.fingerprint: entry for entry in data},
        versions=evaluations[0].versions if evaluations else {},
        missing=[list(entry) for entry in missing],
        tables=tables,
        runs=results,
        oracle=_oracle([runs[key][0] for key in results]),
    )


def _table_rows(rows: Sequence[Row], results: dict[str, RowResult]) -> list[TableRow]:
    """The rows of one table. Holm's correction counts its rows that are compared, for each metric apart."""
    compared = {row.key: c for row in rows if row.key in results and (c := results[row.key].comparison)}
    verdicts: dict[str, dict[str, Verdict]] = {key: {} for key in compared}
    for metric in COMPARED:
        corrected = significance.holm([comparison[metric].p for comparison in compared.values()])
        for (key, comparison), p in zip(compared.items(), corrected, strict=True):
            verdicts[key][metric] = Verdict(p=p, word=significance.verdict(comparison[metric].delta, p))
    return [
        TableRow(
            name=row.name,
            label=row.label,
            run=row.key if row.key in results else None,
            verdicts=verdicts.get(row.key),
        )
        for row in rows
    ]


def _noise(
    keys: Sequence[str], results: dict[str, RowResult], seeds: Sequence[int], twins: Twins
) -> dict[str, NoiseFloor] | None:
    """Noise floor of the rows `keys` of a table by COMPARED; None without a row."""
    floor = {}
    for metric in COMPARED:
        deviation = significance.pooled_deviation([results[key].metrics[metric] for key in keys])
        apart = [
            abs(results[key].metrics[metric][i] - twin[metric])
            for key in keys
            for i, seed in enumerate(seeds)
            for twin in twins.get((key, seed), ())
        ]
        floor[metric] = NoiseFloor(
            deviation=deviation,
            distinguishable=None if deviation is None else significance.smallest_difference(deviation, len(seeds)),
            machines=max(apart, default=None),
        )
    return floor if keys else None


def _required(run: Run, name: str, value: T | None) -> T:
    """A value of the run's evaluation. Raises ValueError where the file lacks it."""
    if value is None:
        path = run.folder / EVALUATION
        raise ValueError(f"{path} lacks the field {name}, which a summary needs; delete or move it to re-evaluate")
    return value


def _row_result(row: Row, runs: list[Run], base: Config) -> RowResult:
    """One configuration over the seeds. Raises ValueError when the runs are of different data."""
    evaluations = [run.evaluation for run in runs]
    costs = [_required(run, "efficiency", run.evaluation.efficiency) for run in runs]
    fingerprints = {_required(run, "data", run.evaluation.data).fingerprint for run in runs}
    if len(fingerprints) > 1:
        raise ValueError(f"the runs of {row.label!r} are of different data, fingerprints {sorted(fingerprints)}")
    values = {name: [e.metrics[name] for e in evaluations] for name in METRICS}
    mean, chance = {name: statistics.fmean(column) for name, column in values.items()}, evaluations[0].chance
    several = len(evaluations) > 1
    seconds = [_required(run, "seconds", run.evaluation.seconds or None) for run in runs]
    pairs = [cost.speed.pairs for cost in costs if cost.speed.pairs]
    return RowResult(
        recipe=row.config.recipe,
        changes=_changes(to_dict(base), to_dict(row.config)),
        data=fingerprints.pop(),
        folders=[str(run.folder) for run in runs],
        metrics=values,
        mean=mean,
        std={name: statistics.stdev(column) if several else None for name, column in values.items()},
        metrics_beta0={name: [e.metrics_beta0[name] for e in evaluations] for name in METRICS},
        beta=[e.beta for e in evaluations],
        chance=chance,
        ratio={name: mean[name] / chance[name] for name in METRICS},
        threads=[_required(run, "versions.threads", run.evaluation.versions.get("threads")) for run in runs],
        seconds={phase: [entry[phase] for entry in seconds] for phase in seconds[0]},
        memory_mb=PhaseMemory(
            training=[e.training_memory_mb for e in evaluations],
            evaluation=[_required(run, "memory_mb", run.evaluation.memory_mb) for run in runs],
        ),
        parameters=costs[0].parameters,
        flops=costs[0].flops,
        speed=SpeedBySeed(images=[cost.speed.images for cost in costs], pairs=pairs or None),
        comparison=None,
        protocols=_protocols(runs),
        machines=[run.machine for run in runs],
        curves=[_curve(run) for run in runs],
    )


def _oracle(runs: Sequence[Run]) -> dict[str, Metrics] | None:
    """Rows of the oracle on the test split that all runs share; None where the splits differ."""
    if len({_required(run, "data", run.evaluation.data).fingerprint for run in runs}) != 1:
        return None
    return next((run.oracle.rows for run in runs if run.oracle), None)


def _protocols(runs: list[Run]) -> dict[str, ProtocolValues]:
    """Results of the protocols beside dual that every seed has."""
    common = [name for name in runs[0].protocols if all(name in run.protocols for run in runs)]
    results = {name: [run.protocols[name] for run in runs] for name in common}
    return {
        name: ProtocolValues(
            metrics={metric: [result.metrics[metric] for result in of if result.metrics] for metric in METRICS},
            chance=of[0].chance,
            against_dual=_reranked_against_dual(runs) if name == "rerank" else None,
        )
        for name, of in results.items()
    }


def _reranked_against_dual(runs: list[Run]) -> dict[str, Comparison] | None:
    """Difference of rerank to dual in percentage points, query by query; None for runs that lack the values of each query."""
    values = [run.reranked for run in runs]
    if any(value is None for value in values):
        return None
    reranked, dual = (_stacked(arrays) for arrays in (list(filter(None, values)), [run.queries for run in runs]))
    return {
        metric: significance.compare(100.0 * reranked[array], 100.0 * dual[array], dual["ids"])
        for metric, array in COMPARED.items()
    }


def _curve(run: Run) -> Curve:
    lines = run.log.validations
    return Curve(epochs=[line["epoch"] for line in lines], R1=[line["R1"] for line in lines])


def _changes(base: dict[str, Any], values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Fields of a configuration that differ from the base, by dotted name; the recipe's name and the seed aside."""
    changes: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            changes |= _changes(base[name], value, f"{prefix}{name}.")
        elif base[name] != value and prefix + name not in ("recipe", "seed"):
            changes[prefix + name] = value
    return changes


def _with_comparisons(
    rows: Sequence[Row], results: dict[str, RowResult], runs: dict[str, list[Run]]
) -> dict[str, RowResult]:
    """The results with the comparison of every row with the reference of its table, in percentage points."""
    compared = dict(results)
    for table in dict.fromkeys(row.table for row in rows):
        name = REFERENCES.get(table, FULL)
        full = next((row for row in rows if row.name == name and row.key in results), None)
        if full is None:
            continue
        reference = _queries(runs[full.key])
        others = {row.key: row for row in rows if row.table == table and row.key in results and row.key != full.key}
        for key, row in others.items():
            values = _queries(runs[key])
            if not _same_queries(row, full, results, values, reference):
                raise ValueError(
                    f"{results[key].recipe} and the full model are of different data; their queries cannot be paired"
                )
            ids, tests = reference["ids"], len(others)
            comparison = {
                metric: significance.compare(100.0 * values[array], 100.0 * reference[array], ids, tests)
                for metric, array in COMPARED.items()
            }
            compared[key] = replace(results[key], comparison=comparison)
    return compared


def _same_queries(
    row: Row, full: Row, results: dict[str, RowResult], values: dict[str, np.ndarray], reference: dict[str, np.ndarray]
) -> bool:
    """True for two runs of the same data, or (Table 4) of data that differs in its generated texts only, which no query
    has."""
    if results[row.key].data == results[full.key].data:
        return True
    texts_only = set(_changes(to_dict(full.config), to_dict(row.config))) == {"data.descriptions"}
    return texts_only and np.array_equal(values["ids"], reference["ids"])


def _queries(runs: list[Run]) -> dict[str, np.ndarray]:
    """Arrays r1 and ap (S, Q) and ids (Q,) of a configuration. Raises FileNotFoundError where they are not stored."""
    return _stacked([run.queries for run in runs])


def _stacked(values: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """r1 and ap (S, Q) of several seeds, and ids (Q,) of their queries."""
    return {name: np.stack([v[name] for v in values]) for name in COMPARED.values()} | {"ids": values[0]["ids"]}
