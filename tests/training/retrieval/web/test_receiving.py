"""Bounds on what arrives at a server: too many or too slow images, zips that come too soon or were left by a killed server."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

from tests.support import ROOT, contents
from tests.training.retrieval.web.test_uploads import png, wait_for_job, zipped
from training.retrieval.web import uploads


def test_a_zip_is_refused_before_it_is_received(client, tmp_path):
    client.app.state.service.uploads.job = uploads.Job("first.zip")
    received = asyncio.run(_post(client.app, "/add"))
    assert received == (503, 0) and not (tmp_path / "g/uploads").exists()


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


def test_a_zip_that_stops_half_way_gives_its_place_up(client, monkeypatch, tmp_path):
    monkeypatch.setattr(uploads, "ZIP_SILENCE", 0.05)
    assert asyncio.run(asyncio.wait_for(_post(client.app, "/add", stops=True), 20)) == (408, 2)
    assert not [*(tmp_path / "g/uploads").glob("*")] and client.get("/job").json()["job"] is None
    monkeypatch.setattr(uploads, "ZIP_SILENCE", 30.0)
    assert client.post("/add", content=b"no zip").status_code == 202


def test_a_full_disk_while_a_zip_arrives_is_said(client, tmp_path, monkeypatch):
    def fails(path: Path, *_: Any) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("training.retrieval.web.pages.open", fails, raising=False)
    response = client.post("/add", content=b"PK")
    assert response.status_code == 507 and "the zip cannot be stored: No space left on" in response.json()["error"]
    assert client.get("/job").json()["job"] is None and not [*(tmp_path / "g/uploads").glob("*")]


# A server that embeds 32 images and then waits.
WAITS = """
import sys, time
import uvicorn
from tests.support.retrieval.galleries import ColourEmbedder
from training.retrieval.finder import Finder
from training.retrieval.store import Gallery
from training.retrieval.web.app import build_app

class Waits(ColourEmbedder):
    def embed_images(self, pixels_N3HW):
        if self.embedded:
            print("waits", flush=True)
            time.sleep(600)
        return super().embed_images(pixels_N3HW)

app = build_app(Finder(Gallery(sys.argv[1]), Waits()))
uvicorn.run(app, fd=int(sys.argv[2]), log_level="warning")
"""


def test_what_a_killed_server_was_adding_is_deleted_at_the_next_start(finder, make_client):
    folder = finder.gallery.folder / "uploads"
    with socket.create_server(("127.0.0.1", 0)) as listener:
        number = listener.fileno()
        words = [sys.executable, "-c", WAITS, str(finder.gallery.folder), str(number)]
        with subprocess.Popen(words, cwd=ROOT, pass_fds=[number], stdout=subprocess.PIPE) as server:
            address = f"http://127.0.0.1:{listener.getsockname()[1]}/add"
            content = zipped({f"{i:02}/x.png": png(colour=(i, 0, 0)) for i in range(40)})
            request = urllib.request.Request(address, content, {"Origin": address[:-4]})
            assert urllib.request.urlopen(request, timeout=60).status == 202
            assert server.stdout is not None and server.stdout.readline() == b"waits\n"
            # Not while it lives, nor by a server that only searches.
            make_client(finder)
            server.kill()
    make_client(finder, read_only=True)
    assert len(contents(folder)) == 42
    client = make_client(finder)
    kept = contents(folder)
    assert [Path(name).parts[1:] for name in kept] == [(f"{i:02}", "x.png") for i in range(32)]
    assert len([*folder.rglob("*")]) == 1 + 2 * 32 and client.get("/healthz").json() == {"images": 60}
    # What it had added is in the gallery, and the rest can be sent again.
    assert client.post("/add", content=content).status_code == 202
    job = wait_for_job(client)
    assert job["added"] == 40 and client.get("/healthz").json() == {"images": 132}


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
