"""Relevance feedback: marks bring images of the person in all outfits, and rejected ones take only their like along."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.support.retrieval.galleries import WIDTH, ColourEmbedder, fill, unit
from training.retrieval.finder import EngineName, Finder, Wanted

# Images of a person in each of two outfits, of one who looks alike, and of others.
OUTFITS, ALIKE, OTHERS = (10, 10), 10, 1500
BETA = 1.0


@pytest.fixture
def table() -> np.ndarray:
    """Embeddings (N, 2 WIDTH): the person in one outfit, in another one, somebody alike in the first outfit, others."""
    rng = np.random.default_rng(0)
    points = rng.standard_normal((4, 2, WIDTH))
    points[1, 0] = points[0, 0]
    points[2, 1] = points[0, 1]
    points[2, 0] = points[0, 0] + 0.8 * rng.standard_normal(WIDTH)
    counts = (*OUTFITS, ALIKE)
    known = np.repeat(points[:3], counts, 0) + 0.35 * rng.standard_normal((sum(counts), 2, WIDTH))
    others = rng.standard_normal((OTHERS, 2, WIDTH)) + 0.5 * points[3]
    return unit(np.concatenate([known, others])).reshape(-1, 2 * WIDTH)


def finder(tmp_path: Path, table: np.ndarray, engine: EngineName = "exact") -> Finder:
    return Finder(fill(tmp_path / "g", table), ColourEmbedder(), engine)


def order(found: Finder, beta: float = BETA, **marks: list[int]) -> list[int]:
    """Rows of the table, best first, for a text near the first outfit."""
    rows = found.snapshot.table_PW
    text = unit(rows[:10].reshape(-1, 2, WIDTH).mean((0, 1)))
    asked = found.query(Wanted(embedded_texts=[text], **marks), beta)
    return [result.image.id - 1 for result in found.search(asked, len(rows))]


def precision(ranking: list[int], marked: tuple[int, ...]) -> float:
    """Average precision of the rest, rows 0 to 19 right."""
    rest = [row for row in ranking if row not in marked]
    ranks = np.flatnonzero([row < 20 for row in rest]) + 1
    return float(np.mean(np.arange(1, len(ranks) + 1) / ranks))


@pytest.mark.parametrize("beta", [0.0, BETA])
def test_confirmed_images_of_two_outfits_bring_the_others_of_both(beta, table, tmp_path):
    found, marked = finder(tmp_path, table), (0, 12, 22)
    before = precision(order(found, beta), marked)
    after = precision(order(found, beta, confirmed=[1, 13], rejected=[23]), marked)
    assert after > min(before + 0.05, 0.99) and after > 0.9


def test_identity_only_still_finds_the_confirmed_clothes_and_the_other_outfit(table, tmp_path):
    """The weight of clothes is that of the query: in a confirmed image clothes are known to be the person's."""
    others = np.random.default_rng(1).standard_normal((40, 2, WIDTH))
    # Twenty people of the first person's identity embedding in clothes of their own, and twenty in that person's clothes.
    others[:20, 0], others[20:, 1] = table[0, :WIDTH] * 4, table[0, WIDTH:] * 4
    others += 0.35 * np.random.default_rng(2).standard_normal(others.shape)
    found = finder(tmp_path, np.concatenate([table, unit(others).reshape(-1, 2 * WIDTH)]))
    asked = found.query(Wanted(confirmed=[1, 2], rejected=[23]), 0.0)
    marks = {result.image.id - 1: result.marks for result in found.search(asked, len(found.snapshot))}
    first, second, same_identity, same_clothes = (
        np.mean([marks[row] for row in rows])
        for rows in (range(2, 10), range(10, 20), range(1530, 1550), range(1550, 1570))
    )
    assert first > same_identity + 1 and min(same_identity, second) > same_clothes + 1


def test_a_rejected_image_takes_only_its_like_along(table, tmp_path):
    found = finder(tmp_path, table)
    before, after = order(found), order(found, rejected=[23])
    others = [[row for row in ranking if row >= 30][:100] for ranking in (before, after)]
    assert len({*others[0]} & {*others[1]}) >= 95
    places = [np.mean([ranking.index(row) for row in range(20, 30)]) for ranking in (before, after)]
    assert places[1] > places[0]


def test_the_parts_are_the_score_and_the_engines_agree(table, tmp_path):
    pytest.importorskip("faiss")
    rankings = []
    for engine in ("exact", "faiss"):
        found = finder(tmp_path / engine, table, engine)
        asked = found.query(Wanted(images=[1], confirmed=[2, 13], rejected=[23]), BETA)
        results = found.search(asked, 20)
        for result in results:
            assert result.score == pytest.approx(result.identity + BETA * result.clothing + result.marks, abs=1e-5)
        assert max(result.marks for result in results) > 3 and results[0].share is None
        rankings.append([result.image.id for result in results])
    assert rankings[0] == rankings[1]


def test_a_confirmed_image_comes_first_and_marks_without_a_query_suffice(table, tmp_path):
    found = finder(tmp_path, table)
    assert order(found, confirmed=[13])[0] == 12
    asked = found.query(Wanted(confirmed=[13, 14], rejected=[1]), BETA)
    results = found.search(asked, 10)
    assert all(11 <= result.image.id <= 20 for result in results)
    ids = [result.image.id for result in found.search(asked, 10)]
    assert ids == [result.image.id for result in results]
