"""Pages of results: every result once, whatever the search and its page size, and an honest end."""

from __future__ import annotations

import html
import re

import pytest
from starlette.datastructures import QueryParams

from training.retrieval import finder as finders
from training.retrieval.web import parameters, search_service
from training.retrieval.web.parameters import Search, read_search

LINK = re.compile(r'hx-get="(/results\?[^"]+)" hx-trigger="revealed')


def ids(text: str) -> list[int]:
    return [int(i) for i in re.findall(r'data-id="(\d+)"', text)]


@pytest.fixture
def most_results(monkeypatch):
    """The largest number of results, 50 for a test."""
    for module in (finders, parameters, search_service):
        monkeypatch.setattr(module, "MOST_RESULTS", 50)
    return 50


FULL = Search(
    "a red coat & <b>",
    0.1234567891,
    ("c1", "c 2"),
    "10",
    "2026-05-01T12:00",
    -0.1234567891,
    True,
    7,
    "time",
    3,
    "key",
    "my case",
    True,
    2,
    100,
)


@pytest.mark.parametrize("asked", [FULL, Search(beta=0.5), Search("red", 1e6, k=1), Search("red", 1e-7, least=2.0)])
def test_a_search_is_the_same_after_its_address(asked):
    assert read_search(QueryParams(asked.url()), 0.5) == asked
    assert read_search(QueryParams(asked.url(page=3)), 0.5).k == asked.k


@pytest.mark.parametrize(
    "query",
    ["q=red", "q=red&k=7", "q=red&k=59", "q=red&k=60", "q=red&k=9&camera=c1&camera=c2", "q=red&k=11&order=time"]
    + ["like=3&k=25&weak=1", "q=red&k=8&beta=0.1234567891", "q=red&k=3&beta=0&from=10000&to=40000"],
)
def test_the_page_shows_every_result_once(query, client):
    whole = client.get(f"/api/search?{re.sub('&k=[0-9]+', '', query)}&k=1000").json()["results"]
    text, seen = client.get(f"/?{query}").text, []
    while True:
        seen += ids(text)
        if (link := LINK.search(text)) is None:
            break
        text = client.get(html.unescape(link[1])).text
    assert seen == [result["id"] for result in whole]


@pytest.mark.parametrize("k", [1, 7, 10, 24, 25, 49, 50, 51, 1000])
def test_pages_end_where_results_do(k, client, most_results):
    found, page = [], 1
    while True:
        answer = client.get("/api/search", params={"q": "red", "k": k, "page": page})
        assert answer.status_code == 200
        found += [result["id"] for result in answer.json()["results"]]
        if not answer.json()["more"]:
            break
        page += 1
    assert len(found) == len({*found}) == most_results and page == -(-most_results // k)
    response = client.get("/api/search", params={"q": "red", "k": k, "page": page + 1})
    error = f"page must be at most {page} for {k} results a page: 50 can be seen"
    assert response.status_code == 400 and response.json() == {"error": error}


@pytest.mark.parametrize(("most", "cut"), [(59, True), (60, False), (61, False)])
def test_results_by_time_that_are_left_out_are_named(most, cut, client, monkeypatch):
    monkeypatch.setattr(search_service, "SORTED", most)
    best = [result["id"] for result in client.get("/api/search?q=red&k=1000").json()["results"]][:most]
    answer = client.get("/api/search?q=red&order=time&k=1000").json()
    assert sorted(result["id"] for result in answer["results"]) == sorted(best) and not answer["more"]
    assert answer["notes"] == [f"of the results only the {most} best are shown by time"] * cut
    assert (f"only the {most} best" in client.get("/?q=red&order=time").text) is cut
    # A filter or a least score that leaves fewer leaves none out.
    assert client.get("/api/search?q=red&order=time&camera=c1").json()["notes"] == []
    assert client.get("/api/search?q=red&order=time&least=9").json()["notes"] == []
    assert client.get("/api/search?q=red").json()["notes"] == []


@pytest.mark.parametrize("digits", ["9" * 5000, "0" * 20 + "9" * 5000, "0" * 20 + "9" * 30, str(2**63)])
@pytest.mark.parametrize("name", ["k", "page", "like", "rerank"])
def test_numbers_without_bound_are_refused(digits, name, client):
    response = client.get(f"/api/search?q=red&{name}={digits}")
    assert response.status_code == 400 and f"{name} must be a whole number from" in response.json()["error"]


def test_zeros_before_a_number_count_nothing(client):
    plain, padded = (client.get(f"/api/search?q=red&k={zeros}5").json() for zeros in ("", "0" * 5000))
    assert plain == padded and len(plain["results"]) == 5


@pytest.mark.parametrize("number", ["9" * 5000, str(2**63), str(2**62), "0" * 4999 + "999", "-1", "1.0", "x", "\u0661"])
def test_an_image_that_no_gallery_has_is_not_found(number, client):
    response = client.get(f"/image/{number}")
    assert response.status_code == 404 and "there is no such image" in response.json()["error"]
