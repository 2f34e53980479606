"""Exact scores of candidates, with the bits of the evaluation (evaluation/similarity.py), and queries of any kind.

Shapes: M candidates, E embedding width, W width of the table (E, or 2 E with a clothing branch), K results.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# Embeddings of unit length are rounded to multiples of 2^-26: every product and partial sum is then exact in float64.
GRID = 2.0**26
LARGEST_BETA = 1e6


@dataclass(frozen=True)
class Query:
    """score = <a, v_id> + beta <b, v_clo>: a text has a = b; an image has its own two embeddings. float32 (E,), unit length."""

    identity_E: np.ndarray
    clothing_E: np.ndarray
    beta: float
    # True for one text and nothing else: the kind of query whose scores validation has calibrated.
    is_text: bool = False

    def __post_init__(self) -> None:
        require_beta(self.beta)

    def vector(self, branches: int) -> np.ndarray:
        """[a; beta b], float32 (W,), for the engines. Raises ValueError for a beta that weighs a branch that does not exist."""
        if branches == 1:
            if self.beta > 0:
                raise ValueError(
                    f"beta {self.beta:g} weighs clothing, but the model of this gallery has no clothing branch"
                )
            return self.identity_E
        return np.concatenate([self.identity_E, np.float32(self.beta) * self.clothing_E])


def require_beta(beta: float) -> None:
    """Raises ValueError for a clothing weight that is negative, NaN or too large."""
    if not 0 <= beta <= LARGEST_BETA:
        raise ValueError(f"beta must be a number from 0 to {LARGEST_BETA:g}, got {beta}")


def combined(vectors: Sequence[np.ndarray], weights: Sequence[float]) -> np.ndarray:
    """Weighted sum of vectors (E,), of unit length, float32.

    Raises ValueError for weights that are not finite or not as many, and for vectors that cancel each other out.
    """
    if len(vectors) != len(weights) or not all(map(math.isfinite, weights)):
        raise ValueError(f"expected {len(vectors)} finite weights, got {list(weights)}")
    total = np.asarray(weights, np.float64) @ np.stack(vectors).astype(np.float64)
    length = float(np.linalg.norm(total))
    if not length > 1e-6:
        raise ValueError("the parts of the query cancel each other out; give other weights")
    return (total / length).astype(np.float32)


def exact_scores(table_MW: np.ndarray, query: Query) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Score, identity part and clothing part (without beta) of candidates, float32 (M,) each; 0 without a clothing branch.

    Equal embeddings have equal bits, whatever the other candidates are.
    """
    width = len(query.identity_E)
    identity_M = _product(table_MW[:, :width], query.identity_E)
    if table_MW.shape[1] == width:
        return identity_M, identity_M, np.zeros_like(identity_M)
    clothing_M = _product(table_MW[:, width:], query.clothing_E)
    score_M = identity_M if query.beta == 0 else clothing_M * np.float32(query.beta) + identity_M
    return score_M, identity_M, clothing_M


def _product(table_ME: np.ndarray, query_E: np.ndarray) -> np.ndarray:
    rows_ME = np.rint(table_ME.astype(np.float64) * GRID)
    return (rows_ME @ np.rint(query_E.astype(np.float64) * GRID) / (GRID * GRID)).astype(np.float32)


def best(scores_M: np.ndarray, k: int) -> np.ndarray:
    """Order of the best k of candidates that are in gallery order: highest score first, of equal ones the earlier image."""
    return np.argsort(-scores_M, kind="stable")[:k]
