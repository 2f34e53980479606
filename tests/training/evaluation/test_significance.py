"""The test over seeds and people against its definition, every resample enumerated; its errors on made-up null data."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scipy import stats

from training.evaluation import significance
from training.evaluation.metrics import METRICS, query_metrics, retrieval_metrics
from training.evaluation.significance import (
    RESAMPLES,
    compare,
    holm,
    pooled_deviation,
    resamples_for,
    smallest_difference,
    verdict,
)
from training.utils.io import encode


def every_resample(row: np.ndarray, full: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Mean difference of all S^S x I^I resamples of seeds and people, by repeating the values themselves."""
    people, means = np.unique(ids), []
    for seeds in itertools.product(range(len(row)), repeat=len(row)):
        for chosen in itertools.product(people, repeat=len(people)):
            columns = np.concatenate([np.flatnonzero(ids == person) for person in chosen])
            means.append((row - full)[np.ix_(seeds, columns)].mean())
    return np.array(means)


@pytest.mark.parametrize("seed", range(3))
def test_bootstrap_is_that_of_every_resample(seed: int) -> None:
    rng = np.random.default_rng(seed)
    ids = rng.permutation(np.repeat([5, 8, 9, 40], rng.integers(1, 5, 4)))
    full = rng.random((3, len(ids)))
    row = full + 0.1 * seed + 0.3 * rng.standard_normal(full.shape)
    sums = np.stack([significance.cluster_sums(values, ids)[0] for values in row - full])
    low, high, p = significance._bootstrap(sums, significance.cluster_sums(row[0], ids)[1], RESAMPLES)
    means = every_resample(row, full, ids)
    assert p == pytest.approx(min(1.0, 2 * min((means <= 0).mean(), (means >= 0).mean())), abs=0.025)
    assert (low, high) == pytest.approx(np.quantile(means, (0.025, 0.975)), abs=0.02)


def test_p_is_the_larger_of_bootstrap_and_t_test() -> None:
    rng = np.random.default_rng(0)
    ids, full = np.repeat(np.arange(50), 4), rng.random((5, 200))
    # Seeds differ, people hardly: the t-test decides.
    seeds = full - 0.2 + 0.1 * rng.standard_normal((5, 1)) + 0.001 * rng.standard_normal(full.shape)
    result = compare(seeds, full, ids)
    by_seed = stats.ttest_rel(seeds.mean(1), full.mean(1))
    assert result.p == pytest.approx(by_seed.pvalue) and result.low == pytest.approx(by_seed.confidence_interval().low)
    # People differ, seeds hardly: the bootstrap over people decides.
    people = full - 0.05 + 0.2 * np.repeat(rng.standard_normal(50), 4) + 0.001 * rng.standard_normal((5, 1))
    by_person = (people - full).mean(0).reshape(50, 4).mean(1)
    found = compare(people, full, ids)
    assert found.p == pytest.approx(stats.ttest_1samp(by_person, 0).pvalue, rel=0.2)
    assert stats.ttest_rel(people.mean(1), full.mean(1)).pvalue < found.p / 10
    assert compare(seeds, full, ids) == result
    assert result.delta == pytest.approx((seeds - full).mean()) and result.same_sign == 4
    assert result.per_seed == pytest.approx((seeds - full).mean(1)) and result.low < result.delta < result.high


def test_rows_that_do_not_differ_are_called_different_one_time_in_twenty() -> None:
    """Null data: a row moves by 0.8 points from seed to seed, the mean over 60 people by 0.3 more. The bootstrap alone is wrong
    far more often (docs/statistics.md has 2000 draws of each kind)."""
    rng, ids, draws = np.random.default_rng(0), np.arange(60), 400
    wrong = alone = 0
    for _ in range(draws):
        values = rng.normal(0, 0.8, (2, 5, 1)) + rng.normal(0, 0.3 * 60**0.5 / 2**0.5, (2, 5, 60))
        found = compare(values[0], values[1], ids)
        wrong += found.p <= 0.05
        alone += significance._bootstrap(values[0] - values[1], np.ones(60), RESAMPLES)[2] <= 0.05
    assert wrong / draws <= 0.075 and alone / draws >= 0.1


def test_a_clear_difference_is_found() -> None:
    rng, ids = np.random.default_rng(1), np.arange(60)
    full = rng.normal(0, 1, (5, 60)) + rng.normal(0, 0.8, (5, 1))
    found = compare(full + 4 + rng.normal(0, 0.8, (5, 1)), full, ids, tests=7)
    assert found.p < 0.05 / 7 and found.low > 0


def test_queries_of_one_person_are_not_independent() -> None:
    """A difference that one person's forty queries share is one observation, not forty."""
    ids = np.concatenate([np.zeros(40, int), np.arange(1, 9)])
    row = np.where(ids == 0, 1.0, 0.0) + np.array([[0.0], [1e-6], [2e-6]])
    found = compare(row - 1e-6, np.zeros((3, 48)), ids)
    assert found.p > 0.3 and found.low <= 0


def test_equal_rows_a_single_seed_and_a_single_person() -> None:
    values, ids = np.random.default_rng(0).random((2, 6)), np.array([1, 1, 2, 2, 3, 3])
    assert encode(compare(values, values, ids)) == {
        "delta": 0.0,
        "per_seed": [0.0, 0.0],
        "same_sign": 2,
        "low": 0.0,
        "high": 0.0,
        "p": 1.0,
    }
    alone = compare(values, values + 1, np.ones(6, int))
    assert alone.delta == pytest.approx(-1) and (alone.low, alone.high, alone.p) == (None, None, None)
    once = compare(values[:1], values[:1] + 1, ids)
    assert once.delta == pytest.approx(-1) and (once.low, once.high, once.p) == (None, None, None)
    shifted = compare(values + 0.5, values, ids)
    assert shifted.p < 0.01 and shifted.low == pytest.approx(0.5)


def test_correction_of_holm() -> None:
    # The worked example of Holm's step-down: 4 x 0.005, 3 x 0.01, 2 x 0.03, then no smaller than the one before.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([None, 0.2, 0.9, None]) == [None, 0.4, 0.9, None] and holm([]) == [] and holm([0.7, 0.8]) == [1.0, 1.0]
    # One of twenty true null hypotheses survives in one family of twenty.
    rng = np.random.default_rng(0)
    families = [min(p for p in holm(rng.random(20).tolist()) if p is not None) for _ in range(1000)]
    assert 0.03 < np.mean(np.array(families) < 0.05) < 0.07


def test_only_a_difference_that_survives_has_a_direction() -> None:
    assert [verdict(*pair) for pair in ((1.0, 0.049), (-1.0, 0.001), (9.0, 0.05), (9.0, None))] == [
        "better",
        "worse",
        "unsure",
        "unsure",
    ]


def test_resamples_reach_the_smallest_p_that_the_correction_needs() -> None:
    for tests in (1, 7, 40):
        number = resamples_for(tests)
        assert number >= RESAMPLES and 2 * 100 / (number + 1) <= 0.05 / tests
    assert resamples_for(7) == 27999


def test_deviation_over_seeds_pooled_over_rows() -> None:
    rng = np.random.default_rng(0)
    rows = [(10 * i + rng.normal(0, 0.8, 5)).tolist() for i in range(400)]
    assert pooled_deviation(rows) == pytest.approx(0.8, rel=0.05)
    assert pooled_deviation([[1.0, 3.0], [5.0, 5.0, 5.0]]) == pytest.approx((2 / 3) ** 0.5)
    assert pooled_deviation([[1.0], [2.0]]) is None and pooled_deviation([]) is None


def test_smallest_difference_is_found_four_times_in_five() -> None:
    rng, draws = np.random.default_rng(0), 4000
    for seeds in (3, 5, 10):
        shift = smallest_difference(0.8, seeds)
        row, full = (rng.normal(mean, 0.8, (seeds, draws)) for mean in (shift, 0.0))
        assert np.mean(stats.ttest_rel(row, full).pvalue < 0.05) == pytest.approx(0.8, abs=0.06)
    assert smallest_difference(0.8, 5) == pytest.approx((2.7764 + 0.9410) * 0.8 * (2 / 5) ** 0.5, rel=1e-3)
    assert smallest_difference(0.8, 1) == float("inf")


def test_shapes_that_do_not_fit_are_named() -> None:
    with pytest.raises(ValueError, match=r"needs values \(S, Q\) of both rows and ids \(Q,\), got \(2, 3\), \(2, 4\)"):
        compare(np.zeros((2, 3)), np.zeros((2, 4)), np.zeros(3))


def test_values_of_each_query() -> None:
    rng = np.random.default_rng(1)
    similarity, ids = torch.from_numpy(rng.standard_normal((6, 9))), torch.from_numpy(rng.permutation(np.arange(9) % 3))
    queries = torch.tensor([0, 1, 2, 2, 1, 0])
    match = queries[:, None] == ids[None]
    values = query_metrics(similarity, match).values_Q5
    assert values.mean(0).tolist() == pytest.approx(list(retrieval_metrics(similarity, queries, ids).values()))
    assert values.shape == (6, len(METRICS))
    with pytest.raises(ValueError, match="1 queries exclude one of their matches"):
        query_metrics(similarity, match, match & (torch.arange(6) == 2)[:, None])
    with pytest.raises(ValueError, match="6 of 6 queries have no match in the gallery"):
        query_metrics(similarity, torch.zeros_like(match))
    excluded = ~match & (torch.rand(6, 9, generator=torch.Generator().manual_seed(0)) < 0.5)
    for i, row in enumerate(query_metrics(similarity, match, excluded).values_Q5):
        kept = ~excluded[i]
        alone = query_metrics(similarity[i : i + 1, kept], match[i : i + 1, kept]).values_Q5[0]
        assert row.tolist() == pytest.approx(alone.tolist())
