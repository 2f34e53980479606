"""Exact scores of candidates, with the bits of the evaluation (evaluation/similarity.py), and queries of any kind.

Shapes: M candidates, E embedding width, W width of the table (E, or 2 E with a clothing branch), K results, C confirmed and R
rejected images.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# Embeddings of unit length are rounded to multiples of 2^-26: every product and partial sum is then exact in float64.
GRID = 2.0**26
LARGEST_BETA = 1e6
# Weight of the marked image that a candidate is closest to, beside a score of at most 1, and how fast it falls with the
# distance: by identity, which finds a confirmed person in other clothes, and in looks, where clothes count LOOKS_BETA
# times whatever their weight in the query is. Chosen on the validation split of the synthetic set (docs/retrieval.md).
LOOKS_BETA = 2.5
CONFIRMED_IDENTITY, IDENTITY_REACH = 4.0, 0.4
CONFIRMED_LOOKS, REJECTED_LOOKS, LOOKS_REACH = 8.0, 0.6, 0.1


@dataclass(frozen=True)
class Marks:
    """Embeddings of images that are the person, float32 (C, W), and of images that are not, (R, W)."""

    confirmed_CW: np.ndarray
    rejected_RW: np.ndarray


@dataclass(frozen=True)
class Query:
    """score = <a, v_id> + beta <b, v_clo> + marks: a text has a = b; an image has its own two embeddings. float32 (E,), unit
    length."""

    identity_E: np.ndarray
    clothing_E: np.ndarray
    beta: float
    # True for one text of known words and nothing else: the kind of query whose scores validation has calibrated.
    is_text: bool = False
    marks: Marks | None = None

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


@dataclass(frozen=True)
class Scores:
    """Score = identity + beta clothing + marks of candidates, float32 (M,) each; 0 for parts that do not exist."""

    score_M: np.ndarray
    identity_M: np.ndarray
    clothing_M: np.ndarray
    marks_M: np.ndarray


def exact_scores(table_MW: np.ndarray, query: Query) -> Scores:
    """Scores of candidates. Equal embeddings have equal bits, whatever the other candidates are."""
    width = len(query.identity_E)
    identity_M = _product(table_MW[:, :width], query.identity_E)
    clothing_M = np.zeros_like(identity_M)
    if table_MW.shape[1] > width:
        clothing_M = _product(table_MW[:, width:], query.clothing_E)
    score_M = identity_M if query.beta == 0 else clothing_M * np.float32(query.beta) + identity_M
    if query.marks is None:
        return Scores(score_M, identity_M, clothing_M, np.zeros_like(identity_M))
    marks_M = _closeness(table_MW, query, query.marks)
    return Scores(score_M + marks_M, identity_M, clothing_M, marks_M)


def _closeness(table_MW: np.ndarray, query: Query, marks: Marks) -> np.ndarray:
    """Gain by the closest confirmed and loss by the closest rejected image, float32 (M,).

    Not the mean image of either: a person in two outfits is close to neither mean, and a query moved away from the mean of
    the rejected ones, without a confirmed one, moves away from all images (mAP of the rest 4.7 -> 2.1 at beta 0).
    """
    total_M, scale = np.zeros(len(table_MW)), 1 + query.beta
    if len(marks.confirmed_CW):
        identity_MC, looks_MC = _likeness(table_MW, marks.confirmed_CW, len(query.identity_E))
        total_M += scale * CONFIRMED_IDENTITY * np.exp((identity_MC.max(1) - 1) / IDENTITY_REACH)
        total_M += scale * CONFIRMED_LOOKS * np.exp((looks_MC.max(1) - 1) / LOOKS_REACH)
    if len(marks.rejected_RW):
        _, looks_MR = _likeness(table_MW, marks.rejected_RW, len(query.identity_E))
        total_M -= scale * REJECTED_LOOKS * np.exp((looks_MR.max(1) - 1) / LOOKS_REACH)
    return total_M.astype(np.float32)


def _likeness(table_MW: np.ndarray, marked_NW: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Cosines of candidates with marked images by identity, and in looks, float64 (M, N); the same without a clothing branch."""
    identity_MN = _product(table_MW[:, :width], marked_NW[:, :width].T).astype(np.float64)
    if table_MW.shape[1] == width:
        return identity_MN, identity_MN
    clothing_MN = _product(table_MW[:, width:], marked_NW[:, width:].T)
    return identity_MN, (identity_MN + LOOKS_BETA * clothing_MN) / (1 + LOOKS_BETA)


def _product(table_ME: np.ndarray, query_E: np.ndarray) -> np.ndarray:
    """Products with one vector (E,), or with several (E, N), float32 (M,) or (M, N)."""
    rows_ME = np.rint(table_ME.astype(np.float64) * GRID)
    return (rows_ME @ np.rint(query_E.astype(np.float64) * GRID) / (GRID * GRID)).astype(np.float32)


def best(scores_M: np.ndarray, k: int) -> np.ndarray:
    """Order of the best k of candidates that are in gallery order: highest score first, of equal ones the earlier image."""
    return np.argsort(-scores_M, kind="stable")[:k]
