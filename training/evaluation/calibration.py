"""Calibration of scores on the validation split: the share of right images at a score, and the score that best images reach.

Scores of different beta are made comparable as z = score / (1 + beta), from -1 to 1. Imports no torch.

Shapes: Q queries, G gallery, B queries of a block, K points of a curve.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from training.evaluation.dual import DualEmbeddings

CALIBRATION = "calibration.json"
# Clothing weights that have a curve, beside the one that validation chose; in between shares are interpolated.
BETAS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0, 8.0)
# Share of the queries whose best image reaches `Curve.least`.
KEPT = 0.95
# A validation split of thousands of pairs shows no more.
LARGEST_SHARE = 0.99
# Bins of z that the pairs are counted in.
BINS = 4096


@dataclass(frozen=True)
class Curve:
    """Shares of right images at one clothing weight."""

    beta: float
    # z and the share of right images there, neither falling (K,).
    scores: list[float]
    shares: list[float]
    # z that the best image of KEPT of the queries reaches.
    least: float
    # Share of the queries of which no image reaches it when their person is taken out of the gallery.
    refused: float


@dataclass(frozen=True)
class Calibration:
    """Contents of calibration.json."""

    # SHA-256 (hex) of the checkpoint.
    checkpoint: str
    queries: int
    # Mean number of right and of wrong images of a query.
    right: float
    wrong: float
    # By rising beta.
    curves: list[Curve]

    def share(self, score: float, beta: float, images: int) -> float:
        """Share of right images among those of a score, in a gallery of so many that holds the person as often as validation.

        Wrong images are more in a larger gallery, in proportion: odds are divided by the ratio.
        """
        z = score / (1 + beta)
        share = self._between(beta, lambda curve: _interpolated(z, curve.scores, curve.shares))
        odds = share / (1 - share) * self.wrong / max(images - self.right, 1.0)
        return odds / (1 + odds)

    def least(self, beta: float) -> float:
        """Score that the best image of KEPT of the queries reaches, whose person is in the gallery."""
        return self._between(beta, lambda curve: curve.least) * (1 + beta)

    def _between(self, beta: float, value: Callable[[Curve], float]) -> float:
        """A value of the curves at a beta: linear in the weight beta / (1 + beta) between two, that of the last beyond."""
        at = bisect_left([curve.beta for curve in self.curves], beta)
        if at == len(self.curves):
            return value(self.curves[-1])
        after = self.curves[at]
        if at == 0 or after.beta == beta:
            return value(after)
        before = self.curves[at - 1]
        low, here, high = (x / (1 + x) for x in (before.beta, beta, after.beta))
        part = (here - low) / (high - low)
        return (1 - part) * value(before) + part * value(after)


def _interpolated(x: float, xs: list[float], ys: list[float]) -> float:
    """np.interp of one value, which would first make arrays of the lists: 0.1 ms of each of the results."""
    at = bisect_right(xs, x)
    if at in (0, len(xs)):
        return ys[max(0, at - 1)]
    slope = (ys[at] - ys[at - 1]) / (xs[at] - xs[at - 1])
    return slope * (x - xs[at - 1]) + ys[at - 1]


def calibrate(dual: DualEmbeddings, beta: float, checkpoint: str) -> Calibration:
    """Calibration on the captions and images of a split. beta: the weight that validation chose."""
    from training.evaluation.similarity import blocks

    betas = [0.0] if dual.v_clo_GE is None else sorted({*BETAS, beta})
    query_ids_Q, gallery_ids_G = dual.query_ids_Q.numpy(), dual.gallery_ids_G.numpy()
    parts = [(rows, query_ids_Q[rows, None] == gallery_ids_G) for rows in blocks(len(query_ids_Q), len(gallery_ids_G))]
    right = float(np.mean(np.concatenate([right_BG.sum(1) for _, right_BG in parts])))
    curves = []
    for weight in betas:
        counts, best, best_wrong = np.zeros((2, BINS)), [], []
        for rows, right_BG in parts:
            z_BG = dual.similarity(weight, rows).numpy() / (1 + weight)
            bins_BG = np.clip((z_BG + 1) * (BINS / 2), 0, BINS - 1).astype(np.int64)
            counts += [np.bincount(bins_BG[kind], minlength=BINS) for kind in (right_BG, ~right_BG)]
            best.append(z_BG.max(1))
            best_wrong.append(np.where(right_BG, -1, z_BG).max(1))
        curves.append(_curve(weight, counts, np.concatenate(best), np.concatenate(best_wrong)))
    return Calibration(checkpoint, len(query_ids_Q), right, len(gallery_ids_G) - right, curves)


def _curve(beta: float, counts_2B: np.ndarray, best_Q: np.ndarray, best_wrong_Q: np.ndarray) -> Curve:
    """The isotonic regression of right (first row) among all pairs by the bin of their z."""
    from sklearn.isotonic import IsotonicRegression

    total = counts_2B.sum(0)
    used = np.flatnonzero(total)
    fitted = IsotonicRegression(y_min=0.0, y_max=LARGEST_SHARE)
    fitted.fit((used + 0.5) * (2 / BINS) - 1, counts_2B[0, used] / total[used], sample_weight=total[used])
    least = float(np.quantile(best_Q, 1 - KEPT, method="lower"))
    refused = float((best_wrong_Q < least).mean())
    return Curve(beta, fitted.X_thresholds_.tolist(), fitted.y_thresholds_.tolist(), least, refused)
