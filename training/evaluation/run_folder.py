"""A run folder: the names of its files, and their contents as dataclasses; imports no torch."""

from __future__ import annotations

import zipfile
import zlib
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, TypeVar

import numpy as np

from training.engine.memory import Resources
from training.engine.metrics_log import parse_line
from training.evaluation.diagnosis.diagnosis_result import DIAGNOSIS, Diagnosis
from training.evaluation.disentangle_result import ARRAYS, RESULT, Disentanglement
from training.evaluation.protocols.protocol_names import BESIDE_DUAL, Protocol
from training.evaluation.result import (
    METRICS,
    CheckpointInfo,
    Evaluation,
    OracleBounds,
    ProtocolEvaluation,
    read_evaluation,
    read_protocol,
)
from training.utils.io import Keys, decode, read_record
from training.utils.machine import machine_name

T = TypeVar("T", Disentanglement, Diagnosis)

EVALUATION, QUERIES, ORACLE = "eval.json", "eval-queries.npz", "oracle.json"
METRICS_LOG, CALLS, RESOURCES = "metrics.jsonl", "calls.json", "resources.json"


def protocol_queries(protocol: Protocol) -> str:
    """Name of the file with the metrics of each query of a protocol beside `dual`, with its default parameters."""
    return f"eval-{protocol}-queries.npz"


@dataclass(frozen=True, kw_only=True)
class TrainingStep:
    """A training step in metrics.jsonl; losses, weights and gradient norms by task."""

    step: int
    loss: float
    losses: dict[str, float]
    weights: dict[str, float]
    norms: dict[str, float]
    seconds: float = 0.0


# A validation in metrics.jsonl: METRICS in percent, step, beta, seconds.
Validation = Annotated[dict[str, float], Keys(("epoch", *METRICS))]


@dataclass(frozen=True)
class MetricsLog:
    """Contents of metrics.jsonl in order; a step or an epoch that was repeated after a resume counts once, with its last
    values."""

    steps: list[TrainingStep] = field(default_factory=list)
    validations: list[dict[str, float]] = field(default_factory=list)


@dataclass(frozen=True)
class Run:
    """A run folder. Each file is read and checked on first use; errors are ValueErrors that name file and field."""

    folder: Path

    @property
    def is_finished(self) -> bool:
        """True for a run that is trained and evaluated."""
        return (self.folder / EVALUATION).is_file()

    @cached_property
    def evaluation(self) -> Evaluation:
        """Contents of eval.json. Raises FileNotFoundError without it, ValueError for results of paired-audit."""
        if not self.is_finished:
            path = self.folder / EVALUATION
            raise FileNotFoundError(f"{path} is missing: run `python -m training.evaluate {self.folder}` first")
        return read_evaluation(self.folder / EVALUATION)

    @cached_property
    def queries(self) -> dict[str, np.ndarray]:
        """Arrays ap and r1 (Q,) in [0, 1] and ids (Q,) of eval-queries.npz. Raises FileNotFoundError without it."""
        path = self.folder / QUERIES
        if not path.is_file():
            raise FileNotFoundError(f"{path} does not exist; delete or move {EVALUATION} beside it to re-evaluate")
        return _read_arrays(path)

    @cached_property
    def reranked(self) -> dict[str, np.ndarray] | None:
        """Arrays as `queries` has them, by the protocol rerank; None where it was not measured."""
        path = self.folder / protocol_queries("rerank")
        return _read_arrays(path) if path.is_file() and "rerank" in self.protocols else None

    @cached_property
    def protocols(self) -> dict[Protocol, ProtocolEvaluation]:
        """Contents of eval-PROTOCOL.json of BESIDE_DUAL, as far as they were measured. Raises ValueError for one whose
        checkpoint is not the evaluated one, and for results of paired-audit."""
        files = {name: self.folder / f"eval-{name}.json" for name in BESIDE_DUAL}
        results = {name: read_protocol(path) for name, path in files.items() if path.is_file()}
        for name, result in results.items():
            self._require_evaluated(files[name], result.checkpoint)
        return results

    @cached_property
    def oracle(self) -> OracleBounds | None:
        """Contents of oracle.json; None without it, as for every real data set."""
        path = self.folder / ORACLE
        return read_record(path, OracleBounds) if path.is_file() else None

    @cached_property
    def calls(self) -> dict[str, int]:
        """Operator calls of training by "op.backend.direction". Raises FileNotFoundError without calls.json."""
        return read_record(self.folder / CALLS, dict[str, int])

    @cached_property
    def resources(self) -> Resources | None:
        """Contents of resources.json; None while training has not finished."""
        path = self.folder / RESOURCES
        return read_record(path, Resources) if path.exists() else None

    @cached_property
    def training_memory_mb(self) -> float | None:
        """Peak memory of training; None while it has not finished."""
        return self.resources.memory_mb if self.resources else None

    @cached_property
    def machine(self) -> str:
        """Processors and threads of the processes that trained the run; in early runs of the one that evaluated it."""
        known = self.resources.machines if self.resources else None
        return " then ".join(known) if known else machine_name(self.evaluation.versions)

    @cached_property
    def log(self) -> MetricsLog:
        """Steps and validations of metrics.jsonl; empty without the file."""
        path = self.folder / METRICS_LOG
        return _read_log(path) if path.is_file() else MetricsLog()

    @cached_property
    def disentanglement(self) -> Disentanglement | None:
        """Contents of disentangle.json; None without it. Raises ValueError when its checkpoint is not the evaluated one."""
        return self._beside_evaluation(RESULT, Disentanglement)

    @cached_property
    def diagnosis(self) -> Diagnosis | None:
        """Contents of diagnosis.json; None without it. Raises ValueError when its checkpoint is not the evaluated one."""
        return self._beside_evaluation(DIAGNOSIS, Diagnosis)

    @cached_property
    def feature_arrays(self) -> dict[str, np.ndarray]:
        """Arrays of disentangle.npz. Raises FileNotFoundError without it."""
        path = self.folder / ARRAYS
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing: run `python -m training.disentangle {self.folder}` again")
        return _read_arrays(path)

    def _beside_evaluation(self, name: str, kind: type[T]) -> T | None:
        path = self.folder / name
        if not path.is_file():
            return None
        result = read_record(path, kind)
        self._require_evaluated(path, result.checkpoint)
        return result

    def _require_evaluated(self, path: Path, checkpoint: CheckpointInfo | None) -> None:
        evaluated = self.evaluation.checkpoint
        if checkpoint is None or evaluated is None or checkpoint.sha256 != evaluated.sha256:
            raise ValueError(
                f"{path} was computed from a different checkpoint than {EVALUATION}; delete or move the older of the two"
            )


def read_run(folder: Path) -> Run:
    """The run in `folder`, with the files that a report needs read and checked.

    Raises FileNotFoundError when the folder or its eval.json is missing, and what the attributes of `Run` raise.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such run folder")
    run = Run(folder)
    # Read now, so that an error comes before anything is written.
    _ = run.evaluation, run.log, run.protocols, run.diagnosis, run.oracle
    if run.disentanglement:
        _ = run.feature_arrays
    return run


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path) as arrays:
            found = {name: arrays[name] for name in arrays}
        # The number of arrays in the last record of an archive: a flipped length in its directory hides those that follow.
        if len(found) != int.from_bytes(path.read_bytes()[-12:-10], "little"):
            raise zipfile.BadZipFile("its directory does not list every array")
        return found
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, ValueError, KeyError, RuntimeError) as error:
        detail = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"{path} is damaged ({detail}); restore it from a copy, or delete it and the result beside it to measure again"
        ) from error


def _read_log(path: Path) -> MetricsLog:
    steps: dict[int, TrainingStep] = {}
    validations: dict[float, dict[str, float]] = {}
    for number, text in enumerate(path.read_bytes().splitlines(), 1):
        source = f"{path} line {number}"
        line = parse_line(text.decode(errors="replace"), source)
        kind = line.pop("kind", None)
        if kind == "step":
            step = decode(TrainingStep, line, source)
            steps[step.step] = step
        elif kind == "validation":
            validation: dict[str, float] = decode(Validation, line, source)
            validations[validation["epoch"]] = validation
        else:
            raise ValueError(f"{source}: 'kind' must be step or validation, got {kind!r}")
    return MetricsLog([steps[key] for key in sorted(steps)], [validations[key] for key in sorted(validations)])
