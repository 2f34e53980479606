"""The metrics against a slow independent implementation that tries every order of tied items."""

from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np
import pytest
import torch

from training.evaluation import similarity
from training.evaluation.metrics import METRICS, chance_metrics, has_ties, query_metrics, retrieval_metrics


def metrics_of_order(right: list[bool]) -> list[Fraction]:
    """Metrics of one query from the ranked list of right and wrong, straight from the definitions."""
    ranks = [i + 1 for i, r in enumerate(right) if r]
    hits = [Fraction(any(r <= k for r in ranks)) for k in (1, 5, 10)]
    precision = sum((Fraction(n + 1, rank) for n, rank in enumerate(ranks)), Fraction(0)) / len(ranks)
    return [*hits, precision, Fraction(len(ranks), ranks[-1])]


def brute_force(similarity: np.ndarray, query_ids: np.ndarray, gallery_ids: np.ndarray) -> dict[str, float]:
    """Mean over the queries of the mean over all orders of the gallery that the scores allow."""
    total = [Fraction(0)] * 5
    for scores, wanted in zip(similarity, query_ids, strict=True):
        levels = sorted(set(scores.tolist()), reverse=True)
        tied = [[j for j, s in enumerate(scores.tolist()) if s == level] for level in levels]
        orders = list(itertools.product(*(itertools.permutations(group) for group in tied)))
        values = [metrics_of_order([bool(gallery_ids[j] == wanted) for g in order for j in g]) for order in orders]
        total = [t + sum(column) / len(orders) for t, column in zip(total, zip(*values, strict=True), strict=True)]
    return {key: float(100 * t / len(query_ids)) for key, t in zip(METRICS, total, strict=True)}


def random_case(seed: int, levels: int, queries: int = 4, gallery: int = 7) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(seed)
    gallery_ids = np.concatenate([np.arange(3), rng.integers(0, 3, gallery - 3)])
    similarity = rng.integers(0, levels, (queries, gallery)) / 4.0
    return similarity, rng.integers(0, 3, queries), rng.permutation(gallery_ids)


@pytest.mark.parametrize("levels", [1, 2, 3, 5])
@pytest.mark.parametrize("seed", range(4))
def test_ties_count_with_the_mean_over_all_orders(seed: int, levels: int) -> None:
    case = random_case(seed, levels)
    assert retrieval_metrics(*case) == pytest.approx(brute_force(*case), abs=1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_without_ties_on_a_longer_gallery(seed: int) -> None:
    rng = np.random.default_rng(100 + seed)
    similarity, gallery_ids = rng.standard_normal((20, 60)), np.concatenate([np.arange(9), rng.integers(0, 9, 51)])
    case = similarity, rng.integers(0, 9, 20), gallery_ids
    assert retrieval_metrics(*case) == pytest.approx(brute_force(*case), abs=1e-9)
    assert not has_ties(*case)


@pytest.mark.parametrize("seed", range(12))
def test_random_shapes_with_several_positives_and_some_ties(seed: int) -> None:
    """Galleries of 20 to 120 images, 2 to 30 of them right for each query; a few scores tie in groups of up to four."""
    rng = np.random.default_rng(500 + seed)
    persons, gallery, queries = (int(rng.integers(*span)) for span in ((2, 8), (20, 120), (3, 25)))
    gallery_ids = rng.permutation(np.concatenate([np.repeat(np.arange(persons), 2), rng.integers(0, persons, gallery)]))
    similarity = rng.standard_normal((queries, len(gallery_ids)))
    for row in similarity:
        # Two groups a query: more would make the orders to try too many.
        for _ in range(2):
            row[rng.choice(len(row), int(rng.integers(2, 5)), replace=False)] = rng.standard_normal()
    case = similarity, rng.integers(0, persons, queries), gallery_ids
    assert retrieval_metrics(*case) == pytest.approx(brute_force(*case), abs=1e-6)
    assert min((gallery_ids == person).sum() for person in case[1]) >= 2


@pytest.mark.parametrize("seed", range(4))
def test_queries_with_galleries_of_their_own(seed: int) -> None:
    """An excluded item counts as little as one that is not there; a query's matches need not follow from ids."""
    rng = np.random.default_rng(900 + seed)
    similarity = rng.standard_normal((9, 30)).round(1)
    match, excluded = rng.random((9, 30)) < 0.2, rng.random((9, 30)) < 0.3
    match[:, 0], match[:, 1] = True, True
    excluded &= ~match
    result = query_metrics(*(torch.from_numpy(x) for x in (similarity, match, excluded)))
    for query in range(9):
        kept = ~excluded[query]
        ids = match[query, kept].astype(np.int64)
        expected = retrieval_metrics(similarity[query : query + 1, kept], np.array([1]), ids)
        assert result.values_Q5[query].tolist() == pytest.approx(list(expected.values()), abs=1e-9)
    with pytest.raises(ValueError, match="9 queries exclude one of their matches"):
        query_metrics(*(torch.from_numpy(x) for x in (similarity, match, match)))
    match[3:5] = False
    with pytest.raises(ValueError, match="2 of 9 queries have no match in the gallery"):
        query_metrics(*(torch.from_numpy(x) for x in (similarity, match)))


def test_hand_computed_ranking() -> None:
    # Ranks of the matches 2 and 4: AP = (1/2 + 2/4) / 2, mINP = 2 / 4.
    result = retrieval_metrics(torch.tensor([[0.9, 0.8, 0.7, 0.6]]), torch.tensor([1]), torch.tensor([0, 1, 0, 1]))
    assert result == pytest.approx({"R1": 0.0, "R5": 100.0, "R10": 100.0, "mAP": 50.0, "mINP": 50.0})


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_any_floating_dtype_and_infinite_scores(dtype: torch.dtype) -> None:
    similarity = torch.tensor([[0.5, -torch.inf, 0.5, torch.inf]], dtype=dtype, requires_grad=True)
    ids = torch.tensor([1], dtype=torch.int32), torch.tensor([1, 1, 0, 0])
    expected = brute_force(similarity.detach().double().numpy(), *(x.numpy() for x in ids))
    assert retrieval_metrics(similarity, *ids) == pytest.approx(expected, abs=1e-9)


def test_blocks_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    case = random_case(seed=3, levels=3, queries=11)
    whole, tied = retrieval_metrics(*case), has_ties(*case)
    monkeypatch.setattr(similarity, "BLOCK", 15)
    assert retrieval_metrics(*case) == whole
    assert has_ties(*case) == tied


@pytest.mark.parametrize("seed", range(4))
def test_chance_is_the_mean_over_all_orders(seed: int) -> None:
    similarity, query_ids, gallery_ids = random_case(seed, levels=3)
    expected = brute_force(np.zeros_like(similarity), query_ids, gallery_ids)
    assert chance_metrics(query_ids, gallery_ids) == pytest.approx(expected, abs=1e-9)


def test_chance_of_a_gallery_too_large_to_enumerate() -> None:
    # One match among n: R-k = k / n, AP = mINP = H_n / n.
    harmonic = sum(1 / r for r in range(1, 3001))
    result = chance_metrics(np.array([7]), np.arange(3000))
    expected = {"R1": 100 / 3000, "R5": 500 / 3000, "R10": 1000 / 3000}
    assert result == pytest.approx(expected | dict.fromkeys(("mAP", "mINP"), 100 * harmonic / 3000), rel=1e-12)


def test_ties_are_said_only_where_they_matter() -> None:
    ids = torch.tensor([1]), torch.tensor([1, 1, 0, 0])
    assert not has_ties(torch.tensor([[0.9, 0.9, 0.1, 0.1]]), *ids)
    assert has_ties(torch.tensor([[0.9, 0.5, 0.5, 0.1]]), *ids)


GOOD = (np.zeros((2, 3)), np.array([0, 1]), np.array([0, 1, 1]))


@pytest.mark.parametrize(
    ("position", "value", "error", "match"),
    [
        (0, np.zeros((2, 3), dtype=np.int64), TypeError, "similarity must be floating, got torch.int64"),
        (0, np.zeros((3, 2)), ValueError, r"similarity must have shape \(2, 3\) like .*, got \(3, 2\)"),
        (0, np.full((2, 3), np.nan), ValueError, "similarity holds 6 NaN"),
        (1, np.array([0.0, 1.0]), TypeError, "query_ids must be integers, got torch.float64"),
        (1, np.array([True, False]), TypeError, "query_ids must be integers, got torch.bool"),
        (1, np.array([0, 5]), ValueError, r"1 of 2 queries have no match in the gallery, ids \[5\]"),
        (1, np.zeros(0, dtype=np.int64), ValueError, r"query_ids must have shape \(n,\) with n >= 1, got \(0,\)"),
        (2, np.zeros((1, 3), dtype=np.int64), ValueError, r"gallery_ids must have shape \(n,\).*got \(1, 3\)"),
    ],
)
def test_wrong_input_is_named(position: int, value: np.ndarray, error: type[Exception], match: str) -> None:
    case = list(GOOD)
    case[position] = value
    with pytest.raises(error, match=match):
        retrieval_metrics(*case)
    with pytest.raises(error, match=match):
        has_ties(*case)
    if position:
        with pytest.raises(error, match=match):
            chance_metrics(*case[1:])
