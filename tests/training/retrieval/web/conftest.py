"""A finder of 60 images by a model of colours, and a client of its page."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

from starlette.testclient import TestClient

from tests.support.retrieval.galleries import HERE, HOSTILE, ColourEmbedder, paint
from training.retrieval.finder import Finder
from training.retrieval.image_names import read_metadata
from training.retrieval.ingest import add_images, image_paths, open_or_create
from training.retrieval.web.app import build_app


@pytest.fixture
def finder(tmp_path: Path) -> Finder:
    """60 images of four cameras, at a second each; one with markup in its names and metadata."""
    photos, embedder = tmp_path / "photos", ColourEmbedder()
    names = [f"{i:02}.png" for i in range(59)] + ["<b>&.png"]
    paint(photos, names)
    table = tmp_path / "facts.csv"
    with open(table, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "camera", "time", "note"])
        writer.writerows([name, f"c{i % 4}", 1000 * i, "=1+1"] for i, name in enumerate(names[:-1]))
        writer.writerow([names[-1], HOSTILE, 5, HOSTILE])
    gallery = open_or_create(tmp_path / "g", embedder)
    add_images(gallery, image_paths(photos), embedder, root=photos, metadata=read_metadata(table))
    return Finder(gallery, embedder)


@pytest.fixture
def make_client() -> Callable[..., TestClient]:
    """Makes a client of a finder's page with options of `build_app`."""

    def make(finder: Finder, **options: Any) -> TestClient:
        return TestClient(build_app(finder, **options), base_url=HERE)

    return make


@pytest.fixture
def client(finder: Finder, make_client: Callable[..., TestClient]) -> TestClient:
    return make_client(finder)
