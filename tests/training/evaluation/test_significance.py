"""The paired test against its definition: every exchange of row and full model tried, and known answers."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from training.evaluation.metrics import METRICS, query_metrics, retrieval_metrics
from training.evaluation.significance import RESAMPLES, compare
from training.utils.io import encode


def every_exchange(row: np.ndarray, full: np.ndarray, ids: np.ndarray) -> float:
    """Share of all 2^I exchanges whose mean difference is at least as large, by swapping the values themselves."""
    people, seen = np.unique(ids), abs((row - full).mean())
    extreme = 0
    for swapped in itertools.product([False, True], repeat=len(people)):
        mask = np.isin(ids, people[list(swapped)])
        a, b = np.where(mask, full, row), np.where(mask, row, full)
        extreme += abs((a - b).mean()) >= seen - 1e-12
    return extreme / 2 ** len(people)


@pytest.mark.parametrize("seed", range(4))
def test_p_is_the_share_of_exchanges_at_least_as_large(seed: int) -> None:
    rng = np.random.default_rng(seed)
    ids = rng.permutation(np.repeat([5, 8, 9, 20, 21, 22, 40], rng.integers(1, 6, 7)))
    full = rng.random((3, len(ids)))
    row = full + 0.1 * seed + 0.3 * rng.standard_normal(full.shape)
    result = compare(row, full, ids)
    assert result.p == pytest.approx(every_exchange(row, full, ids), abs=1e-9)
    assert result.delta == pytest.approx((row - full).mean())
    assert result.per_seed == pytest.approx((row - full).mean(1))
    assert result.low < result.delta < result.high


def test_many_identities_are_sampled_and_the_result_repeats() -> None:
    rng = np.random.default_rng(0)
    ids, full = np.repeat(np.arange(50), 4), rng.random((2, 200))
    shifted, noise = full - 0.2 + 0.1 * rng.standard_normal(full.shape), full + 0.1 * rng.standard_normal(full.shape)
    result = compare(shifted, full, ids)
    assert result.p == pytest.approx(2 / (RESAMPLES + 1)) and result.high < 0 and result.same_sign == 2
    assert compare(noise, full, ids).p > 0.01
    assert compare(shifted, full, ids) == result


def test_queries_of_one_person_are_not_independent() -> None:
    """A difference that one person's forty queries share is one observation, not forty."""
    ids = np.concatenate([np.zeros(40, int), np.arange(1, 9)])
    full = np.zeros((1, 48))
    row = np.where(ids == 0, 1.0, 0.0)[None]
    assert compare(row, full, ids).p == pytest.approx(1.0)


def test_equal_rows_and_a_single_person() -> None:
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
