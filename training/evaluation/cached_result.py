"""Results of the best checkpoint of a run, computed once and then read from the run folder."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from training.data.datasets import Dataset, read_dataset
from training.data.image_digests import digest_images, read_digests, require_unchanged, write_digests
from training.engine.checkpoint import TrainedModel, load_run
from training.evaluation.diagnosis.diagnosis_result import Diagnosis
from training.evaluation.disentangle_result import Disentanglement
from training.evaluation.result import CheckpointInfo, Evaluation, ProtocolEvaluation
from training.utils.io import file_digest, write_record
from training.utils.locks import folder_lock

R = TypeVar("R", Evaluation, ProtocolEvaluation, Disentanglement, Diagnosis)


def cached_result(
    path: Path,
    read: Callable[[Path], R],
    compute: Callable[[TrainedModel, Dataset], R],
    suffices: Callable[[R], bool] = lambda stored: True,
    data_root: Path | None = None,
    device: str = "auto",
) -> tuple[R, bool]:
    """(the result in `path`, a file of a run folder; True if computed now). `compute` is called with the best checkpoint
    and its data unless the file exists and `suffices` accepts it; the result is stored with its `checkpoint` set. data_root:
    where the data are now, if they were moved; device: as in `select_device`.

    Raises FileNotFoundError for an untrained run, RuntimeError for one that another process uses, ValueError when the file was
    computed from a different checkpoint, the data is not the training data of the run or the device does not exist, and what
    `read_dataset` and `compute` raise.
    """
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path.parent} holds no trained model: there is no such folder")
    with folder_lock(path.parent):
        return _cached_result(path, read, compute, suffices, data_root, device)


def _cached_result(
    path: Path,
    read: Callable[[Path], R],
    compute: Callable[[TrainedModel, Dataset], R],
    suffices: Callable[[R], bool],
    data_root: Path | None,
    device: str,
) -> tuple[R, bool]:
    trained = load_run(path.parent, data_root, device)
    digest = file_digest(path.parent / "best.pt")
    if path.exists():
        stored = read(path)
        if stored.checkpoint is None or stored.checkpoint.sha256 != digest:
            raise ValueError(
                f"{path} was computed from a different checkpoint than best.pt; delete or move it to re-evaluate"
            )
        if suffices(stored):
            return stored, False
    dataset = _training_data(trained, path.parent)
    checkpoint = CheckpointInfo(epoch=trained.epoch, step=trained.step, sha256=digest)
    write_record(path, replace(compute(trained, dataset), checkpoint=checkpoint))
    return read(path), True


def _training_data(trained: TrainedModel, run_dir: Path) -> Dataset:
    """The data set of the run. Raises ValueError when annotations, texts or images are not those of its training."""
    dataset = read_dataset(trained.config.data)
    if dataset.fingerprint != trained.fingerprint:
        raise ValueError(
            f"{dataset.root} is not the data that {run_dir} was trained on: fingerprint {dataset.fingerprint[:12]}, "
            f"expected {trained.fingerprint[:12]}"
        )
    if trained.images:
        known = read_digests(run_dir)
        images = digest_images(dataset.splits.values(), known)
        require_unchanged(dataset.root, known, images, trained.images)
        if os.access(run_dir, os.W_OK):
            # On another machine the files have other times; read once there, they are known.
            write_digests(run_dir, images)
    return dataset
