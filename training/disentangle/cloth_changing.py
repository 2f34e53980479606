"""Image-to-image retrieval of a person in other clothes, and in the same clothes.

Every image of the split is a query. In other clothes: the gallery holds all images of other people and those of the
same person in another outfit, so clothes cannot help to find the person. In the same clothes: all images of other people
and the other images in this outfit. Shapes: Q = N images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from training.evaluation.disentangle_result import GALLERIES, Gallery, Retrieval
from training.evaluation.metrics import METRICS, query_metrics
from training.evaluation.significance import bootstrap_interval, cluster_sums

RESAMPLES = 1000


def search_clothes(
    features: Mapping[str, np.ndarray], persons: Sequence[int], outfits: Sequence[int]
) -> dict[str, Gallery]:
    """Cosine retrieval with each feature in GALLERIES, with 95 % bootstrap intervals over people.

    features: (N, C) each; persons and outfits: (N,) integers, outfits numbered within a person. Chance is exact. Raises
    ValueError when nobody wears two outfits.
    """
    person, outfit = torch.as_tensor(persons), torch.as_tensor(outfits)
    same_person = person[:, None] == person[None]
    same_outfit = same_person & (outfit[:, None] == outfit[None])
    itself = torch.eye(len(person), dtype=torch.bool)
    if not bool((same_person & ~same_outfit).any()):
        raise ValueError("retrieval in other clothes needs a person with two outfits, but each person wears one only")
    matches = {"other": same_person & ~same_outfit, "same": same_outfit & ~itself}
    excluded = {"other": same_outfit, "same": (same_person & ~same_outfit) | itself}
    return {name: _gallery(features, person, matches[name], excluded[name]) for name in GALLERIES}


def _gallery(features: Mapping[str, np.ndarray], person: Tensor, match: Tensor, excluded: Tensor) -> Gallery:
    kept = match.any(1)
    if not bool(kept.any()):
        return Gallery(queries=0, without_match=len(kept), chance=None, features={})
    match, excluded, ids = match[kept], excluded[kept], person[kept].numpy()
    chance = query_metrics(torch.zeros(match.shape), match, excluded).mean()
    results = {}
    for name, values in features.items():
        unit = F.normalize(torch.from_numpy(values).double(), dim=1)
        # Rounded to float32, so that copies of an image tie whichever block of the product they fall into.
        metrics = query_metrics((unit[kept] @ unit.T).float(), match, excluded).values_Q5.numpy()
        interval = {key: _interval(metrics[:, METRICS.index(key)], ids) for key in ("R1", "mAP")}
        results[name] = Retrieval(**dict(zip(METRICS, metrics.mean(0).tolist(), strict=True)), interval=interval)
    return Gallery(
        queries=int(kept.sum()),
        without_match=int((~kept).sum()),
        chance=chance,
        features=results,
    )


def _interval(values_Q: np.ndarray, ids_Q: np.ndarray) -> list[float]:
    sums_I, queries_I = cluster_sums(values_Q, ids_Q)
    # With a single person every resample is the same.
    return [*bootstrap_interval(sums_I, queries_I, RESAMPLES)] if len(sums_I) > 1 else [float(values_Q.mean())] * 2
