"""Scores from embeddings: near the real ones, the same bits in every block, ties where embeddings are equal."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import Tensor

from training.evaluation import similarity
from training.evaluation.similarity import Similarity


def unit(rows: int, width: int, seed: int) -> Tensor:
    values = torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(values, dim=1)


def test_scores_are_nearer_to_the_real_ones_than_a_float32_product() -> None:
    query_QE, gallery_GE, clothing_GE = unit(50, 256, 1), unit(70, 256, 2), unit(70, 256, 3)
    identity_QG, clothing_QG = (query_QE.double() @ x.double().T for x in (gallery_GE, clothing_GE))
    scores = Similarity(query_QE, gallery_GE, clothing_GE)
    error = (scores.matrix(0.0) - identity_QG).abs().max()
    assert error < 4e-8 and error < (query_QE @ gallery_GE.T - identity_QG).abs().max()
    assert (scores.matrix(0.7) - (identity_QG + 0.7 * clothing_QG)).abs().max() < 1e-7
    assert (scores.matrix(math.inf) - clothing_QG).abs().max() < 4e-8
    assert scores.matrix(0.7).dtype == torch.float32


def test_a_score_is_the_exact_product_of_the_rounded_embeddings() -> None:
    query_QE, gallery_GE = unit(3, 64, 4), unit(5, 64, 5)
    rounded = [[[Fraction(round(float(v) * 2**26), 2**26) for v in row] for row in x] for x in (query_QE, gallery_GE)]
    expected = [
        [np.float32(float(sum(a * b for a, b in zip(t, v, strict=True)))) for v in rounded[1]] for t in rounded[0]
    ]
    assert Similarity(query_QE, gallery_GE).matrix(0.0).tolist() == np.array(expected).tolist()


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_any_length_of_embeddings(scale: float) -> None:
    query_QE, gallery_GE = unit(4, 16, 6) * scale, unit(6, 16, 7) * scale
    gallery_GE[0] = 0.0
    expected = query_QE.double() @ gallery_GE.double().T
    result = Similarity(query_QE, gallery_GE).matrix(0.0).double()
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-7 * scale**2)
    assert Similarity(query_QE * 0, gallery_GE * 0).matrix(0.0).abs().max() == 0


@pytest.mark.parametrize("threads", [1, 2])
def test_bits_do_not_depend_on_the_block_and_equal_images_tie(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    query_QE, gallery_GE, clothing_GE = unit(40, 96, 8), unit(333, 96, 9), unit(333, 96, 10)
    twins = [3, 64, 201, 330, 332]
    gallery_GE[twins], clothing_GE[twins] = gallery_GE[5].clone(), clothing_GE[5].clone()
    scores = Similarity(query_QE, gallery_GE, clothing_GE)
    whole, before = scores.matrix(0.3), torch.get_num_threads()
    assert bool((whole[:, twins] == whole[:, 5:6]).all())
    try:
        torch.set_num_threads(threads)
        for block in (1, 2, 7, 8, 33):
            monkeypatch.setattr(similarity, "BLOCK", block * 333)
            parts = list(scores.blocks([0.3, math.inf]))
            assert [beta for _, beta, _ in parts] == [0.3, math.inf] * math.ceil(40 / block)
            for rows, beta, scores_BG in parts:
                if beta == 0.3:
                    assert torch.equal(scores_BG, whole[rows])
    finally:
        torch.set_num_threads(before)
    assert torch.equal(scores.matrix(0.3, slice(5, 9)), whole[5:9])
    assert torch.equal(scores.matrix(0.3, [9, 2]), whole[[9, 2]])
    assert scores.matrix(0.3, slice(40, 50)).shape == (0, 333)


GOOD = {"query_QE": unit(2, 4, 1), "gallery_GE": unit(3, 4, 2), "clothing_GE": unit(3, 4, 3)}


@pytest.mark.parametrize(
    ("name", "value", "error", "match"),
    [
        ("query_QE", torch.ones(2, 4, dtype=torch.int64), TypeError, "query_QE must be floating, got torch.int64"),
        ("query_QE", torch.ones(4), ValueError, r"query_QE must have shape \(n, E\), none of them 0, got \(4,\)"),
        ("gallery_GE", torch.ones(0, 4), ValueError, r"gallery_GE must have shape .*none of them 0, got \(0, 4\)"),
        ("gallery_GE", torch.ones(3, 5), ValueError, r"gallery_GE must have shape \(3, 4\) like the other embeddings"),
        ("clothing_GE", torch.ones(2, 4), ValueError, r"clothing_GE must have shape \(3, 4\) like .*got \(2, 4\)"),
        ("query_QE", torch.full((2, 4), torch.nan), ValueError, "query_QE holds 8 NaN or infinite values"),
        ("clothing_GE", torch.full((3, 4), -torch.inf), ValueError, "clothing_GE holds 12 NaN or infinite values"),
    ],
)
def test_wrong_embeddings_are_named(name: str, value: Tensor, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        Similarity(**(GOOD | {name: value}))


@pytest.mark.parametrize(
    ("beta", "largest", "match"),
    [
        (-0.5, 1.0, "beta must be 0 or more, got -0.5"),
        (math.nan, 1.0, "beta must be 0 or more, got nan"),
        (1e39, 1.0, r"scores up to 1e\+39 \(beta 1e\+39\) would be infinite in float32"),
        (0.0, 1e39, r"scores up to 1e\+39 \(beta 0.0\) would be infinite in float32"),
    ],
)
def test_wrong_weights_are_named(beta: float, largest: float, match: str) -> None:
    one = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    with pytest.raises(ValueError, match=match):
        Similarity(one, one * largest, one).matrix(beta)


def test_a_weight_needs_a_second_gallery() -> None:
    with pytest.raises(ValueError, match=r"beta 0.5 weighs a second gallery, but there is none"):
        next(Similarity(GOOD["query_QE"], GOOD["gallery_GE"]).blocks([0.0, 0.5]))
