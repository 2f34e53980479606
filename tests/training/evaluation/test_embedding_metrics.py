"""Metrics straight from embeddings: against the slow oracle, against whole matrices, in any blocks, on any threads."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from tests.training.evaluation.test_metrics import brute_force
from training.evaluation import similarity
from training.evaluation.metrics import METRICS, embedding_metrics, query_metrics, retrieval_metrics
from training.evaluation.similarity import Similarity

BETAS = (0.0, 0.25, 1.0, 8.0, math.inf)
ALL = 10**9


@contextmanager
def blocks_of(queries: int, gallery: int, threads: int = 1) -> Iterator[None]:
    """Sets the size of a block and the number of threads."""
    block, before = similarity.BLOCK, torch.get_num_threads()
    similarity.BLOCK = queries * gallery
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        similarity.BLOCK = block
        torch.set_num_threads(before)


@st.composite
def small_cases(draw: st.DrawFn) -> tuple[np.ndarray, ...]:
    """Embeddings of quarters, so that scores are exact and often tie, with images that occur twice."""
    queries, images, width = draw(st.integers(1, 8)), draw(st.integers(1, 5)), draw(st.integers(1, 3))

    def embeddings(rows: int) -> np.ndarray:
        values = draw(st.lists(st.integers(-4, 4), min_size=rows * width, max_size=rows * width))
        return np.array(values, dtype=np.float32).reshape(rows, width) / 4

    copies = draw(st.lists(st.integers(0, images - 1), max_size=2))
    rows = np.array([*range(images), *copies])
    gallery_ids = np.array(draw(st.lists(st.integers(0, 2), min_size=len(rows), max_size=len(rows))))
    query_ids = np.array(draw(st.lists(st.sampled_from(gallery_ids.tolist()), min_size=queries, max_size=queries)))
    return embeddings(queries), embeddings(images)[rows], query_ids, gallery_ids, embeddings(images)[rows]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(small_cases(), st.sampled_from([1, 7, ALL]))
def test_any_case_against_every_order_of_the_ties(case: tuple[np.ndarray, ...], block: int) -> None:
    query, gallery, query_ids, gallery_ids, clothing = case
    with blocks_of(block, len(gallery)):
        result = embedding_metrics(*case, BETAS)
    for beta in BETAS:
        scores = query @ clothing.T if math.isinf(beta) else query @ gallery.T + beta * (query @ clothing.T)
        assert result[beta].mean() == pytest.approx(brute_force(scores, query_ids, gallery_ids), abs=1e-9)
        match = query_ids[:, None] == gallery_ids[None]
        tied = [bool(np.isin(row[m], row[~m]).any()) for row, m in zip(scores, match, strict=True)]
        assert result[beta].tied_Q.tolist() == tied and result[beta].has_ties() == any(tied)


def split(queries: int = 97, gallery: int = 203, width: int = 32) -> tuple[torch.Tensor, ...]:
    """Unit embeddings around 9 people; three images are there twice."""
    g = torch.Generator().manual_seed(queries)
    query_Q, gallery_G = torch.arange(queries) % 9, torch.randint(9, (gallery,), generator=g)
    gallery_G[:9] = torch.arange(9)
    centres = torch.randn(9, width, generator=g)

    def around(ids: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.normalize(centres[ids] + 2 * torch.randn(len(ids), width, generator=g), dim=1)

    query_QE, gallery_GE, clothing_GE = around(query_Q), around(gallery_G), around(gallery_G)
    here, there = torch.randperm(gallery, generator=g)[:6].chunk(2)
    gallery_GE[there], clothing_GE[there] = gallery_GE[here], clothing_GE[here]
    return query_QE, gallery_GE, query_Q, gallery_G, clothing_GE


def test_values_do_not_depend_on_blocks_or_threads() -> None:
    case = split(queries=45)
    reference = embedding_metrics(*case, BETAS)
    assert reference[0.0].has_ties() and not bool(reference[0.0].tied_Q.all())
    for block, threads in ((1, 1), (2, 2), (7, 1), (7, 2), (8, 2), (20, 2), (ALL, 1), (ALL, 2)):
        with blocks_of(block, 203, threads):
            result = embedding_metrics(*case, BETAS)
        for beta in BETAS:
            assert torch.equal(result[beta].values_Q5, reference[beta].values_Q5)
            assert torch.equal(result[beta].tied_Q, reference[beta].tied_Q)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_the_same_as_from_whole_matrices(dtype: torch.dtype) -> None:
    query_QE, gallery_GE, query_Q, gallery_G, clothing_GE = split()
    branches = [x.to(dtype) for x in (query_QE, gallery_GE, clothing_GE)]
    before = [x.clone() for x in branches]
    result = embedding_metrics(*branches[:2], query_Q, gallery_G, branches[2], BETAS)
    scores = Similarity(*branches)
    match_QG = query_Q[:, None] == gallery_G[None]
    for beta in BETAS:
        matrix = scores.matrix(beta)
        assert result[beta].mean() == retrieval_metrics(matrix, query_Q, gallery_G)
        assert torch.equal(result[beta].values_Q5, query_metrics(matrix, match_QG).values_Q5)
    assert all(torch.equal(x, y) for x, y in zip(branches, before, strict=True)), "the embeddings are left as they are"


def test_one_gallery_and_its_default() -> None:
    query_QE, gallery_GE, query_Q, gallery_G, clothing_GE = split()
    alone = embedding_metrics(query_QE.numpy(), gallery_GE.numpy(), query_Q.tolist(), gallery_G.numpy())
    both = embedding_metrics(query_QE, gallery_GE, query_Q, gallery_G, clothing_GE, (1.0, 0.0))
    assert list(alone) == [0.0] and list(both) == [1.0, 0.0]
    assert list(alone[0.0].mean()) == list(METRICS) and alone[0.0].mean() == both[0.0].mean()
    swapped = embedding_metrics(query_QE, clothing_GE, query_Q, gallery_G)[0.0]
    only = embedding_metrics(query_QE, gallery_GE, query_Q, gallery_G, clothing_GE, (math.inf,))[math.inf]
    assert torch.equal(swapped.values_Q5, only.values_Q5)


class LargestTensor(TorchDispatchMode):
    """Numbers of the largest tensor that an operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for x in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(x, torch.Tensor):
                self.numel = max(self.numel, x.untyped_storage().nbytes() // x.element_size(), x.numel())
        return result


def test_no_tensor_is_as_large_as_the_matrix() -> None:
    case = split(queries=300, gallery=400)
    with blocks_of(20, 400), LargestTensor() as largest:
        embedding_metrics(*case, BETAS)
    assert largest.numel == max(20 * 400, 400 * 32)
    with LargestTensor() as largest:
        Similarity(*case[:2]).matrix(0.0)
    assert largest.numel == 300 * 400, "the measurement sees a whole matrix"


def test_every_item_in_one_group() -> None:
    """A model that gives every image the same embedding is as good as chance."""
    query_QE, gallery_GE, query_Q, gallery_G, _ = split()
    constant = embedding_metrics(query_QE, gallery_GE[:1].expand(203, -1), query_Q, gallery_G)[0.0]
    expected = retrieval_metrics(torch.zeros(97, 203), query_Q, gallery_G)
    assert constant.mean() == pytest.approx(expected, abs=1e-9) and bool(constant.tied_Q.all())


def test_wrong_ids_are_named() -> None:
    query_QE, gallery_GE, query_Q, gallery_G, _ = split()
    with pytest.raises(ValueError, match=r"\(97, 203\) embeddings do not fit \(96, 203\) ids"):
        embedding_metrics(query_QE, gallery_GE, query_Q[:96], gallery_G)
    with pytest.raises(ValueError, match=r"11 of 97 queries have no match in the gallery, ids \[3\]"):
        embedding_metrics(query_QE, gallery_GE, query_Q, torch.where(gallery_G == 3, 4, gallery_G))
    with pytest.raises(TypeError, match=r"query_ids must be integers, got torch.float32"):
        embedding_metrics(query_QE, gallery_GE, query_Q.float(), gallery_G)
