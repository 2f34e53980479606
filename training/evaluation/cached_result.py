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
from training.engine.distributed.agreement import versions
from training.engine.distributed.ranks import ONE_RANK, Ranks
from training.evaluation.diagnosis.diagnosis_result import Diagnosis
from training.evaluation.disentangle_result import Disentanglement
from training.evaluation.result import CheckpointInfo, Evaluation, ProtocolEvaluation
from training.utils.io import file_digest, write_record

R = TypeVar("R", Evaluation, ProtocolEvaluation, Disentanglement, Diagnosis)


def cached_result(
    path: Path,
    read: Callable[[Path], R],
    compute: Callable[[TrainedModel, Dataset], R | None],
    suffices: Callable[[TrainedModel, R], bool] = lambda trained, stored: True,
    data_root: Path | None = None,
    device: str = "auto",
    ranks: Ranks = ONE_RANK,
) -> tuple[R, bool]:
    """(the result in `path`, a file of a run folder; True if computed now). `compute` is called with the best checkpoint
    and its data unless the file exists and `suffices` accepts it; the result is stored with its `checkpoint` set. data_root:
    where the data are now, if they were moved; device: as in `select_device`. ranks: processes that all call this; `compute`
    returns None on all but the first, which writes the file.

    Raises FileNotFoundError for an untrained run, RuntimeError for one that another process uses, ValueError when the file was
    computed from a different checkpoint, the data is not the training data of the run, the device does not exist or a rank has
    another checkpoint or version, and what `read_dataset` and `compute` raise.
    """
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path.parent} holds no trained model: there is no such folder")
    with ranks.lock(path.parent):
        trained = replace(load_run(path.parent, data_root, device), ranks=ranks)
        digest = file_digest(path.parent / "best.pt")
        ranks.require_equal(lambda: {"best.pt": digest[:12], "result": path.name, "versions": versions()})

        def find() -> R | None:
            stored = _read_stored(path, read, digest)
            return stored if stored is not None and suffices(trained, stored) else None

        if (found := ranks.share(find)) is not None:
            return found, False
        with ranks.in_turn():
            dataset = _training_data(trained, path.parent)
        result = compute(trained, dataset)
        if result is not None:
            checkpoint = CheckpointInfo(epoch=trained.epoch, step=trained.step, sha256=digest)
            write_record(path, replace(result, checkpoint=checkpoint))
        return ranks.share(lambda: read(path)), True


def _read_stored(path: Path, read: Callable[[Path], R], digest: str) -> R | None:
    """The result in a file; None without one. Raises ValueError for one of another checkpoint."""
    if not path.exists():
        return None
    stored = read(path)
    if stored.checkpoint is None or stored.checkpoint.sha256 != digest:
        raise ValueError(
            f"{path} was computed from a different checkpoint than best.pt; delete or move it to re-evaluate"
        )
    return stored


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
        if trained.ranks.first and os.access(run_dir, os.W_OK):
            # On another machine the files have other times; read once there, they are known.
            write_digests(run_dir, images)
    return dataset
