"""Paired comparison of one row of a table with the full model, over the same queries and seeds.

Shapes: S seeds, Q queries, I identities.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import stats

RESAMPLES = 9999
CONFIDENCE = 0.95
# The words that stand under every table that shows these numbers.
TEST = (
    "Delta is the row minus the full model, each run at the clothing weight that it chose on validation. "
    f"p and the {CONFIDENCE:.0%} interval are over people: the differences per query, "
    "averaged over the seeds (each seed of the row paired with the same seed of the full model), are summed within each "
    f"identity; p is that of a two-sided permutation test that exchanges row and full model within identities ({RESAMPLES} "
    "resamples, or all exchanges where there are fewer), the interval the bootstrap percentile interval over identities "
    f"({RESAMPLES} resamples). Both say what other test people would do to the difference of these trained models; what "
    "other seeds would do is in the standard deviation and in the number of seeds whose difference has the sign of the mean."
)


def compare(row_SQ: np.ndarray, full_SQ: np.ndarray, ids_Q: np.ndarray) -> dict[str, Any]:
    """Difference of the means of two rows' values per query, in the unit of the values, as `TEST` describes it.

    row_SQ, full_SQ: (S, Q), seed by seed and query by query the same; ids_Q: (Q,) identity of each query. Returns "delta",
    "per_seed" (S values), "same_sign" (seeds whose difference has delta's sign), "low", "high", "p"; with a single
    identity, which leaves nothing to exchange, the last three are None. Raises ValueError for shapes that do not fit.
    """
    if row_SQ.shape != full_SQ.shape or row_SQ.ndim != 2 or row_SQ.shape[1:] != ids_Q.shape or not row_SQ.size:
        shapes = f"{row_SQ.shape}, {full_SQ.shape} and {ids_Q.shape}"
        raise ValueError(f"a comparison needs values (S, Q) of both rows and ids (Q,), got {shapes}")
    difference_SQ = row_SQ.astype(np.float64) - full_SQ
    per_seed = difference_SQ.mean(1)
    delta = float(per_seed.mean())
    result: dict[str, Any] = {
        "delta": delta,
        "per_seed": per_seed.tolist(),
        "same_sign": int((np.sign(per_seed) == np.sign(delta)).sum()),
    }
    _, where_Q = np.unique(ids_Q, return_inverse=True)
    queries_I = np.bincount(where_Q).astype(np.float64)
    sums_I = np.bincount(where_Q, weights=difference_SQ.mean(0))
    if len(sums_I) < 2:
        return result | {"low": None, "high": None, "p": None}
    low, high = _interval(sums_I, queries_I)
    return result | {"low": low, "high": high, "p": _p_value(sums_I)}


def _p_value(sums_I: np.ndarray) -> float:
    """Exchanging row and full model within an identity turns the sign of its sum; the number of queries is constant."""
    test = stats.permutation_test(
        (sums_I,),
        lambda x, axis: x.sum(axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=RESAMPLES,
        rng=np.random.default_rng(0),
    )
    return float(test.pvalue)


def _interval(sums_I: np.ndarray, queries_I: np.ndarray) -> tuple[float, float]:
    """Of the ratio of sum to number of queries when identities are drawn again."""
    interval = stats.bootstrap(
        (sums_I, queries_I),
        lambda sums, queries, axis: sums.sum(axis) / queries.sum(axis),
        paired=True,
        vectorized=True,
        n_resamples=RESAMPLES,
        method="percentile",
        confidence_level=CONFIDENCE,
        batch=1000,
        rng=np.random.default_rng(0),
    ).confidence_interval
    return float(interval.low), float(interval.high)
