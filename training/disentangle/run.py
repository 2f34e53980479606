"""All measures of one run: RUN/disentangle.json, and RUN/disentangle.npz with the features and their t-SNE."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.manifold import TSNE

from training.config import to_dict
from training.data.datasets import Dataset
from training.data.ground_truth import GroundTruth, read_factors
from training.disentangle import linear_probes
from training.disentangle.cloth_changing import other_clothes
from training.disentangle.dependence import MEASURES, dependence
from training.disentangle.features import FEATURES, collect
from training.engine import checkpoint
from training.engine.checkpoint import TrainedRun
from training.utils.io import atomic

RESULT, ARRAYS = "disentangle.json", "disentangle.npz"
# Features that probes read, that find a person in other clothes, and that Fig. 4 shows.
PROBED = ("entangled", "f_id", "f_clo", "f_final", "f_final_other")
SEARCHED = ("entangled", "f_id", "v_id", "f_clo", "v_clo")
DRAWN = ("entangled", "f_id", "f_clo")
# Images in the plots of Fig. 4: more are neither told apart on a page nor laid out in seconds.
POINTS = 500
PERPLEXITY = 30.0
SEED = 0
# The clothing factor of Fig. 4, and how many values its identity factor may have to be told apart by colour.
COLOUR, MOST_VALUES = "upper_colour", 5

# Called with (what is being done, done, all).
Progress = Callable[[str, int, int], None]


def disentangle(
    run_dir: Path, *, dependence_only: bool = False, progress: Progress = lambda what, done, total: None
) -> tuple[dict[str, Any], bool]:
    """(contents of RUN/disentangle.json, whether they are new), measured on the test split of the run's data.

    Keys: probes (`probes.probe_all`) with summary {feature: {kind: mean score}}, dependence of f_id and f_clo
    (`dependence.dependence`), retrieval (`clothes.other_clothes`), tsne (which factors colour it), what each feature
    and measure is, config, seconds. With `dependence_only`, or from an earlier call with it, probes, summary,
    retrieval and tsne are null; a call without it then measures everything.

    Raises what `checkpoint.cached_result` and the measures raise: FileNotFoundError for data without factors.jsonl.
    """

    def compute(run: TrainedRun, dataset: Dataset) -> dict[str, Any]:
        return _measure(run, dataset, Path(run_dir), dependence_only, progress)

    def suffices(stored: dict[str, Any]) -> bool:
        return dependence_only or stored.get("probes") is not None

    return checkpoint.cached_result(Path(run_dir), RESULT, compute, suffices)


def _measure(
    run: TrainedRun, dataset: Dataset, run_dir: Path, dependence_only: bool, progress: Progress
) -> dict[str, Any]:
    started, records = time.perf_counter(), dataset.splits["test"]
    truth = None if dependence_only else read_factors(dataset.root, records)
    persons = [record.id for record in records]
    features = collect(run, records, lambda done, total: progress("features", done, total))
    progress("dependence", 0, 1)
    pair = dependence(features["f_id"], features["f_clo"], np.array(persons), run.config.model.backend)
    result: dict[str, Any] = dict.fromkeys(("probes", "summary", "retrieval", "tsne")) | {"dependence": pair}
    arrays: dict[str, np.ndarray] = dict(features) | {"id": np.array(persons)}
    if truth is not None:
        result |= _with_truth(features, truth, persons, progress)
        arrays |= _layout(features, truth, persons, result["tsne"], progress)
    with atomic(run_dir / ARRAYS) as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
    about = {"features": FEATURES, "measures": MEASURES, "config": to_dict(run.config), "fingerprint": run.fingerprint}
    about["counts"] = {"images": len(records), "ids": len(set(persons))}
    return result | about | {"seconds": time.perf_counter() - started}


def _with_truth(
    features: dict[str, np.ndarray], truth: GroundTruth, persons: Sequence[int], progress: Progress
) -> dict[str, Any]:
    probed = {name: features[name] for name in PROBED if name in features}
    factors = {"identity": truth.identity, "clothing": truth.clothing}
    results = linear_probes.probe_all(probed, factors, persons, lambda done, total: progress("probes", done, total))
    summary = {
        name: {kind: linear_probes.summarise(results, name, kind) for kind in factors}
        for name in (*probed, "other_kind")
    }
    progress("retrieval", 0, 1)
    retrieval = other_clothes({name: features[name] for name in SEARCHED}, persons, truth.outfits)
    shown = {"identity_factor": _identity_factor(results), "clothing_factor": COLOUR, "perplexity": PERPLEXITY}
    return {"probes": results, "summary": summary, "retrieval": retrieval, "tsne": shown | {"seed": SEED}}


def _identity_factor(results: dict[str, dict[str, Any]]) -> str:
    """The identity factor, of few values, that a probe of the entangled features reads best."""
    few = {
        name: r["features"]["entangled"]["score"]
        for name, r in results.items()
        if r["kind"] == "identity" and "features" in r and len(r["classes"]) <= MOST_VALUES
    }
    return max(few, key=few.__getitem__) if few else "sex"


def _layout(
    features: dict[str, np.ndarray],
    truth: GroundTruth,
    persons: Sequence[int],
    shown: dict[str, Any],
    progress: Progress,
) -> dict[str, np.ndarray]:
    """Places (n, 2) float32 "tsne_<feature>" of n images "tsne_images" (positions in the split), and their values
    "tsne_identity" and "tsne_clothing". Whole people are drawn until POINTS are reached."""
    rng, ids = np.random.default_rng(SEED), np.array(persons)
    people = rng.permutation(np.unique(ids))
    sizes = np.cumsum([(ids == person).sum() for person in people])
    chosen = np.flatnonzero(np.isin(ids, people[: max(1, int((sizes <= POINTS).sum()))]))
    perplexity = min(PERPLEXITY, (len(chosen) - 1) / 3)
    arrays = {"tsne_images": chosen}
    for number, name in enumerate(DRAWN):
        progress("t-SNE", number, len(DRAWN))
        x = features[name][chosen].astype(np.float64)
        # Rows of length 1, as retrieval compares them.
        x /= np.linalg.norm(x, axis=1, keepdims=True).clip(1e-12)
        tsne = TSNE(perplexity=perplexity, init="pca", random_state=SEED)
        arrays[f"tsne_{name}"] = tsne.fit_transform(x).astype(np.float32)
    arrays["tsne_identity"] = np.array(truth.identity[shown["identity_factor"]])[chosen]
    arrays["tsne_clothing"] = np.array(truth.clothing[shown["clothing_factor"]])[chosen]
    return arrays
