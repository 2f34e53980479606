"""Bounds on what arrives at a server: too many or too slow images, zips that come too soon or were left by a killed server."""

from __future__ import annotations

import asyncio
import os
import time
from typing import Any

from tests.training.retrieval.web.test_uploads import png
from training.retrieval.web import uploads


def test_a_zip_is_refused_before_it_is_received(client, tmp_path):
    client.app.state.service.uploads.job = uploads.Job("first.zip")
    received = asyncio.run(_post(client.app, "/add"))
    assert received == (409, 0) and not list((tmp_path / "g").glob(".upload-*"))


def test_images_that_are_received_at_a_time_are_bounded(client, monkeypatch):
    monkeypatch.setattr(uploads, "MOST_RECEIVED", 1)
    state = client.app.state.service.uploads
    with state.receive_image():
        response = client.post("/query-image", content=png())
        assert response.status_code == 503 and "1 images are being received already" in response.json()["error"]
    # A refused, a broken and a whole image each leave the place free again.
    assert client.post("/query-image", content=b"no image").status_code == 400
    assert client.post("/query-image", content=png()).status_code == 200


def test_an_image_that_stops_half_way_gives_its_place_up(client, monkeypatch):
    monkeypatch.setattr(uploads, "IMAGE_SECONDS", 0.05)
    monkeypatch.setattr(uploads, "MOST_RECEIVED", 1)
    assert asyncio.run(asyncio.wait_for(_post(client.app, "/query-image", stops=True), 20)) == (408, 2)
    monkeypatch.setattr(uploads, "IMAGE_SECONDS", 30.0)
    assert client.post("/query-image", content=png()).status_code == 200


def test_zips_of_a_killed_server_are_deleted_at_the_next_start(finder, make_client):
    folder = finder.gallery.folder
    old, new = folder / ".upload-old", folder / ".upload-new"
    for path, age in ((old, 4000), (new, 60)):
        path.write_bytes(b"PK")
        os.utime(path, (time.time() - age,) * 2)
    make_client(finder, read_only=True)
    assert old.exists()
    make_client(finder)
    assert not old.exists() and new.exists()


async def _post(app: Any, path: str, stops: bool = False) -> tuple[int, int]:
    """Status of a request, and how many parts of its body the server asked for. stops: the first is not the last, and no
    other comes."""
    asked, statuses = 0, []

    async def receive() -> dict[str, Any]:
        nonlocal asked
        asked += 1
        if asked > 1:
            await asyncio.Event().wait()
        return {"type": "http.request", "body": b"x", "more_body": stops}

    async def send(message: dict[str, Any]) -> None:
        statuses.append(message.get("status"))

    headers = [(b"host", b"localhost"), (b"origin", b"http://localhost")]
    scope = {
        "type": "http",
        "method": "POST",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": headers,
    }
    await app(scope | {"scheme": "http", "server": ("localhost", 80), "client": ("127.0.0.1", 1)}, receive, send)
    return statuses[0], asked
