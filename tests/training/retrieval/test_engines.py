"""Engines against a full scan in float64, and exact scores against the evaluation's."""

from __future__ import annotations

import numpy as np
import pytest

from tests.support.retrieval.galleries import clustered, unit
from tests.support.retrieval.scans import E, expected, found, metadata, query
from training.evaluation.similarity import Similarity
from training.retrieval.engines import faiss_engine
from training.retrieval.engines.engine import Engine, Filter, Metadata
from training.retrieval.engines.exact import ExactEngine
from training.retrieval.engines.faiss_engine import FaissEngine
from training.retrieval.engines.pgvector_engine import PgvectorEngine
from training.retrieval.engines.qdrant_engine import QdrantEngine
from training.retrieval.scoring import combined, exact_scores
from training.utils.io import read_record

BETAS = [0.0, 0.5, 3.0, 1e6]
ENGINES = ["exact", "faiss", "faiss cells", "qdrant", "pgvector"]


def build(name: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Engine:
    if name == "exact":
        return ExactEngine(2 * E)
    if name == "pgvector":
        return PgvectorEngine(2 * E, request.getfixturevalue("location"), "all images")
    pytest.importorskip("qdrant_client" if name == "qdrant" else "faiss")
    if name == "qdrant":
        return QdrantEngine(2 * E, ":memory:", "people")
    monkeypatch.setattr(faiss_engine, "SCANNED", 1000)
    if name == "faiss cells":
        # Few of the images, as in a large gallery.
        monkeypatch.setattr(faiss_engine, "LEAST_CANDIDATES", 256)
    return FaissEngine(2 * E, 4000 if name == "faiss cells" else 10)


FILTERS = {
    "none": Filter(),
    "camera": Filter({"camera": ("c1", "c3")}),
    "unknown camera": Filter({"camera": ("",)}),
    "time": Filter(start=100, end=900),
    "camera and time": Filter({"camera": ("c2",)}, start=3000.5),
    "without": Filter(without=frozenset(range(10, 600))),
    "nothing": Filter({"lens": ("wide",)}),
}


@pytest.mark.parametrize("name", ENGINES)
def test_engine_finds_what_a_full_scan_finds(name, monkeypatch, request):
    table, count = clustered(4000 if name != "qdrant" else 600, E), 4000 if name != "qdrant" else 600
    engine = build(name, monkeypatch, request)
    half = count // 2
    engine.add(np.arange(10, 10 + half), table[:half], metadata(half))
    ids = np.arange(10 + half, 10 + count)
    ids[5] = -1
    engine.add(ids, table[half:], metadata(half, half))
    engine.delete(np.array([12, 13, 99_999_999]))
    alive = np.ones(count, bool)
    alive[[2, 3, half + 5]] = False
    assert engine.count() == alive.sum()
    everything, right = metadata(count), []
    for where in FILTERS.values():
        kept = alive & everything.matches(where, np.arange(10, 10 + count))
        for beta in BETAS:
            asked = query(beta)
            got, wanted = found(engine, table, asked, 10, where), expected(table, asked, kept, 10)
            assert len(got) == len(wanted) and kept[got].all()
            right.append(len({*got} & {*wanted}) / max(1, len(wanted)) if wanted else 1.0)
            if name == "exact":
                assert got == wanted
    assert np.mean(right) >= (1 if name != "faiss cells" else 0.97)
    engine.close()


@pytest.mark.parametrize("k", [1, 3, 7, 64, 5000])
def test_ties_come_in_the_order_of_the_gallery(k):
    rng = np.random.default_rng(0)
    base = clustered(40, E)
    table = base[rng.integers(0, 40, 3000)]
    engine = ExactEngine(2 * E)
    engine.add(np.arange(10, 3010), table, Metadata(np.zeros(3000)))
    for beta in BETAS:
        asked = query(beta)
        assert found(engine, table, asked, k, Filter()) == expected(table, asked, np.ones(3000, bool), k)


@pytest.mark.parametrize("beta", BETAS)
def test_scores_have_the_bits_of_the_evaluation(beta):
    table, asked = clustered(500, E), query(beta)
    score, identity, clothing, _ = vars(exact_scores(table, asked)).values()
    similarity = Similarity(asked.identity_E[None], table[:, :E], table[:, E:])
    assert np.array_equal(score, similarity.matrix(beta)[0].numpy())
    assert np.array_equal(identity, similarity.matrix(0.0)[0].numpy())
    assert np.array_equal(clothing, similarity.matrix(float("inf"))[0].numpy())
    # Equal whatever stands beside it.
    assert exact_scores(table[7:8], asked).score_M[0] == score[7]


def test_a_model_without_clothing_has_one_part():
    table, asked = clustered(20, E)[:, :E], query(0.0)
    score, identity, clothing, _ = vars(exact_scores(table, asked)).values()
    assert np.array_equal(score, identity) and not clothing.any() and np.array_equal(asked.vector(1), asked.identity_E)
    with pytest.raises(
        ValueError, match="beta 0.5 weighs clothing, but the model of this gallery has no clothing branch"
    ):
        query(0.5).vector(1)


@pytest.mark.parametrize("beta", [-0.1, float("nan"), float("inf"), 1e7])
def test_bad_beta(beta):
    with pytest.raises(ValueError, match="beta must be a number from 0 to 1e.06"):
        query(beta)


def test_combined_queries():
    a, b = unit(np.eye(E)[0]), unit(np.eye(E)[1])
    np.testing.assert_allclose(combined([a, b], [3, 4])[:2], [0.6, 0.8], rtol=1e-6)
    for weights, text in (([1], "expected 2 finite weights"), ([1, float("nan")], "expected 2 finite weights")):
        with pytest.raises(ValueError, match=text):
            combined([a, b], weights)
    with pytest.raises(ValueError, match="cancel each other out"):
        combined([a, a], [1, -1])


def test_metadata_of_parts_with_different_columns():
    first = Metadata(np.array([1.0]), {"camera": np.array([1])}, {"camera": ["", "a"]})
    second = Metadata(np.array([2.0]), {"lens": np.array([1])}, {"lens": ["", "wide"]})
    both = first.extended(second)
    assert [both.row(0), both.row(1)] == [{"camera": "a"}, {"lens": "wide"}]
    assert both.matches(Filter({"lens": ("wide",)}), np.arange(2)).tolist() == [False, True]


def test_a_saved_index_is_completed(tmp_path, monkeypatch, request):
    table = clustered(4000, E)
    engine = build("faiss cells", monkeypatch, request)
    assert isinstance(engine, FaissEngine)
    engine.add(np.arange(10, 3010), table[:3000], metadata(3000))
    engine.save(tmp_path / "index")
    again = build("faiss cells", monkeypatch, request)
    assert isinstance(again, FaissEngine) and again.load(tmp_path / "index", 4000)
    again.add(np.arange(10, 4010), table, metadata(4000))
    assert again.index.ntotal == again.flat.ntotal == again.count() == 4000
    assert found(again, table, query(0.5), 5, Filter()) == expected(table, query(0.5), np.ones(4000, bool), 5)
    assert not again.load(tmp_path / "index", 2999) and not FaissEngine(E).load(tmp_path / "index", 4000)
    measured = read_record(tmp_path / "index.json", faiss_engine.CellSearch)
    assert measured == engine.measured == again.measured and 0.99 <= min(measured.recall, measured.recall_alone)
    assert (measured.images, measured.cells) == (3000, 256) and 4 <= measured.probes <= measured.probes_alone < 256
    # Of an earlier version, and of a gallery that has grown: it is measured again.
    (tmp_path / "index.json").unlink()
    for images in (3000, 9000):
        older = build("faiss cells", monkeypatch, request)
        assert isinstance(older, FaissEngine) and older.load(tmp_path / "index", images) and older.measured is None
        older.add(np.arange(10, 3010), table[:3000], metadata(3000))
        assert older.measured == measured
        older.save(tmp_path / "index")
    (tmp_path / "index").write_bytes(b"damaged")
    assert not again.load(tmp_path / "index", 4000) and not again.load(tmp_path / "none", 4000)


def test_saved_codes_are_completed_and_are_none_for_cells(tmp_path, monkeypatch, request):
    table = clustered(4000, E)
    engine, again, cells = (build(name, monkeypatch, request) for name in ("faiss", "faiss", "faiss cells"))
    assert isinstance(engine, FaissEngine) and isinstance(again, FaissEngine) and isinstance(cells, FaissEngine)
    engine.add(np.arange(10, 3010), table[:3000], metadata(3000))
    engine.save(tmp_path / "index")
    assert (
        again.load(tmp_path / "index", 4000)
        and not again.is_outgrown(4000)
        and not cells.load(tmp_path / "index", 4000)
    )
    again.add(np.arange(10, 4010), table, metadata(4000))
    assert found(again, table, query(0.5), 5, Filter()) == expected(table, query(0.5), np.ones(4000, bool), 5)


def test_codes_of_few_images_are_outgrown():
    pytest.importorskip("faiss")
    table, engine = clustered(40, E), FaissEngine(2 * E)
    engine.add(np.arange(10, 20), table[:10], Metadata(np.zeros(10)))
    assert not engine.is_outgrown(20) and engine.is_outgrown(21)
    engine.close()
    assert engine.count() == 0 and not len(engine.search(query(0.5).vector(2), 5, Filter()))


def test_the_cells_that_a_query_needs_follow_the_weight_of_clothes():
    pytest.importorskip("faiss")
    engine = FaissEngine(2 * E, 10**6, E)
    engine.measured = faiss_engine.CellSearch(10**6, 4096, 100, 500, 0.995, 0.995)
    needed = [round(engine._needed(query(beta).vector(2))) for beta in (0.0, 0.5, 1.0, 2.0, 1e6)]
    assert needed == [500, 300, 100, 300, 500] and FaissEngine(E, 10**6).cells == engine.cells == 4096


def test_engines_that_are_not_installed_are_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "faiss", None)
    monkeypatch.setitem(__import__("sys").modules, "qdrant_client", None)
    monkeypatch.setitem(__import__("sys").modules, "psycopg", None)
    with pytest.raises(RuntimeError, match="the engine faiss needs faiss-cpu"):
        FaissEngine(E)
    with pytest.raises(RuntimeError, match="the engine qdrant needs qdrant-client"):
        QdrantEngine(E, ":memory:", "x")
    with pytest.raises(RuntimeError, match="the engine pgvector needs psycopg"):
        PgvectorEngine(E, "", "x")
