"""Results of the best checkpoint of a run, computed once and then read from the run folder."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from training.data.datasets import Dataset, read_dataset
from training.engine.checkpoint import TrainedModel, load_run
from training.evaluation.diagnosis.diagnosis_result import Diagnosis
from training.evaluation.disentangle_result import Disentanglement
from training.evaluation.result import CheckpointInfo, Evaluation, ProtocolEvaluation
from training.utils.io import write_record

R = TypeVar("R", Evaluation, ProtocolEvaluation, Disentanglement, Diagnosis)


def cached_result(
    path: Path,
    read: Callable[[Path], R],
    compute: Callable[[TrainedModel, Dataset], R],
    suffices: Callable[[R], bool] = lambda stored: True,
    device: str = "auto",
) -> tuple[R, bool]:
    """(the result in `path`, a file of a run folder; True if computed now). `compute` is called with the best checkpoint
    on `device` (see `select_device`) and its data unless the file exists and `suffices` accepts it; the result is stored with
    its `checkpoint` set.

    Raises FileNotFoundError for an untrained run, ValueError when the device does not exist, the file was computed from a
    different checkpoint or the data is not the training data of the run, and what `read_dataset` and `compute` raise.
    """
    trained = load_run(path.parent, device)
    digest = hashlib.sha256((path.parent / "best.pt").read_bytes()).hexdigest()
    if path.exists():
        stored = read(path)
        if stored.checkpoint is None or stored.checkpoint.sha256 != digest:
            raise ValueError(
                f"{path} was computed from a different checkpoint than best.pt; delete or move it to re-evaluate"
            )
        if suffices(stored):
            return stored, False
    dataset = read_dataset(trained.config.data)
    if dataset.fingerprint != trained.fingerprint:
        raise ValueError(
            f"{dataset.root} is not the data that {path.parent} was trained on: fingerprint {dataset.fingerprint[:12]}, "
            f"expected {trained.fingerprint[:12]}"
        )
    checkpoint = CheckpointInfo(epoch=trained.epoch, step=trained.step, sha256=digest)
    write_record(path, replace(compute(trained, dataset), checkpoint=checkpoint))
    return read(path), True
