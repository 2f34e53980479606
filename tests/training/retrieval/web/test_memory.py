"""Memory of a server that answers many requests: nothing is kept for each of them, and freed blocks go back to the system."""

from __future__ import annotations

import ctypes
import gc
import io
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from starlette.testclient import TestClient

from tests.support import ROOT
from tests.support.retrieval.galleries import COLOURS
from training.retrieval.finder import Finder
from training.retrieval.gallery_writer import open_writer
from training.retrieval.web import search_service
from training.retrieval.web.guard import MOST_CLIENTS, Guard
from training.retrieval.web.kept_bytes import KeptBytes

# Searches of 32 threads that each make arrays of up to 13 MB; prints whether the setting exists, and the bytes that the C library
# keeps for itself at the end: 105 MB by its own setting (two cores), 6 MB with that of the server.
MANY_SEARCHES = """
import ctypes, sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tests.support.retrieval.galleries import ColourEmbedder, clustered, fill
from training.retrieval.finder import Finder
from training.retrieval.web.parameters import Search
from training.retrieval.web.search_service import Service
from training.utils.machine import return_freed_memory

class Info(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in "arena a b c d e f used free keep".split()]

library = ctypes.CDLL(None)
library.mallinfo2.restype = Info
returned = sys.argv[2] == "returned" and return_freed_memory()
service = Service(Finder(fill(Path(sys.argv[1]), clustered(100_000, 16)), ColourEmbedder()))
with ThreadPoolExecutor(32) as pool:
    list(pool.map(lambda i: service.search(Search(f"red {i}", 0.5), "me"), range(400)))
print(returned, library.mallinfo2().free)
"""


def glibc() -> bool:
    return hasattr(ctypes.CDLL(None), "mallinfo2") if sys.platform == "linux" else False


@pytest.mark.skipif(not glibc(), reason="the C library is not glibc 2.33 or later")
def test_the_c_library_returns_what_searches_have_freed(tmp_path):
    words = [sys.executable, "-c", MANY_SEARCHES, str(tmp_path / "g"), "returned"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    returned, free = done.stdout.split()
    assert returned == "True" and int(free) < 20e6


def kept() -> tuple[int, int]:
    """Containers, and blocks of memory of all objects, numbers and texts too."""
    gc.collect()
    return len(gc.get_objects()), sys.getallocatedblocks()


def jpeg(seed: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (seed % 256, seed // 256 % 256, 90)).save(buffer, "JPEG")
    return buffer.getvalue()


def ask(client: TestClient, number: int) -> None:
    """Every kind of request, as no other number asks it."""
    text = f"{list(COLOURS)[number % 4]} {number}"
    assert client.get("/api/search", params={"q": text, "beta": number / 1000, "k": 3}).status_code == 200
    assert client.get("/results", params={"q": text, "case": "one", "refine": "1"}).status_code == 200
    assert client.get("/", params={"q": text}, headers={"cookie": f"session={number}"}).status_code == 200
    assert client.post("/mark", json={"case": "one", "id": 1 + number % 9, "mark": "confirmed"}).status_code == 200
    key = client.post("/query-image", content=jpeg(number)).json()["upload"]
    assert client.get("/api/search", params={"upload": key}).status_code == 200
    assert client.get(f"/image/{1 + number % 60}").status_code == 200
    assert client.get(f"/case/one?as={'csv' if number % 2 else 'html'}").status_code == 200
    assert client.get(f"/nowhere/{number}").status_code == 404
    assert client.get("/api/search", params={"q": text, "k": f"x{number}"}).status_code == 400
    for path in ("/job", "/metrics", "/healthz", "/api"):
        assert client.get(path).status_code == 200


def test_no_object_is_kept_for_a_request(finder, tmp_path, make_client, monkeypatch):
    # Small, so that what may be kept is, after a few requests.
    monkeypatch.setattr(search_service, "KEPT_TEXTS", 16)
    monkeypatch.setattr(search_service, "KEPT_UPLOADS", 8)
    client = make_client(finder, audit=tmp_path / "audit.jsonl", rate=1e9)
    for number in range(80):
        ask(client, number)
    containers, blocks = kept()
    for number in range(80, 240):
        ask(client, number)
    more = kept()
    # One for each request would be 2,240.
    assert more[0] - containers < 500 and more[1] - blocks < 1000


def test_clients_are_remembered_up_to_a_number():
    guard = Guard(lambda *_: None, "", 5.0)  # type: ignore[arg-type, return-value]
    for number in range(3 * MOST_CLIENTS):
        assert guard._has_turn(f"2001:db8::{number:x}")
    assert len(guard.clients) == MOST_CLIENTS and "2001:db8::0" not in guard.clients


def maker(made: list[str], key: str, size: int) -> Callable[[], bytes]:
    return lambda: (made.append(key), bytes(size))[1]


def test_kept_bytes_have_a_bound_and_the_latest_stay():
    values, made = KeptBytes(100), list[str]()
    for key in ("a", "b", "a", "c", "a"):
        assert values.get(key, maker(made, key, 40)) == bytes(40)
    # "b" made room for "c", since "a" was asked for again.
    assert made == ["a", "b", "c"] and (values.size, len(values)) == (80, 2)
    values.get("b", maker(made, "b", 40))
    assert made[-1] == "b" and values.size == 80
    # Too large to be kept: nothing is, and it is made each time.
    for _ in range(2):
        assert len(values.get("huge", maker(made, "huge", 101)) or b"") == 101
    assert made[-2:] == ["huge", "huge"] and values.size == 0
    assert values.get("none", lambda: None) is None and len(values) == 0


def test_large_images_are_kept_by_their_bytes(finder, make_client, monkeypatch):
    monkeypatch.setattr(search_service, "KEPT_THUMBNAILS", 20_000)
    client = make_client(finder)
    service = client.app.state.service
    seen = sum(len(client.get(f"/image/{i}?large={i % 2}").content) for i in range(1, 61))
    assert seen > 20_000 >= service._thumbnails.size > 15_000


def test_a_removed_image_is_not_shown_from_memory(finder: Finder, client: TestClient, tmp_path: Path):
    assert client.get("/image/5").status_code == 200
    with open_writer(finder.gallery) as writer:
        writer.remove([5])
    assert client.get("/image/5").status_code == 404 and client.get("/image/6").status_code == 200
