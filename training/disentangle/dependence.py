"""Dependence of the identity and the clothing feature of an image: HSIC and CKA, with a permutation null.

Images of one person are not independent samples, so the test takes one image of each person: people are exchanged, and
the p-value is exact. Shapes: N images, P people, R permutations, C width.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import bdam_fast
from bdam_fast.ops.hsic.cka import alignment
from training.config import Backend
from training.evaluation.disentangle_result import MEASURES, Dependence, Measure

PERMUTATIONS = 1000
SEED = 0
# Permutations computed at once.
BATCH = 50


def dependence(x: np.ndarray, y: np.ndarray, persons: np.ndarray, backend: Backend = "auto") -> Dependence:
    """Each of MEASURES between two features (N, C) of the same images, rows scaled to length 1 (as reading 8 trains).

    value: over all images; sample: over one image of each person, drawn with a fixed seed; null_mean and null_95 (95th
    percentile): under PERMUTATIONS of the people; p: share of the permutations, the identity among them, with at least
    the sample's value. Raises ValueError for fewer than 8 people.
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
        for name, values in measure(x_PC.expand(len(orders), -1, -1), shuffled, backend).items():
            null[name].append(values)
    measures = {
        name: _measure(float(everything[name]), float(sample[name]), torch.cat(null[name]).numpy()) for name in MEASURES
    }
    return Dependence(images=len(x), people=len(chosen), permutations=PERMUTATIONS, **measures)


def _measure(value: float, sample: float, null: np.ndarray) -> Measure:
    return Measure(
        value=value,
        sample=sample,
        null_mean=float(null.mean()),
        null_95=float(np.quantile(null, 0.95)),
        p=float((1 + (null >= sample).sum()) / (1 + len(null))),
    )


def measure(x_RNC: Tensor, y_RNC: Tensor, backend: Backend = "auto") -> dict[str, Tensor]:
    """Each of MEASURES, (R,), between R pairs of features (R, N, C) float64; 0 for a constant feature."""
    x_RNC, y_RNC = x_RNC.contiguous(), y_RNC.contiguous()
    pairs = ((x_RNC, y_RNC), (x_RNC, x_RNC), (y_RNC, y_RNC))
    rbf = [bdam_fast.hsic(a, b, kernel="rbf", estimator="unbiased", backend=backend) for a, b in pairs]
    return {
        "hsic": rbf[0],
        "hsic_normalised": alignment(*rbf),
        "cka": bdam_fast.cka(x_RNC, y_RNC, estimator="biased", backend=backend),
        "cka_debiased": bdam_fast.cka(x_RNC, y_RNC, backend=backend),
    }
