"""Cases, and images that come over the network: marks, uploaded query images, zips and their bounds."""

from __future__ import annotations

import csv
import io
import json
import re
import time
import zipfile
from pathlib import Path

import pytest
from PIL import Image
from starlette.testclient import TestClient

from tests.support import contents
from training.retrieval.cases import MOST_NAME_BYTES
from training.retrieval.finder import Finder
from training.retrieval.store import Gallery
from training.retrieval.web import uploads


def zipped(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in files.items():
            file.writestr(name, content)
    return buffer.getvalue()


def png(width: int = 8, height: int = 16, colour: tuple[int, int, int] = (200, 30, 30)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(buffer, "PNG")
    return buffer.getvalue()


def wait_for_job(client: TestClient) -> dict:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        job = client.get("/job").json()["job"]
        if job and job["finished"]:
            return job
        time.sleep(0.02)
    raise TimeoutError


def test_a_case_keeps_marks_and_searches_by_them(finder, client, tmp_path, make_client):
    found = [r["id"] for r in client.get("/api/search?q=red&k=10").json()["results"]]
    for image, mark in ((found[0], "confirmed"), (found[1], "rejected"), (found[2], "confirmed"), (found[2], "")):
        response = client.post("/mark", json={"case": "Tuesday 5", "id": image, "mark": mark})
    assert response.json() == {"case": "Tuesday 5", "marks": {str(found[0]): "confirmed", str(found[1]): "rejected"}}
    again = [r["id"] for r in client.get("/api/search?q=red&k=10&case=Tuesday+5").json()["results"]]
    assert found[1] not in again and again[:2] == [found[0], found[2]]
    assert re.search(rf'class="card confirmed" data-id="{found[0]}"', client.get("/results?q=red&case=Tuesday+5").text)
    refined = client.get("/api/search?k=10&case=Tuesday+5&refine=1").json()["results"]
    assert refined[0]["id"] == found[0] and found[1] not in [r["id"] for r in refined]
    page = client.get("/case/Tuesday 5").text
    assert "1 confirmed, 1 rejected" in page and 'class="timeline"' in page and f"/image/{found[0]}" in page
    rows = list(csv.DictReader(io.StringIO(client.get("/case/Tuesday 5?as=csv").text)))
    assert [row["mark"] for row in rows] == ["confirmed", "rejected"] and rows[0]["path"].endswith(".png")
    sheet = client.get("/case/Tuesday 5?as=html")
    assert sheet.text.count("data:image/jpeg") == 2 and "attachment" in sheet.headers["content-disposition"]
    assert make_client(Finder(Gallery(tmp_path / "g"), finder.embedder)).get("/case/Tuesday 5").text == page
    assert "Tuesday 5</a>" in client.get("/").text


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({"case": "x", "id": 9999, "mark": "confirmed"}, "the gallery has no image 9999"),
        ({"case": "x", "id": 2**63, "mark": "confirmed"}, "the gallery has no image 9223372036854775808"),
        ({"case": "x", "id": "1", "mark": "confirmed"}, "id must be a whole number, case and mark texts"),
        ({"case": "x", "id": "\ud83d", "mark": "confirmed"}, "id must be a whole number, case and mark texts"),
        ({"case": None, "id": 1, "mark": "confirmed"}, "id must be a whole number, case and mark texts"),
        ({"case": "x", "id": 1, "mark": None}, "id must be a whole number, case and mark texts"),
        ({"case": "\ud83d", "id": 1, "mark": "confirmed"}, "a case has a name of letters"),
        ({"case": "\U0001d49c" * 60, "id": 1, "mark": "confirmed"}, "at most 236 bytes of UTF-8, got 240"),
        ({"case": "../x", "id": 1, "mark": "confirmed"}, "a case has a name of letters"),
        ({"case": "", "id": 1, "mark": "confirmed"}, "a case has a name of letters"),
        ({"case": "x", "id": 1, "mark": "guilty"}, "mark must be confirmed, rejected or empty, got 'guilty'"),
        ([], "the request must be a JSON object"),
        ({"case": "x" * 20_000}, "the request is too long"),
    ],
)
def test_a_mark_that_cannot_be_is_refused(body, text, client, tmp_path):
    response = client.post("/mark", content=json.dumps(body))
    assert response.status_code == 400 and text in response.json()["error"]
    assert not (tmp_path / "g/cases").exists()


@pytest.mark.parametrize("content", [b"[" * 9000, b'{"id":' * 1600, b'{"id":' + b"9" * 5000 + b"}", b"\xff", b""])
def test_a_mark_that_is_no_json_is_refused(content, client):
    response = client.post("/mark", content=content)
    assert response.status_code == 400 and response.json() == {"error": "the request must be a JSON object"}


@pytest.mark.parametrize("letter", ["a", "\u6f22", "\U0001d49c"])
def test_the_longest_name_of_a_case(letter, client):
    name = letter * min(60, MOST_NAME_BYTES // len(letter.encode()))
    assert client.post("/mark", json={"case": name, "id": 1, "mark": "confirmed"}).status_code == 200
    assert f"{name}</a>" in client.get("/").text and "1 confirmed" in client.get(f"/case/{name}").text
    for path in (f"/case/{letter * 300}", f"/api/search?q=red&case={letter * 300}"):
        assert client.get(path).status_code == 400


def test_a_case_that_holds_nothing(client):
    assert "this case holds no image yet" in client.get("/case/none").json()["error"]
    assert client.get("/case/..%5cx").status_code == 400


def test_a_disk_that_is_full_is_said(client, monkeypatch):
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    response = client.post("/mark", json={"case": "x", "id": 1, "mark": "confirmed"})
    error = response.json()["error"]
    assert response.status_code == 507 and "the case cannot be written" in error and "make room" in error


def test_a_server_that_only_searches(finder, tmp_path, make_client):
    client, before = make_client(finder, read_only=True), contents(tmp_path)
    for path in ("/mark", "/add"):
        response = client.post(path, content=b"{}")
        assert response.status_code == 403 and "this server only searches" in response.json()["error"]
    assert "Add images" not in client.get("/").text and contents(tmp_path) == before


def test_an_uploaded_image_is_a_query_and_is_not_kept(client, finder, tmp_path):
    before = contents(tmp_path)
    content = Path(finder.gallery.rows([5])[0].path).read_bytes()
    key = client.post("/query-image", content=content).json()["upload"]
    found = client.get("/api/search", params={"upload": key, "k": 3}).json()["results"]
    assert found[0]["id"] == 5 and found[0]["score"] == pytest.approx(1.5, abs=1e-5)
    both = client.get("/api/search", params={"upload": key, "q": "blue", "k": 3}).json()["results"]
    assert both[0]["score"] < 1.5 and contents(tmp_path) == before


@pytest.mark.parametrize(
    ("content", "status", "text"),
    [
        (b"not an image", 400, "this file is not an image that can be read"),
        (png(8000, 8000), 400, "an image may have 50 million pixels, got 8000 x 8000"),
        (b"x" * (uploads.MOST_IMAGE_BYTES + 1), 413, "an image may have 32 MiB"),
    ],
)
def test_an_upload_that_is_no_fit_image_is_refused(content, status, text, client):
    response = client.post("/query-image", content=content)
    assert response.status_code == status and text in response.json()["error"]


def test_a_zip_is_added_and_can_be_searched(client, finder, tmp_path):
    bad = {"../../evil.png": png(), "/etc/x.png": png(9), ".hidden.png": png(), "notes.txt": b"x", "broken.jpg": b"x"}
    files = {"cam_z/a.png": png(colour=(205, 35, 35)), **bad, "bomb.png": png(8000, 8000), "cam_z/<i>.png": png()}
    assert client.post("/add", params={"name": "walk.zip"}, content=zipped(files)).status_code == 202
    job = wait_for_job(client)
    assert job["error"] == "" and job["added"] == 3 and job["name"] == "walk.zip"
    reasons = dict(job["left_out"])
    assert set(reasons) == {"../../evil.png", ".hidden.png", "notes.txt", "broken.jpg", "bomb.png"}
    assert "50 million pixels" in reasons["bomb.png"] and "not the name of an image" in reasons["../../evil.png"]
    folder = next((tmp_path / "g/uploads").iterdir())
    found = client.get("/api/search?q=red&camera=z").json()["results"]
    assert len(found) == 2 and client.get("/healthz").json() == {"images": 63}
    assert contents(folder).keys() == {"_/etc/x.png", "cam_z/_i_.png", "cam_z/a.png"}


@pytest.mark.parametrize(
    ("names", "out"),
    [
        (["x.png", "x.png/y.png"], ["x.png/y.png"]),
        (["x.png/y.png", "x.png"], ["x.png"]),
        (["x.png", "x.png/a/b/y.png"], ["x.png/a/b/y.png"]),
        (["x.png", "d/../x.png", "./x.png", "x.png/"], ["d/../x.png", "./x.png"]),
        (["<.png", ">.png"], [">.png"]),
        (["\u6f22" * 79 + ".png", "\u6f22" * 80 + ".png"], ["\u6f22" * 80 + ".png"]),
        (["\u6f22" * 86 + "/x.png"], ["\u6f22" * 86 + "/x.png"]),
    ],
)
def test_an_entry_whose_name_no_file_can_have_is_left_out(names, out, client):
    images = {name: png(colour=(10 * i, 0, 0)) for i, name in enumerate(names)}
    assert client.post("/add", content=zipped({**images, "last.png": png(9)})).status_code == 202
    job = wait_for_job(client)
    assert job["error"] == "" and job["added"] == 1 + sum(not name.endswith("/") for name in names) - len(out)
    assert [name for name, _ in job["left_out"]] == out and all(reason for _, reason in job["left_out"])


def test_zips_that_are_none_or_too_large(client, monkeypatch, tmp_path):
    monkeypatch.setattr(uploads, "MOST_FILES", 2)
    monkeypatch.setattr(uploads, "MOST_UNPACKED_BYTES", 2**20)
    monkeypatch.setattr(uploads, "MOST_IMAGE_BYTES", 2**16)
    cases = {
        "this file is not a zip archive": b"no zip",
        "a zip may hold 2 files, got 3": zipped({f"{i}.png": png() for i in range(3)}),
        "when unpacked": zipped({"bomb.png": b"\0" * 2**21}),
        "the zip holds no image that can be read": zipped({"a.txt": b"x"}),
    }
    for text, content in cases.items():
        assert client.post("/add", content=content).status_code == 202
        job = wait_for_job(client)
        assert text in job["error"] and job["added"] == 0
    assert client.post("/add", content=zipped({"bomb.png": b"\0" * 2**17})).status_code == 202
    assert "an image may have 0 MiB" in wait_for_job(client)["left_out"][0][1]
    monkeypatch.setattr("training.retrieval.web.pages.MOST_BYTES", 100)
    response = client.post("/add", content=b"x" * 101)
    assert response.status_code == 413 and "a zip may have 0 GiB" in response.json()["error"]
    assert not [*(tmp_path / "g/uploads").glob("*")] and client.get("/healthz").json() == {"images": 60}


def damaged(kind: str) -> bytes:
    """A zip of a whole image and one whose entry cannot be read."""
    buffer = io.BytesIO()
    method = {"bzip2": zipfile.ZIP_BZIP2, "lzma": zipfile.ZIP_LZMA}.get(kind, zipfile.ZIP_DEFLATED)
    with zipfile.ZipFile(buffer, "w", method) as file:
        file.writestr("bad.png", png())
        file.writestr("good.png", png(9))
    raw = bytearray(buffer.getvalue())
    start, end = raw.index(b"bad.png") + len(b"bad.png"), raw.index(b"PK\x03\x04", 4)
    if kind == "cut":
        # A size of zero: the stream ends before its first byte.
        directory = raw.index(b"PK\x01\x02")
        raw[directory + 20 : directory + 24] = bytes(4)
    elif kind == "encrypted":
        directory = raw.index(b"PK\x01\x02")
        raw[6] |= 1
        raw[directory + 8] |= 1
    elif kind == "checksum":
        raw[14] ^= 1
        raw[raw.index(b"PK\x01\x02") + 16] ^= 1
    else:
        raw[start:end] = bytes([255]) * (end - start)
    return bytes(raw)


@pytest.mark.parametrize("kind", ["deflate", "bzip2", "lzma", "cut", "encrypted", "checksum"])
def test_a_damaged_entry_is_left_out_with_its_reason(kind, client):
    assert client.post("/add", content=damaged(kind)).status_code == 202
    job = wait_for_job(client)
    assert job["error"] == "" and job["added"] == 1
    assert [(name, bool(reason)) for name, reason in job["left_out"]] == [("bad.png", True)]


def test_a_full_disk_ends_the_job_and_is_not_the_fault_of_an_image(client, monkeypatch, tmp_path):
    full = OSError(28, "No space left on device")
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(full))
    assert client.post("/add", content=zipped({"a.png": png(), "b.png": png(9)})).status_code == 202
    job = wait_for_job(client)
    assert "cannot be written: No space left on device; the disk of" in job["error"] and job["left_out"] == []
    assert job["added"] == 0 and not [*(tmp_path / "g/uploads").glob("*")]


@pytest.mark.parametrize("error", [KeyError("camera"), EOFError(), RuntimeError("the model gives nothing")])
def test_whatever_ends_the_job_is_said_and_what_was_added_stays(error, client, finder, monkeypatch, capfd, tmp_path):
    embed, calls = finder.embedder.embed_images, []

    def fails_later(pixels_N3HW):
        calls.append(len(pixels_N3HW))
        if len(calls) > 1:
            raise error
        return embed(pixels_N3HW)

    monkeypatch.setattr(finder.embedder, "embed_images", fails_later)
    files = {f"{i:02}.png": png(colour=(i, 0, 0)) for i in range(40)}
    assert client.post("/add", content=zipped(files)).status_code == 202
    job = wait_for_job(client)
    assert job["error"] == uploads.reason_of(error) != "" and calls == [32, 8] and job["added"] == 32
    kept = sorted(path.name for path in (tmp_path / "g/uploads").rglob("*.png"))
    assert kept == sorted(files)[:32] and client.get("/healthz").json() == {"images": 92}
    assert ("Traceback" in capfd.readouterr().err) == (not isinstance(error, RuntimeError))


def test_one_upload_at_a_time(client):
    job = uploads.Job("first.zip")
    client.app.state.service.uploads.job = job
    response = client.post("/add", content=zipped({"a.png": png()}))
    assert response.status_code == 503 and "another zip is being received; try again" in response.json()["error"]
    job.stage = "embedding"
    assert "another zip is being added; try again" in client.post("/add", content=b"x").json()["error"]
    job.finished = True
    assert client.post("/add", content=zipped({"a.png": png()})).status_code == 202
    assert wait_for_job(client)["added"] == 1
