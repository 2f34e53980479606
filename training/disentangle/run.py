"""Measures of disentanglement of a run: RUN/disentangle.json, and RUN/disentangle.npz with the features and their t-SNE."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.manifold import TSNE

from training.config import to_dict
from training.data.datasets import Dataset
from training.data.ground_truth import GroundTruth, read_factors
from training.disentangle import linear_probes
from training.disentangle.cloth_changing import search_clothes
from training.disentangle.dependence import dependence
from training.disentangle.features import FEATURES, collect
from training.engine.checkpoint import TrainedModel
from training.engine.distributed.ranks import ONE_RANK, Ranks
from training.evaluation.cached_result import cached_result
from training.evaluation.disentangle_result import (
    ARRAYS,
    MEASURES,
    RESULT,
    Disentanglement,
    ImageCounts,
    Layout,
    Probe,
    Probes,
)
from training.utils.io import atomic, read_record

# Features that are probed, searched with in other clothes, and drawn in Fig. 4.
PROBED = ("entangled", "f_id", "f_clo", "f_final", "f_final_other", "colours", "untrained")
SEARCHED = ("entangled", "f_id", "v_id", "f_clo", "v_clo", "colours", "untrained")
DRAWN = ("entangled", "f_id", "f_clo")
# Images in the plots of Fig. 4: more cannot be told apart on a page, and their layout takes minutes.
POINTS = 500
PERPLEXITY = 30.0
SEED = 0
# The clothing factor of Fig. 4, and the largest number of values of its identity factor, one colour each.
COLOUR, MOST_VALUES = "upper_colour", 5

# Called with (step, done, all).
Progress = Callable[[str, int, int], None]


def disentangle(
    run_dir: Path,
    *,
    dependence_only: bool = False,
    progress: Progress = lambda step, done, total: None,
    data_root: Path | None = None,
    device: str = "auto",
    ranks: Ranks = ONE_RANK,
) -> tuple[Disentanglement, bool]:
    """(contents of RUN/disentangle.json, True if measured now), on the test split of the run's data; data_root: where these
    are now, if they were moved.

    With `dependence_only`, or from an earlier call with it, probes, summary, retrieval and tsne are None; a call without
    it then measures everything. device: as in `select_device`; ranks: processes that all call this and encode batches in turn.

    Raises what `cached_result` and the measures raise: FileNotFoundError for data without factors.jsonl.
    """
    path = Path(run_dir) / RESULT

    def compute(trained: TrainedModel, dataset: Dataset) -> Disentanglement | None:
        return _measure(trained, dataset, path.parent, dependence_only, progress)

    def suffices(trained: TrainedModel, stored: Disentanglement) -> bool:
        return dependence_only or stored.probes is not None

    return cached_result(path, partial(read_record, kind=Disentanglement), compute, suffices, data_root, device, ranks)


def _measure(
    trained: TrainedModel, dataset: Dataset, run_dir: Path, dependence_only: bool, progress: Progress
) -> Disentanglement | None:
    started, records = time.perf_counter(), dataset.splits["test"]
    truth = None if dependence_only else read_factors(dataset.root, records)
    persons = [record.id for record in records]
    features = collect(trained, records, lambda done, total: progress("features", done, total))
    if not trained.ranks.first:
        return None
    progress("dependence", 0, 1)
    pair = dependence(features["f_id"], features["f_clo"], np.array(persons), trained.config.model.backend)
    measured: dict[str, Any] = dict.fromkeys(("probes", "summary", "retrieval", "tsne"))
    arrays: dict[str, np.ndarray] = dict(features) | {"id": np.array(persons)}
    if truth is not None:
        measured = _measure_factors(features, truth, persons, progress)
        arrays |= _layout(features, truth, persons, measured["tsne"], progress)
    with atomic(run_dir / ARRAYS) as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
    return Disentanglement(
        **measured,
        dependence=pair,
        features=FEATURES,
        measures=MEASURES,
        config=to_dict(trained.stored_config),
        fingerprint=trained.fingerprint,
        counts=ImageCounts(images=len(records), ids=len(set(persons))),
        seconds=time.perf_counter() - started,
    )


def _measure_factors(
    features: dict[str, np.ndarray], truth: GroundTruth, persons: Sequence[int], progress: Progress
) -> dict[str, Any]:
    """The fields of Disentanglement that need the true factors."""
    probed = {name: features[name] for name in PROBED if name in features}
    factors = {"identity": truth.identity, "clothing": truth.clothing}
    probes = linear_probes.probe_all(probed, factors, persons, lambda done, total: progress("probes", done, total))
    summary = {
        name: {kind: linear_probes.mean_score(probes, name, kind) for kind in factors}
        for name in (*probed, "other_kind")
    }
    progress("retrieval", 0, 1)
    retrieval = search_clothes({name: features[name] for name in SEARCHED}, persons, truth.outfits)
    identity = _identity_factor(probes)
    layout = Layout(identity_factor=identity, clothing_factor=COLOUR, perplexity=PERPLEXITY, seed=SEED)
    return {"probes": probes, "summary": summary, "retrieval": retrieval, "tsne": layout}


def _identity_factor(results: Probes) -> str:
    """The identity factor with few values that a probe of the entangled features reads best."""
    few = {
        name: r.features["entangled"].score
        for name, r in results.items()
        if isinstance(r, Probe) and r.kind == "identity" and len(r.classes) <= MOST_VALUES
    }
    return max(few, key=few.__getitem__) if few else "sex"


def _layout(
    features: dict[str, np.ndarray], truth: GroundTruth, persons: Sequence[int], shown: Layout, progress: Progress
) -> dict[str, np.ndarray]:
    """t-SNE coordinates "tsne_<feature>" (n, 2) float32 of n images, "tsne_images" (n,) their positions in the split, and
    "tsne_identity", "tsne_clothing" (n,) their factor values. People are drawn whole, at most POINTS images."""
    rng, ids = np.random.default_rng(SEED), np.array(persons)
    people = rng.permutation(np.unique(ids))
    sizes = np.cumsum([(ids == person).sum() for person in people])
    chosen = np.flatnonzero(np.isin(ids, people[: max(1, int((sizes <= POINTS).sum()))]))
    perplexity = min(PERPLEXITY, (len(chosen) - 1) / 3)
    arrays = {"tsne_images": chosen}
    for number, name in enumerate(DRAWN):
        progress("t-SNE", number, len(DRAWN))
        x = features[name][chosen].astype(np.float64)
        # Unit length, as retrieval compares them.
        x /= np.linalg.norm(x, axis=1, keepdims=True).clip(1e-12)
        tsne = TSNE(perplexity=perplexity, init="pca", random_state=SEED)
        arrays[f"tsne_{name}"] = tsne.fit_transform(x).astype(np.float32)
    arrays["tsne_identity"] = np.array(truth.identity[shown.identity_factor])[chosen]
    arrays["tsne_clothing"] = np.array(truth.clothing[shown.clothing_factor])[chosen]
    return arrays
