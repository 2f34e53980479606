"""Engines of servers: connections, the index of pgvector, and images that come and go while they are not asked."""

from __future__ import annotations

import dataclasses
import os
import shutil
import sqlite3
from typing import Any

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
from training.retrieval.store import DATABASE, About, Gallery


def connect(name: EngineName, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> type[Any]:
    """Makes finders of this engine use one server; returns the engine's class."""
    if name == "pgvector":
        monkeypatch.setenv("PGVECTOR_URL", request.getfixturevalue("location"))
        return PgvectorEngine
    client = pytest.importorskip("qdrant_client").QdrantClient(":memory:")
    monkeypatch.setattr("qdrant_client.QdrantClient", lambda *_, **__: client)
    return QdrantEngine


def watch(kind: type[Any], monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Ids that engines of this class are given from now on."""
    sent: list[int] = []
    add = kind.add

    def watched(engine: Any, ids_N: np.ndarray, *rest: Any) -> None:
        sent.extend(ids_N[ids_N >= 0].tolist())
        add(engine, ids_N, *rest)

    monkeypatch.setattr(kind, "add", watched)
    return sent


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
    kind = connect(name, monkeypatch, request)
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
    sent = watch(kind, monkeypatch)
    again = Finder(gallery, ColourEmbedder(), name)
    assert sent == [21, 22]
    assert {result.image.id for result in again.search(query(0.5), 30)} == {*range(1, 23)} - {3, 4}
    assert len(other.search(query(0.5), 30)) == 30


@pytest.mark.parametrize("has_checksums", [True, False])
@pytest.mark.parametrize("name", ["pgvector", "qdrant"])
def test_a_server_follows_what_changes_of_an_image(name: EngineName, has_checksums, tmp_path, monkeypatch, request):
    """Metadata, between two starts and while it runs, and everything in a gallery that is made again in the same place."""
    kind = connect(name, monkeypatch, request)
    gallery, gate = fill(tmp_path / "g", clustered(30, E)), Filter({"camera": ("gate",)})
    if not has_checksums:
        with sqlite3.connect(gallery.folder / DATABASE) as connection:
            connection.execute("UPDATE images SET crc = NULL")
    Finder(gallery, ColourEmbedder(), name)
    sent = watch(kind, monkeypatch)
    change(gallery, 2, camera="gate")
    finder = Finder(gallery, ColourEmbedder(), name)
    assert sent == [2] and ids(finder, gate) == [2]
    change(gallery, 5, camera="gate", time=7.5)
    assert finder.refresh() and sent == [2, 5] and sorted(ids(finder, gate)) == [2, 5]
    assert ids(finder, Filter({"camera": ("gate",)}, start=7)) == [5]
    shutil.rmtree(gallery.folder)
    again = fill(tmp_path / "g", clustered(30, E, seed=7))
    finder = Finder(again, ColourEmbedder(), name)
    assert sent == [2, 5, *range(1, 31)] and not ids(finder, gate)
    assert ids(finder, Filter(), 5) == ids(Finder(again, ColourEmbedder()), Filter(), 5)


def test_a_table_of_an_earlier_version_is_completed(location, monkeypatch):
    psycopg = pytest.importorskip("psycopg")
    table = clustered(3, E)
    with psycopg.connect(location) as connection:
        columns = (
            f"id bigint PRIMARY KEY, embedding vector({2 * E}) NOT NULL, time double precision, facts jsonb NOT NULL"
        )
        connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
        connection.execute(f"CREATE TABLE earlier ({columns})")
        connection.execute("INSERT INTO earlier VALUES (10, %s::vector, NULL, '{}')", [str(table[2].tolist())])
    engine = PgvectorEngine(2 * E, location, "earlier")
    assert [part.tolist() for part in engine.held()] == [[10], [-1]]
    engine.add(np.arange(10, 13), table, metadata(3), np.array([4, 5, 2**32 - 1]))
    assert sorted(zip(*map(np.ndarray.tolist, engine.held()), strict=True)) == [(10, 4), (11, 5), (12, 2**32 - 1)]
    assert found(engine, table, query(0.5), 3, Filter()) == expected(table, query(0.5), np.ones(3, bool), 3)


@pytest.mark.parametrize("name", ["faiss", "pgvector", "qdrant"])
def test_filters_find_what_they_find_in_the_exact_engine(name: EngineName, tmp_path, monkeypatch, request):
    pytest.importorskip("faiss") if name == "faiss" else connect(name, monkeypatch, request)
    gallery = Gallery.create(tmp_path / "g", About("a" * 64, E, 2, 0.5, "x"))
    names = ["cam.id", "a[0]", "a[]", "site id", 'say "so"', "a-b", "ü", "time", "crc", "camera.x"]
    # The second has no column but the camera, the third no camera but columns with another value.
    facts: list[dict[str, Any]] = [
        {"camera": "c1", "more": dict.fromkeys(names, "x")},
        {"camera": "c2"},
        {"more": dict.fromkeys(names, "y")},
    ]
    rows = [dataclasses.replace(image_row(f"{i}.jpg"), **values) for i, values in enumerate(facts)]
    with open_writer(gallery) as writer:
        writer.add(rows, clustered(3, E))
    finder, exact = Finder(gallery, ColourEmbedder(), name), Finder(gallery, ColourEmbedder())
    for column in ["camera", *names]:
        values = ("c1", "c2") if column == "camera" else ("x", "y")
        for accepted in ((values[0],), ("",), (values[1], ""), values, ("z",), ()):
            where = Filter({column: accepted})
            assert ids(finder, where) == ids(exact, where), where
    assert not ids(finder, Filter({"none": ("",)})) and not ids(exact, Filter({"none": ("",)}))
    # A column that is newer than most images.
    with open_writer(gallery) as writer:
        writer.add([image_row("3.jpg", lens="wide")], clustered(1, E, seed=3))
    assert finder.refresh() and exact.refresh()
    assert ids(finder, Filter({"lens": ("",)})) == ids(exact, Filter({"lens": ("",)})) != []


def ids(finder: Finder, where: Filter, k: int = 30) -> list[int]:
    """Ids of the results of a query, best first."""
    return [result.image.id for result in finder.search(query(0.5), k, where)]


def change(gallery: Gallery, image: int, **facts: Any) -> None:
    """Gives an image other facts."""
    with open_writer(gallery) as writer:
        writer.update_metadata(dataclasses.replace(gallery.rows([image])[0], **facts))


def test_pgvector_needs_a_location(tmp_path, monkeypatch):
    monkeypatch.delenv("PGVECTOR_URL", raising=False)
    with pytest.raises(ValueError, match="the engine pgvector needs PGVECTOR_URL, as postgresql://USER@HOST/DATABASE"):
        Finder(fill(tmp_path / "g", clustered(3, E)), ColourEmbedder(), "pgvector")
