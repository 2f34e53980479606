"""Finders of the engine faiss while their gallery changes."""

from __future__ import annotations

import dataclasses
import threading
from pathlib import Path

import pytest

from tests.support.retrieval.galleries import ColourEmbedder, clustered, fill, image_row
from tests.support.retrieval.scans import E, query
from training.retrieval import finder as finder_module
from training.retrieval.engines.engine import Filter
from training.retrieval.engines.faiss_engine import FaissEngine
from training.retrieval.finder import Finder
from training.retrieval.gallery_writer import open_writer
from training.retrieval.store import Gallery

pytest.importorskip("faiss")


def test_a_search_while_images_are_taken_over(tmp_path, monkeypatch):
    """Between the engine, which has them already, and the snapshot, which has them not yet."""
    gallery = fill(tmp_path / "g", clustered(300, E))
    finder = Finder(gallery, ColourEmbedder(), "faiss")
    before = [result.image.id for result in finder.search(query(0.5), 400)]
    with open_writer(gallery) as writer:
        writer.add([image_row(f"n{i}.jpg") for i in range(100)], clustered(100, E, seed=5))
    added, go_on, add = threading.Event(), threading.Event(), FaissEngine.add

    def pausing(*arguments) -> None:
        add(*arguments)
        added.set()
        go_on.wait(60)

    monkeypatch.setattr(FaissEngine, "add", pausing)
    refreshing = threading.Thread(target=finder.refresh)
    refreshing.start()
    try:
        assert added.wait(60)
        assert [result.image.id for result in finder.search(query(0.5), 400)] == before
    finally:
        go_on.set()
        refreshing.join()
    assert len(finder.search(query(0.5), 400)) == 400


@pytest.mark.parametrize("gone", [[], [1, 2], [300]])
def test_a_finder_takes_over_changed_metadata(gone, tmp_path):
    """Also where images are gone, and as many as there were positions of the table."""
    gallery = fill(tmp_path / "g", clustered(300, E))
    finder = Finder(gallery, ColourEmbedder(), "faiss")
    with open_writer(gallery) as writer:
        writer.update_metadata(dataclasses.replace(gallery.rows([7])[0], camera="gate", more={"lens": "wide"}))
        writer.remove(gone)
    wanted = [
        Filter({"camera": ("gate",)}),
        Filter({"lens": ("wide",)}),
        Filter({"camera": ("c2",)}),
        Filter(start=100),
    ]
    for images in (0, 3):
        with open_writer(gallery) as writer:
            writer.add([image_row(f"n{i}.jpg", camera="gate") for i in range(images)], clustered(images, E, seed=5))
        assert finder.refresh()
        exact = Finder(Gallery(tmp_path / "g"), ColourEmbedder())
        for where in wanted:
            found = [[result.image.id for result in f.search(query(0.5), 300, where)] for f in (finder, exact)]
            assert found[0] == found[1] and found[0]


def test_a_gallery_that_is_emptied(tmp_path):
    gallery = fill(tmp_path / "g", clustered(3, E))
    finder = Finder(gallery, ColourEmbedder(), "faiss")
    with open_writer(gallery) as writer:
        writer.remove([1, 2, 3])
    assert finder.refresh() and not finder.search(query(0.5), 3, Filter({"camera": ("c1",)}))


def test_an_index_is_not_saved_while_another_process_writes(tmp_path, monkeypatch):
    """At its end the writer removes files like those that the index is written to."""
    monkeypatch.setattr(finder_module, "SAVED_FROM", 10)
    gallery = fill(tmp_path / "g", clustered(40, E))
    path = gallery.folder / "faiss-0.index"
    with open_writer(gallery):
        Finder(gallery, ColourEmbedder(), "faiss")
    assert not path.exists()
    refused, save = [], FaissEngine.save

    def saving(engine: FaissEngine, place: Path) -> None:
        try:
            with open_writer(gallery):
                pass
        except RuntimeError as error:
            refused.append(str(error))
        save(engine, place)

    monkeypatch.setattr(FaissEngine, "save", saving)
    Finder(gallery, ColourEmbedder(), "faiss")
    assert path.exists() and "is in use by" in refused[0] and not (gallery.folder / ".lock").exists()
    # Not again.
    Finder(gallery, ColourEmbedder(), "faiss")
    assert len(refused) == 1
