"""Paired comparison of one row of a table with the full model, over the same queries and seeds.

Shapes: S seeds, Q queries, I identities.
"""

from __future__ import annotations

import numpy as np
from scipy import stats

from training.evaluation.experiment_result import Comparison

RESAMPLES = 9999
CONFIDENCE = 0.95
# Printed below every table that shows these numbers.
TEST = (
    "Delta is the row minus the full model, each run at the clothing weight that it chose on validation. "
    f"p and the {CONFIDENCE:.0%} interval are over people: the differences per query, "
    "averaged over the seeds (each seed of the row paired with the same seed of the full model), are summed within each "
    f"identity; p is that of a two-sided permutation test that exchanges row and full model within identities ({RESAMPLES} "
    "resamples, or all exchanges where there are fewer), the interval the bootstrap percentile interval over identities "
    f"({RESAMPLES} resamples). Both say what other test people would do to the difference of these trained models; what "
    "other seeds would do is in the standard deviation and in the number of seeds whose difference has the sign of the mean."
)


def compare(row_SQ: np.ndarray, full_SQ: np.ndarray, ids_Q: np.ndarray) -> Comparison:
    """Difference of the means of two rows' values per query, in the unit of the values, as `TEST` describes it.

    row_SQ, full_SQ: (S, Q), the same seeds and queries in both; ids_Q: (Q,) identity of each query. With a single identity,
    which leaves nothing to exchange, low, high and p are None. Raises ValueError for shapes that do not fit.
    """
    if row_SQ.shape != full_SQ.shape or row_SQ.ndim != 2 or row_SQ.shape[1:] != ids_Q.shape or not row_SQ.size:
        shapes = f"{row_SQ.shape}, {full_SQ.shape} and {ids_Q.shape}"
        raise ValueError(f"a comparison needs values (S, Q) of both rows and ids (Q,), got {shapes}")
    difference_SQ = row_SQ.astype(np.float64) - full_SQ
    per_seed_S = difference_SQ.mean(1)
    delta = float(per_seed_S.mean())
    same_sign = int((np.sign(per_seed_S) == np.sign(delta)).sum())
    low = high = p = None
    sums_I, queries_I = cluster_sums(difference_SQ.mean(0), ids_Q)
    if len(sums_I) > 1:
        low, high = bootstrap_interval(sums_I, queries_I)
        p = _p_value(sums_I)
    return Comparison(delta=delta, per_seed=per_seed_S.tolist(), same_sign=same_sign, low=low, high=high, p=p)


def cluster_sums(values_Q: np.ndarray, ids_Q: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sum of the values and number of queries of each identity, float64 (I,) each."""
    _, cluster_Q = np.unique(ids_Q, return_inverse=True)
    return np.bincount(cluster_Q, weights=values_Q), np.bincount(cluster_Q).astype(np.float64)


def bootstrap_interval(sums_I: np.ndarray, queries_I: np.ndarray, resamples: int = RESAMPLES) -> tuple[float, float]:
    """Percentile interval of the mean over queries, of level CONFIDENCE, when identities are resampled with all their
    queries. Takes the result of `cluster_sums` for at least two identities."""
    interval = stats.bootstrap(
        (sums_I, queries_I),
        lambda sums, queries, axis: sums.sum(axis) / queries.sum(axis),
        paired=True,
        vectorized=True,
        n_resamples=resamples,
        method="percentile",
        confidence_level=CONFIDENCE,
        batch=1000,
        rng=np.random.default_rng(0),
    ).confidence_interval
    return float(interval.low), float(interval.high)


def _p_value(sums_I: np.ndarray) -> float:
    """Two-sided p: an exchange of row and full model within an identity flips the sign of its sum."""
    test = stats.permutation_test(
        (sums_I,),
        lambda x, axis: x.sum(axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=RESAMPLES,
        rng=np.random.default_rng(0),
    )
    return float(test.pvalue)
