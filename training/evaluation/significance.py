"""Comparison of one row of a table with its reference row, over seeds and people; Holm's correction; the noise floor.

Shapes: S seeds, Q queries, I identities, R resamples.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np
from scipy import stats

from training.evaluation.experiment_result import Comparison

RESAMPLES = 9999
CONFIDENCE = 0.95
# A row differs from the reference when its p after Holm's correction is below this.
LEVEL = 0.05
# Power of the smallest difference that a number of seeds can distinguish.
POWER = 0.8
# Resamples that are multiplied at a time: the block stays in the cache.
BLOCK = 1000
# Resamples beyond the observed value at the smallest p that Holm's correction asks for: p is known to a tenth there.
TAIL = 100
# Printed below every table that shows these numbers.
TEST = (
    "Delta is the row minus the reference row of its table, each run at the clothing weight that it chose on validation. p is "
    "over seeds and people: the larger of the two-sided p of a hierarchical bootstrap (seeds resampled, each seed of the row "
    "paired with the same seed of the reference, then identities with all their queries) and of a paired t-test over the "
    f"seeds, which alone knows how little a few seeds say. The {CONFIDENCE:.0%} interval is the hull of the two intervals. One "
    "seed, or one person, leaves nothing to test. Within each table and metric p is corrected for the number of rows (Holm); a "
    f"difference whose corrected p is not below {LEVEL} is unsure, whatever its sign."
)


def compare(row_SQ: np.ndarray, full_SQ: np.ndarray, ids_Q: np.ndarray, tests: int = 1) -> Comparison:
    """Difference of the means of two rows' values per query, in the unit of the values, as `TEST` describes it.

    row_SQ, full_SQ: (S, Q), the same seeds and queries in both; ids_Q: (Q,) identity of each query; tests: number of rows
    that Holm's correction counts, which decides the number of resamples. With a single seed or a single identity low, high
    and p are None. Raises ValueError for shapes that do not fit.

    The test people are the same for every seed, so one resample of people serves all seeds: Owen, The pigeonhole bootstrap,
    Annals of Applied Statistics 1 (2007); for hierarchical data in general Davison and Hinkley, Bootstrap Methods (1997),
    3.8, and Saravanan et al., Neurons, Behavior, Data Analysis and Theory 3 (2020). With few seeds it rejects too often
    (docs/statistics.md), hence the larger p of it and the t-test.
    """
    if row_SQ.shape != full_SQ.shape or row_SQ.ndim != 2 or row_SQ.shape[1:] != ids_Q.shape or not row_SQ.size:
        shapes = f"{row_SQ.shape}, {full_SQ.shape} and {ids_Q.shape}"
        raise ValueError(f"a comparison needs values (S, Q) of both rows and ids (Q,), got {shapes}")
    difference_SQ = row_SQ.astype(np.float64) - full_SQ
    per_seed_S = difference_SQ.mean(1)
    delta = float(per_seed_S.mean())
    same_sign = int((np.sign(per_seed_S) == np.sign(delta)).sum())
    low = high = p = None
    sums_SI = np.stack([cluster_sums(values_Q, ids_Q)[0] for values_Q in difference_SQ])
    _, queries_I = cluster_sums(difference_SQ[0], ids_Q)
    if min(sums_SI.shape) > 1:
        low, high, p = _bootstrap(sums_SI, queries_I, resamples_for(tests))
        low_t, high_t, p_t = _t_test(per_seed_S)
        low, high, p = min(low, low_t), max(high, high_t), max(p, p_t)
    return Comparison(delta=delta, per_seed=per_seed_S.tolist(), same_sign=same_sign, low=low, high=high, p=p)


def resamples_for(tests: int) -> int:
    """Number of resamples that puts TAIL of them beyond a two-sided p of LEVEL / tests, the smallest that Holm's correction
    of `tests` rows compares with; at least RESAMPLES."""
    return max(RESAMPLES, int(np.ceil(2 * TAIL * tests / LEVEL)) - 1)


def holm(ps: Sequence[float | None]) -> list[float | None]:
    """p-values corrected for their number, at most 1; None where there was no test, which does not count. Holm, A simple
    sequentially rejective multiple test procedure, Scandinavian Journal of Statistics 6 (1979)."""
    order = sorted((p, i) for i, p in enumerate(ps) if p is not None)
    corrected: list[float | None] = [None] * len(ps)
    largest = 0.0
    for rank, (p, i) in enumerate(order):
        largest = max(largest, min(1.0, p * (len(order) - rank)))
        corrected[i] = largest
    return corrected


def verdict(delta: float, corrected: float | None) -> str:
    """Word for a difference: better or worse where its corrected p is below LEVEL, unsure elsewhere."""
    if corrected is None or corrected >= LEVEL:
        return "unsure"
    return "better" if delta > 0 else "worse"


def pooled_deviation(values: Sequence[Sequence[float]]) -> float | None:
    """Standard deviation within groups (rows) of values (seeds), pooled over the groups by their degrees of freedom; None
    where no group has two values."""
    groups = [np.asarray(group, dtype=np.float64) for group in values]
    freedom = sum(len(group) - 1 for group in groups)
    squares = sum(float(((group - group.mean()) ** 2).sum()) for group in groups)
    return float(np.sqrt(squares / freedom)) if freedom > 0 else None


def smallest_difference(deviation: float, seeds: int) -> float:
    """Smallest true difference of two rows that a paired t-test at LEVEL over `seeds` seeds finds with probability POWER,
    for one row, before Holm's correction: (t[1 - LEVEL/2] + t[POWER]) * deviation * sqrt(2 / seeds), quantiles of t with
    seeds - 1 degrees of freedom. deviation: of one row over the seeds. Infinite for one seed."""
    if seeds < 2:
        return float("inf")
    quantiles = stats.t.ppf(1 - LEVEL / 2, seeds - 1) + stats.t.ppf(POWER, seeds - 1)
    return float(quantiles * deviation * np.sqrt(2 / seeds))


def cluster_sums(values_Q: np.ndarray, ids_Q: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sum of the values and number of queries of each identity, float64 (I,) each."""
    _, cluster_Q = np.unique(ids_Q, return_inverse=True)
    return np.bincount(cluster_Q, weights=values_Q), np.bincount(cluster_Q).astype(np.float64)


def bootstrap_interval(sums_I: np.ndarray, queries_I: np.ndarray, resamples: int = RESAMPLES) -> tuple[float, float]:
    """Percentile interval of the mean over queries, of level CONFIDENCE, when identities are resampled with all their
    queries. Takes the result of `cluster_sums` for at least two identities."""
    low, high, _ = _bootstrap(sums_I[None], queries_I, resamples)
    return low, high


def _bootstrap(sums_SI: np.ndarray, queries_I: np.ndarray, resamples: int) -> tuple[float, float, float]:
    """(low, high, p) of the mean over seeds and queries when seeds and identities are resampled: the percentile interval and
    the two-sided p that agrees with it. The resamples are the same at every call."""
    parts = [
        ((seeds_RS @ sums_SI) * people_RI).sum(1) / (people_RI @ queries_I)
        for seeds_RS, people_RI in _blocks(len(sums_SI), len(queries_I), resamples)
    ]
    means_R = np.concatenate(parts)
    # Bounds that rounding moves across zero would call equal rows different.
    tolerance = 1e-12 * float(np.abs(sums_SI).sum() / queries_I.sum())
    below, above = int((means_R <= tolerance).sum()), int((means_R >= -tolerance).sum())
    low, high = np.quantile(means_R, ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2))
    return float(low), float(high), min(1.0, 2 * (1 + min(below, above)) / (resamples + 1))


def _blocks(seeds: int, people: int, resamples: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Weights of BLOCK resamples at a time, float64: of seeds (R, S), which sum to 1, and counts of identities (R, I)."""
    counts_RS, counts_RI = _draws(seeds, people, resamples)
    for start in range(0, resamples, BLOCK):
        block = slice(start, start + BLOCK)
        yield counts_RS[block] / seeds, counts_RI[block].astype(np.float64)


@lru_cache(maxsize=1)
def _draws(seeds: int, people: int, resamples: int) -> tuple[np.ndarray, np.ndarray]:
    """Number of times that each resample has each seed (R, S) and each identity (R, I), uint16. Kept for the next row: drawing
    them takes most of a comparison's time."""
    rng = np.random.default_rng(0)
    drawn = [rng.multinomial(n, np.full(n, 1 / n), resamples).astype(np.uint16) for n in (seeds, people)]
    return drawn[0], drawn[1]


def _t_test(per_seed_S: np.ndarray) -> tuple[float, float, float]:
    """(low, high, p) of the paired t-test over at least two seeds."""
    seeds, delta = len(per_seed_S), float(per_seed_S.mean())
    error = float(per_seed_S.std(ddof=1) / np.sqrt(seeds))
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, seeds - 1) * error)
    if error == 0:
        # Seeds that all agree exactly: no doubt about a difference, and no difference where there is none.
        return delta, delta, 0.0 if delta else 1.0
    return delta - half, delta + half, float(2 * stats.t.sf(abs(delta) / error, seeds - 1))
