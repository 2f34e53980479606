"""Page and API against the finder: results, filters, pages, markup, hostile requests."""

from __future__ import annotations

import io
import json
import re
import socket
import sys

import pytest
import torch
import uvicorn
from PIL import Image
from starlette.testclient import TestClient
from threadpoolctl import ThreadpoolController, threadpool_limits

from tests.support.retrieval.galleries import HERE, HOSTILE
from training import serve
from training.evaluation.calibration import Calibration, Curve
from training.retrieval.embedders import TorchEmbedder
from training.retrieval.finder import Wanted
from training.retrieval.store import Gallery
from training.retrieval.web.app import build_app, choose_token
from training.utils import cli, machine


def ids(html: str) -> list[int]:
    return [int(i) for i in re.findall(r'data-id="(\d+)"', html)]


def test_api_gives_what_the_finder_finds(client, finder):
    answer = client.get("/api/search", params={"q": "red", "k": 7, "beta": 2}).json()
    expected = finder.search(finder.query(Wanted([("red", 1.0)]), 2.0), 7)
    assert [(r["id"], r["score"], r["path"]) for r in answer["results"]] == [
        (r.image.id, r.score, r.image.path) for r in expected
    ]
    assert answer["more"] and answer["notes"] == []
    assert all(r["score"] == pytest.approx(r["identity"] + 2 * r["clothing"], abs=1e-6) for r in answer["results"])
    default = client.get("/api/search", params={"q": "red", "k": 7}).json()["results"]
    assert [r["id"] for r in default] == [
        r.image.id for r in finder.search(finder.query(Wanted([("red", 1.0)]), 0.5), 7)
    ]
    assert client.get("/api/search?q=red+qux").json()["notes"] == ["words that the model has not learned: qux"]


def test_api_describes_what_it_takes_and_gives(client):
    described = client.get("/api").json()["paths"]["/api/search"]["get"]
    result = described["responses"]["200"]["content"]["application/json"]["schema"]["properties"]["results"]["items"]
    found = client.get("/api/search?q=red").json()["results"][0]
    assert set(found) == set(result["properties"])
    values = {"q": "red", "k": "3", "page": "2", "beta": "1", "camera": "c1", "from": "0", "to": "9999999"}
    values |= {"least": "-9", "order": "time", "like": "3", "case": "x", "refine": "1", "weak": "1", "rerank": "0"}
    assert {parameter["name"] for parameter in described["parameters"]} == set(values)
    assert client.get("/api/search", params=values).status_code == 200


def test_filters_threshold_order_and_pages(client):
    def found(**values) -> list[dict]:
        return client.get("/api/search", params={"q": "red", "k": 60, **values}).json()["results"]

    everything = found()
    assert len(everything) == 60
    assert {r["camera"] for r in found(camera=["c1", "c2"])} == {"c1", "c2"} and len(found(camera=["c1"])) == 15
    assert [r["time"] for r in found(**{"from": "10000", "to": "12000"}, order="time")] == [10000, 11000, 12000]
    limit = everything[9]["score"]
    assert [r["id"] for r in found(least=limit)] == [r["id"] for r in everything if r["score"] >= limit]
    pages = [ids(client.get("/results", params={"q": "red", "page": page}).text) for page in (1, 2, 3)]
    assert [i for page in pages for i in page] == [r["id"] for r in everything] and [*map(len, pages)] == [24, 24, 12]
    assert "page=2" in client.get("/results?q=red").text and "page=4" not in client.get("/results?q=red&page=3").text


def test_page_holds_the_results_of_its_address(client):
    text = client.get("/", params={"q": "red", "camera": "c2", "beta": "1.5"}).text
    assert ids(text) == ids(client.get("/results", params={"q": "red", "camera": "c2", "beta": "1.5"}).text)
    assert 'value="red"' in text and 'value="c2" checked' in text and 'value="1.5"' in text
    assert "60</span> images" in text and "Describe a person" in client.get("/").text
    response = client.get("/results?q=red&camera=c2")
    assert response.headers["hx-replace-url"] == "/?q=red&beta=0.5&camera=c2"
    none = client.get("/results?q=red&least=9").text
    assert "Nothing good found." in none and "Show the best ones anyway" in none
    assert "No image fits the filters" in client.get("/results?q=red&camera=none").text


def test_nothing_good_is_said_and_shares_are_shown(finder, make_client):
    score = finder.search(finder.query(Wanted([("red", 1.0)]), 0.5), 1)[0].score
    for least, good in ((score / 1.5 - 0.01, True), (score / 1.5 + 0.01, False)):
        curve = Curve(0.5, [-1.0, 1.0], [0.0, 0.5], least, 0.1)
        finder.embedder.calibration = Calibration(finder.embedder.about.model, 9, 4.0, 56.0, [curve])
        client = make_client(finder)
        answer = client.get("/api/search?q=red").json()
        assert answer["nothing_good"] is not good and bool(answer["results"]) is good
        page = client.get("/?q=red").text
        assert ("Nothing good found." in page) is not good
        if not good:
            assert "&amp;weak=1" in page and len(ids(client.get("/?q=red&weak=1").text)) == 24
        shown = client.get("/api/search?q=red&weak=1").json()["results"][0]["share"]
        assert shown == pytest.approx((score / 1.5 + 1) / 4)
        assert f"{100 * shown:.0f} %" in client.get("/?q=red&weak=1").text
        # Of images, and of words that the model does not know.
        for other in ("like=3", "q=red+qux"):
            assert client.get(f"/api/search?{other}").json()["results"][0]["share"] is None
        assert client.get("/api/search?q=red&least=-9").json()["nothing_good"] is False


@pytest.mark.parametrize("path", ["/?q=red", "/results?q=red", "/case/mine", "/?q=%3Cscript%3E", "/nowhere"])
def test_no_markup_of_others_gets_through(path, client):
    last = client.get("/api/search?q=red&k=60").json()["results"]
    hostile = next(r["id"] for r in last if r["camera"] == HOSTILE)
    client.post("/mark", json={"case": "mine", "id": hostile, "mark": "confirmed"})
    response = client.get(path, headers={"accept": "text/html"})
    assert HOSTILE not in response.text and "<script>" not in response.text.replace('<script src="/static', "")
    # No style or script within the page: the policy forbids them, so they would not work either.
    assert not re.search(r"\sstyle=|\son\w+=|<style|javascript:", response.text.replace(" onerror=", " "))
    policy = response.headers["content-security-policy"]
    assert policy.startswith("default-src 'self'") and response.headers["x-content-type-options"] == "nosniff"
    assert set(re.findall(r'(?:src|href)="(https?:)?//', response.text)) == set()


BAD = {
    "beta=-1": "beta must be a number from 0",
    "beta=nan": "beta must be a finite number, got 'nan'",
    "beta=x": "beta must be a finite number, got 'x'",
    "beta=1e99": "beta must be a number from 0",
    "k=0": "k must be a whole number from 1 to 1000",
    "k=%D9%A3": "k must be a whole number",
    "k=" + "9" * 60: "k must be a whole number",
    "page=201": "page must be a whole number from 1 to 200",
    "like=999": "the gallery has no image 999",
    "like=../1": "like must be a whole number",
    "order=up": "order must be one of score, time",
    "least=inf": "least must be a finite number",
    "rerank=201": "rerank must be a whole number from 0 to 200",
    "rerank=2": "re-ranking needs a model with a fusion",
    "from=soon": "from: time must be seconds or ISO 8601",
    "upload=x": "the uploaded image is not kept any more",
    "case=../x": "a case has a name of letters",
    "case=" + "y" * 61: "a case has a name of letters",
}


@pytest.mark.parametrize("query", BAD)
def test_a_bad_parameter_is_a_400_that_names_it(query, client):
    q = "&q=red"
    response = client.get(f"/api/search?{query}{q}")
    assert response.status_code == 400 and BAD[query] in response.json()["error"]
    page = client.get(f"/?{query}{q}")
    assert page.status_code == 400 and 'role="alert"' in page.text
    assert 'role="alert"' in client.get(f"/results?{query}{q}", headers={"hx-request": "true"}).text


def test_queries_without_end(client):
    assert client.get("/api/search").json() == {"error": "a query needs a text or an image"}
    assert "TEXT has 3000 characters" in client.get("/api/search", params={"q": "x" * 3000}).json()["error"]
    response = client.get("/api/search", params={"q": "x" * 10_000})
    assert response.status_code == 414 and client.get("/healthz").json() == {"images": 60}


def test_images_are_named_by_number_only(client, tmp_path):
    response = client.get("/image/1")
    assert response.headers["content-type"] == "image/jpeg" and Image.open(io.BytesIO(response.content)).size == (8, 16)
    (tmp_path / "photos/01.png").write_text("<script>alert(1)</script>")
    for path in (
        "/image/2",
        "/image/99999",
        "/image/..%2f..%2fetc%2fpasswd",
        "/image/x",
        "/static/../app.py",
        "/image/-1",
    ):
        assert client.get(path).status_code == 404
    assert "there is no such image" in client.get("/image/2").json()["error"]
    assert client.get("/static/app.css").status_code == 200


def test_requests_of_other_sites_are_refused(finder, client):
    assert TestClient(build_app(finder), base_url="http://evil.example").get("/").status_code == 400
    body = json.dumps({"case": "x", "id": 1, "mark": "confirmed"})
    for headers in ({"origin": "http://evil.example"}, {"origin": "null"}, {"sec-fetch-site": "cross-site"}):
        response = client.post("/mark", content=body, headers=headers)
        assert response.status_code == 403 and "requests of other sites are refused" in response.text
    assert client.post("/mark", content=body, headers={"origin": HERE}).status_code == 200


def test_a_token_is_needed_where_one_is_set(finder, make_client):
    token = "s3cret-" + "x" * 20
    client = make_client(finder, token=token)
    for path in ("/", "/api/search?q=red", "/image/1", "/static/app.css", "/metrics", "/?token=wrong"):
        response = client.get(path)
        assert response.status_code == 401 and "this server needs its token" in response.text
    assert client.get("/healthz").status_code == 200
    assert client.get("/api/search?q=red", headers={"authorization": f"Bearer {token}"}).status_code == 200
    response = client.get(f"/?token={token}", follow_redirects=False)
    assert response.status_code == 303 and response.headers["location"] == "/"
    assert "HttpOnly" in response.headers["set-cookie"] and "SameSite=strict" in response.headers["set-cookie"]
    assert client.get("/?q=red").status_code == 200


def test_a_token_is_chosen_where_other_machines_can_reach_the_server():
    assert choose_token("127.0.0.1", "") == choose_token("localhost", "") == choose_token("::1", "") == ""
    assert len(choose_token("0.0.0.0", "")) > 20 and choose_token("0.0.0.0", "") != choose_token("0.0.0.0", "")
    assert len(choose_token("gallery.example", "")) > 20 and choose_token("127.0.0.1", "y" * 16) == "y" * 16
    with pytest.raises(ValueError, match="--token must have at least 16 characters, got 3"):
        choose_token("0.0.0.0", "abc")


def test_a_client_that_asks_too_often_waits(finder, make_client):
    client = make_client(finder, rate=2.0)
    statuses = [client.get("/healthz").status_code for _ in range(12)]
    assert statuses[:8] == [200] * 8 and 429 in statuses
    response = next(r for r in (client.get("/healthz") for _ in range(20)) if r.status_code == 429)
    assert "too many requests" in response.text and response.headers["retry-after"] == "1"


def test_searches_are_counted_and_audited_when_asked(finder, tmp_path, make_client):
    client = make_client(finder, audit=tmp_path / "audit.jsonl")
    client.get("/api/search?q=red&camera=c1")
    client.get("/results?q=blue")
    lines = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()]
    assert [(line["who"], line["what"], line["results"]) for line in lines] == [
        ("testclient", "q=red&beta=0.5&camera=c1", 15),
        ("testclient", "q=blue&beta=0.5", 24),
    ]
    text = client.get("/metrics").text
    assert "gallery_images 60\n" in text and "search_seconds_count 2\n" in text
    assert 'search_seconds_bucket{le="+Inf"} 2\n' in text


def test_a_text_is_read_once_for_all_its_pages_filters_and_weights(finder, monkeypatch, make_client):
    embed, texts = finder.embedder.embed_texts, []
    monkeypatch.setattr(finder.embedder, "embed_texts", lambda some: (texts.extend(some), embed(some))[1])
    client = make_client(finder)
    for values in ({}, {"page": 2}, {"camera": "c1"}, {"beta": 2}, {"like": 3}):
        assert client.get("/api/search", params={"q": "red coat", **values}).json()["notes"] == [
            "words that the model has not learned: coat"
        ]
    assert texts == ["red coat"]
    assert client.get("/api/search?q=blue").json()["notes"] == [] and texts == ["red coat", "blue"]


def test_a_call_has_one_thread_and_freed_memory_is_returned(trained, tmp_path, monkeypatch):
    Gallery.create(tmp_path / "g", TorchEmbedder(trained).about)
    threads, returned = [], []
    monkeypatch.setattr(machine, "return_freed_memory", lambda: returned.append(True))

    def serve_nothing(server: uvicorn.Server, sockets: list[socket.socket]) -> None:
        threads.extend(
            [
                torch.get_num_threads(),
                *(pool["num_threads"] for pool in ThreadpoolController().select(user_api="blas").info()),
            ]
        )
        sockets[0].close()

    monkeypatch.setattr(uvicorn.Server, "run", serve_nothing)
    before = torch.get_num_threads()
    with threadpool_limits(2, user_api="blas"):
        torch.set_num_threads(2)
        try:
            serve.main(["--gallery", str(tmp_path / "g"), "--run", str(trained), "--port", "0", "--device", "cpu"])
        finally:
            torch.set_num_threads(before)
    assert len(threads) >= 2 and set(threads) == {1} and returned == [True]


def test_an_error_of_the_server_is_a_page(finder, monkeypatch):
    client = TestClient(build_app(finder), base_url=HERE, raise_server_exceptions=False)
    monkeypatch.setattr(finder, "search", lambda *_: 1 / 0)
    response = client.get("/?q=red", headers={"accept": "text/html"})
    assert response.status_code == 500 and "something went wrong in the server" in response.text


def test_the_command_refuses_what_it_cannot_serve(finder, tmp_path, capsys, monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        words = ["--gallery", str(tmp_path / "g"), "--run", str(tmp_path), "--port", str(taken.getsockname()[1])]
        assert cli.run(serve.main, words) == 2
    assert "cannot listen on 127.0.0.1" in capsys.readouterr().err
    assert cli.run(serve.main, ["--gallery", str(tmp_path / "none"), "--run", str(tmp_path), "--port", "0"]) == 2
    assert "is no gallery" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert cli.run(serve.main, ["--gallery", str(tmp_path / "g"), "--run", str(tmp_path)]) == 2
    assert "the page needs starlette, uvicorn and threadpoolctl" in capsys.readouterr().err
