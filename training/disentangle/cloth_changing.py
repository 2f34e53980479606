"""Image-to-image retrieval of a person in other clothes, and in the same ones.

Every image of the split is a query. In other clothes: the gallery holds all images of other people and those of the
same person in another outfit; that the person is found cannot be owed to the clothes. In the same clothes: all images
of other people and the other images in this outfit. Shapes: Q = N images, K resamplings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from training.evaluation.metrics import METRICS, query_metrics

RESAMPLINGS = 1000
SEED = 0
GALLERIES = ("other", "same")


def other_clothes(features: Mapping[str, np.ndarray], persons: Sequence[int], outfits: Sequence[int]) -> dict[str, Any]:
    """{"other": ..., "same": ...}, each: queries (those with a match), without_match, chance, and features {name:
    {METRICS, interval: {R1, mAP}}}: cosine retrieval, percent, and 95 % bootstrap intervals over people.

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


def _gallery(features: Mapping[str, np.ndarray], person: Tensor, match: Tensor, excluded: Tensor) -> dict[str, Any]:
    kept = match.any(1)
    if not bool(kept.any()):
        return {"queries": 0, "without_match": len(kept), "chance": None, "features": {}}
    match, excluded, ids = match[kept], excluded[kept], person[kept].numpy()
    chance = query_metrics(torch.zeros(match.shape), match, excluded).mean(0)
    found = {}
    for name, values in features.items():
        unit = F.normalize(torch.from_numpy(values).double(), dim=1)
        # Rounded, so that copies of one image tie whatever block of the product they fall into.
        metrics = query_metrics((unit[kept] @ unit.T).float(), match, excluded).numpy()
        found[name] = dict(zip(METRICS, metrics.mean(0).tolist(), strict=True))
        found[name]["interval"] = {key: _interval(metrics[:, METRICS.index(key)], ids) for key in ("R1", "mAP")}
    return {
        "queries": int(kept.sum()),
        "without_match": int((~kept).sum()),
        "chance": dict(zip(METRICS, chance.tolist(), strict=True)),
        "features": found,
    }


def _interval(values: np.ndarray, persons: np.ndarray) -> list[float]:
    """2.5th and 97.5th percentile of the mean when people, with all their queries, are drawn with replacement."""
    _, inverse = np.unique(persons, return_inverse=True)
    sums, counts = np.bincount(inverse, values), np.bincount(inverse)
    drawn = np.random.default_rng(SEED).integers(0, len(sums), (RESAMPLINGS, len(sums)))
    return np.quantile(sums[drawn].sum(1) / counts[drawn].sum(1), (0.025, 0.975)).tolist()
