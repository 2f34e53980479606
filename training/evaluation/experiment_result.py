"""Summary of an experiment: the dataclass of OUT/summary.json; imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from training.evaluation.audit_guard import refuse_audit
from training.evaluation.result import METRICS, DataSummary, Flops, Metrics, Parameters, Throughput
from training.utils.io import Keys, decode, read_json

SUMMARY = "summary.json"
# Metrics in which rows are compared with the full model query by query.
COMPARED = ("R1", "mAP")

# Values of each seed.
Values = list[float]
MetricValues = Annotated[dict[str, Values], Keys(METRICS)]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Difference of a row to the reference row of its table in percentage points, overall and by seed; number of seeds with
    its sign, 95 % interval and p, None where nothing can be tested. See `significance.TEST`."""

    delta: float
    per_seed: Values
    same_sign: int
    low: float | None
    high: float | None
    p: float | None


@dataclass(frozen=True, kw_only=True)
class PhaseMemory:
    """Peak memory by phase and seed, MB; None for a training whose memory was not recorded."""

    training: list[float | None]
    evaluation: Values


@dataclass(frozen=True, kw_only=True)
class SpeedBySeed:
    """Throughput of each seed, None without a measurement."""

    images: list[Throughput] | None
    pairs: list[Throughput] | None


@dataclass(frozen=True, kw_only=True)
class ProtocolValues:
    """Metrics of a protocol beside dual by seed, and its chance, percent; of rerank also its difference to dual in the same
    runs, by COMPARED, which files of early versions lack."""

    metrics: MetricValues
    chance: Metrics
    against_dual: Annotated[dict[str, Comparison], Keys(COMPARED)] | None = None


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Learning curve of a run: R-1 of the validation split in percent after each epoch that was validated."""

    epochs: list[float]
    R1: list[float]


@dataclass(frozen=True, kw_only=True)
class RowResult:
    """One configuration over the seeds: the fields that it changes, fingerprint of its data, run folders, metrics in
    percent (std with n - 1, None for one seed), cost, and the comparison with the reference row by COMPARED."""

    recipe: str
    changes: dict[str, Any]
    data: str
    folders: list[str]
    metrics: MetricValues
    mean: Metrics
    std: Annotated[dict[str, float | None], Keys(METRICS)]
    metrics_beta0: MetricValues
    beta: Values
    chance: Metrics
    ratio: Metrics
    # Of the evaluation.
    threads: list[str]
    seconds: Annotated[dict[str, Values], Keys(("training", "evaluation"))]
    memory_mb: PhaseMemory
    parameters: Parameters
    flops: Flops | None
    speed: SpeedBySeed
    comparison: Annotated[dict[str, Comparison], Keys(COMPARED)] | None
    # By name of BESIDE_DUAL; those that every seed has.
    protocols: dict[str, ProtocolValues] | None = None
    # Not in files of early versions: processor and threads of each seed, and learning curves.
    machines: list[str] | None = None
    curves: list[Curve] | None = None


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Outcome of a comparison within a table: p after Holm's correction, None without a test, and better, worse or unsure."""

    p: float | None
    word: str


@dataclass(frozen=True, kw_only=True)
class TableRow:
    """A row of a table: its key in `Summary.runs`, None while a seed is missing; the verdict by COMPARED, None for the reference
    row, and in files of early versions."""

    name: str
    label: str
    run: str | None
    verdicts: Annotated[dict[str, Verdict], Keys(COMPARED)] | None = None


@dataclass(frozen=True, kw_only=True)
class NoiseFloor:
    """Differences that mean nothing: standard deviation over the seeds, pooled over the rows of a table; smallest difference that
    the seeds can distinguish (`significance.smallest_difference`), None for one seed; largest difference between a run and the
    same run on another processor or number of threads, None where there is none."""

    deviation: float | None
    distinguishable: float | None
    machines: float | None


@dataclass(frozen=True, kw_only=True)
class TableRows:
    """A table of the experiment; its noise floor by COMPARED is not in files of early versions."""

    title: str
    rows: list[TableRow]
    noise: Annotated[dict[str, NoiseFloor], Keys(COMPARED)] | None = None


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Contents of OUT/summary.json: `runs` by key, `missing` [label, seed], `data` by fingerprint, `config` of the base,
    `test` the sentence that describes the comparison."""

    command: str
    recipe: str
    seeds: list[int]
    config: dict[str, Any]
    test: str
    data: dict[str, DataSummary]
    versions: dict[str, str]
    missing: list[list[Any]]
    tables: dict[str, TableRows]
    runs: dict[str, RowResult]
    # Ceiling on a rendered test split, metrics by the label of an oracle's row; not in files of early versions.
    oracle: dict[str, Metrics] | None = None


def read_summary(folder: Path) -> Summary:
    """Reads summary.json of an experiment. Raises FileNotFoundError, ValueError naming file and field, or for a run of the
    protocol paired-audit."""
    path = folder / SUMMARY
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: run `python -m training.experiment` first")
    values = read_json(path)
    runs = values.get("runs") if isinstance(values, dict) else None
    for key, run in runs.items() if isinstance(runs, dict) else ():
        refuse_audit(run, f"{path}: the run {key}")
    return decode(Summary, values, str(path))
