"""Engines of servers: connections, the index of pgvector, and images that come and go while they are not asked."""

from __future__ import annotations

import os

import numpy as np
import pytest

from tests.support.retrieval import postgres
from tests.support.retrieval.galleries import ColourEmbedder, clustered, fill, image_row
from tests.support.retrieval.scans import E, expected, found, metadata, query
from training.retrieval.engines import pgvector_engine
from training.retrieval.engines.engine import Filter
from training.retrieval.engines.pgvector_engine import PgvectorEngine
from training.retrieval.engines.qdrant_engine import QdrantEngine
from training.retrieval.finder import EngineName, Finder
from training.retrieval.gallery_writer import open_writer


def test_a_qdrant_server_that_does_not_answer():
    pytest.importorskip("qdrant_client")
    with pytest.raises(RuntimeError, match="Qdrant at http://127.0.0.1:9 does not answer"):
        QdrantEngine(E, "http://127.0.0.1:9", "people")


@pytest.mark.skipif("QDRANT_URL" not in os.environ, reason="QDRANT_URL names no server")
def test_a_qdrant_server():
    table = clustered(300, E)
    engine = QdrantEngine(2 * E, os.environ["QDRANT_URL"], "bdam-test")
    try:
        engine.add(np.arange(10, 310), table, metadata(300))
        assert found(engine, table, query(0.5), 5, Filter()) == expected(table, query(0.5), np.ones(300, bool), 5)
    finally:
        engine.client.delete_collection("bdam-test")


def test_a_large_table_is_searched_through_its_index(location, monkeypatch):
    monkeypatch.setattr(pgvector_engine, "INDEX_FROM", 3000)
    table, asked = clustered(3000, E), query(0.5)
    engine = PgvectorEngine(2 * E, location, "large")
    engine.add(np.arange(10, 3010), table, metadata(3000))
    everything = np.ones(3000, bool)
    right = [
        found(engine, table, query(0.5, i), 10, Filter()) == expected(table, query(0.5, i), everything, 10)
        for i in range(9)
    ]
    assert engine.has_index and np.mean(right) > 0.6
    # What the index alone would miss: a rare value, and more results than it can give.
    rare = Filter({"camera": ("c2",)}, start=2700)
    kept = metadata(3000).matches(rare, np.arange(3000))
    assert found(engine, table, asked, 10, rare) == expected(table, asked, kept, 10)
    assert len(engine.search(asked.vector(2), 1500, Filter())) == 3000
    assert PgvectorEngine(2 * E, location, "large").has_index


def test_a_lost_connection_is_made_anew_and_an_error_is_one_sentence(location):
    engine = PgvectorEngine(2 * E, location, "people")
    engine.add(np.arange(3), clustered(3, E), metadata(3))
    engine.connection.close()
    assert engine.count() == 3
    with pytest.raises(RuntimeError, match=r"^PostgreSQL refuses: different vector dimensions 32 and 16$"):
        engine.search(np.zeros(E, np.float32), 1, Filter())
    assert engine.count() == 3
    with pytest.raises(RuntimeError, match="PostgreSQL refuses: connection"):
        PgvectorEngine(2 * E, "postgresql://user:secret@127.0.0.1:9/x", "people")


def test_a_server_without_the_extension():
    pytest.importorskip("psycopg")
    programs = postgres.of_the_machine()
    if programs is None:
        pytest.skip("no PostgreSQL without pgvector is installed")
    with postgres.server(programs) as place:
        with pytest.raises(RuntimeError, match="PostgreSQL has no extension `vector`; install pgvector on the server"):
            PgvectorEngine(2 * E, place, "people")


@pytest.mark.parametrize("name", ["pgvector", "qdrant"])
def test_a_server_keeps_its_images_and_follows_the_gallery(name: EngineName, tmp_path, monkeypatch, request):
    """Images that came and went while it was not asked; no image is sent twice; galleries of one name are apart."""
    if name == "pgvector":
        monkeypatch.setenv("PGVECTOR_URL", request.getfixturevalue("location"))
        kind = PgvectorEngine
    else:
        client = pytest.importorskip("qdrant_client").QdrantClient(":memory:")
        monkeypatch.setattr("qdrant_client.QdrantClient", lambda *_, **__: client)
        kind = QdrantEngine
    table = clustered(30, E)
    gallery = fill(tmp_path / "a/g", table[:20])
    other = Finder(fill(tmp_path / "b/g", table), ColourEmbedder(), name)
    finder = Finder(gallery, ColourEmbedder(), name)
    assert [result.image.id for result in finder.search(query(0.5), 30)] == [
        result.image.id for result in Finder(gallery, ColourEmbedder()).search(query(0.5), 30)
    ]
    with open_writer(gallery) as writer:
        writer.remove([3, 4])
        writer.add([image_row(f"{i}.jpg") for i in (20, 21)], table[20:22])
    sent, add = [], kind.add
    monkeypatch.setattr(kind, "add", lambda self, ids, *rest: (sent.extend(ids[ids >= 0]), add(self, ids, *rest))[1])
    again = Finder(gallery, ColourEmbedder(), name)
    assert sent == [21, 22]
    assert {result.image.id for result in again.search(query(0.5), 30)} == {*range(1, 23)} - {3, 4}
    assert len(other.search(query(0.5), 30)) == 30


def test_pgvector_needs_a_location(tmp_path, monkeypatch):
    monkeypatch.delenv("PGVECTOR_URL", raising=False)
    with pytest.raises(ValueError, match="the engine pgvector needs PGVECTOR_URL, as postgresql://USER@HOST/DATABASE"):
        Finder(fill(tmp_path / "g", clustered(3, E)), ColourEmbedder(), "pgvector")
