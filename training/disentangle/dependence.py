"""How much the identity and the clothing feature of an image tell about each other: HSIC and CKA, with a permutation null.

Images of one person are not independent samples, so the test takes one image of each person: people are exchanged, and
the p-value is exact. Shapes: N images, P people, R permutations, C width.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import bdam_fast
from training.config import Backend
from training.engine.losses import cka

PERMUTATIONS = 1000
SEED = 0
# Permutations computed at once.
BATCH = 50
MEASURES = {
    "hsic": "unbiased HSIC, RBF kernels of median width",
    "hsic_normalised": "the same over the geometric mean of each feature's HSIC with itself",
    "cka": "linear CKA, biased: grows with width over number of images, whatever the features",
    "cka_debiased": "linear CKA of unbiased HSIC, 0 for independent features",
}


def dependence(x: np.ndarray, y: np.ndarray, persons: np.ndarray, backend: Backend = "auto") -> dict[str, Any]:
    """Each of MEASURES between two features (N, C) of the same images, rows scaled to length 1 (as reading 8 trains).

    Keys: images, people, and for each measure {value: all images, sample: one image of each person, null_mean,
    null_95: 95th percentile under permutations of the people, p: share of the permutations, the identity among them,
    with at least the sample's value}. Raises ValueError for fewer than 8 people.
    """
    rng = np.random.default_rng(SEED)
    chosen = np.array([rng.choice(np.flatnonzero(persons == person)) for person in np.unique(persons)])
    if len(chosen) < 8:
        raise ValueError(f"the permutation test of dependence needs at least 8 people, got {len(chosen)}")
    x_NC, y_NC = (F.normalize(torch.from_numpy(v).double(), dim=1) for v in (x, y))
    everything = measure(x_NC[None], y_NC[None], backend)
    x_PC, y_PC = x_NC[chosen], y_NC[chosen]
    sample = measure(x_PC[None], y_PC[None], backend)
    null: dict[str, list[Tensor]] = {name: [] for name in MEASURES}
    for start in range(0, PERMUTATIONS, BATCH):
        orders = [rng.permutation(len(chosen)) for _ in range(min(BATCH, PERMUTATIONS - start))]
        shuffled = torch.stack([y_PC[torch.from_numpy(order)] for order in orders])
        for name, drawn in measure(x_PC.expand(len(orders), -1, -1), shuffled, backend).items():
            null[name].append(drawn)
    result: dict[str, Any] = {"images": len(x), "people": len(chosen), "permutations": PERMUTATIONS}
    for name in MEASURES:
        values, own = torch.cat(null[name]).numpy(), float(sample[name])
        result[name] = {
            "value": float(everything[name]),
            "sample": own,
            "null_mean": float(values.mean()),
            "null_95": float(np.quantile(values, 0.95)),
            "p": float((1 + (values >= own).sum()) / (1 + len(values))),
        }
    return result


def measure(x_RNC: Tensor, y_RNC: Tensor, backend: Backend = "auto") -> dict[str, Tensor]:
    """Each of MEASURES, (R,), of R pairs of features (R, N, C) in float64. A feature that does not vary has 0."""
    linear = {"kernel": "linear", "backend": backend}
    x_RNC, y_RNC = (v - v.mean(1, keepdim=True) for v in (x_RNC, y_RNC))
    rbf = _triple(x_RNC, y_RNC, kernel="rbf", estimator="unbiased", backend=backend)
    return {
        "hsic": rbf[0],
        "hsic_normalised": cka(*rbf),
        "cka": cka(*_triple(x_RNC, y_RNC, estimator="biased", **linear)),
        "cka_debiased": cka(*_triple(x_RNC, y_RNC, estimator="unbiased", **linear)),
    }


def _triple(x: Tensor, y: Tensor, **options: Any) -> tuple[Tensor, Tensor, Tensor]:
    """HSIC of (x, y), (x, x), (y, y)."""
    return tuple(bdam_fast.hsic(a.contiguous(), b.contiguous(), **options) for a, b in ((x, y), (x, x), (y, y)))  # type: ignore[return-value]
