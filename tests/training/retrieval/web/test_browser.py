"""The page in headless Chromium, driven as a user drives it; no request leaves the machine."""

from __future__ import annotations

import socket
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.retrieval.browser import Browser, executable
from tests.support.retrieval.galleries import ColourEmbedder, paint
from training.retrieval.finder import Finder
from training.retrieval.ingest import add_images, image_paths, open_or_create

uvicorn = pytest.importorskip("uvicorn")
pytest.importorskip("starlette")
if executable() is None:
    pytest.skip("there is no chromium", allow_module_level=True)

CARDS = "document.querySelectorAll('#results .card').length"
FIRST = "document.querySelector('#results .card')?.dataset.id"


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    """Address of a server of 60 images of two cameras."""
    from training.retrieval.web.app import build_app

    paint(tmp_path / "photos", [f"cam_{'ab'[i % 2]}/{i:02}.png" for i in range(60)])
    embedder = ColourEmbedder()
    gallery = open_or_create(tmp_path / "g", embedder)
    add_images(gallery, image_paths(tmp_path / "photos"), embedder)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(64)
        server = uvicorn.Server(uvicorn.Config(build_app(Finder(gallery, embedder)), log_level="warning"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        thread.join(10)


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    with Browser(tmp_path / "profile") as made:
        yield made


def test_a_user_searches_marks_and_adds(address, browser, tmp_path):
    browser.open(address)
    assert "Describe a person" in browser.run("document.body.innerText")
    # Search as one types; the field has the focus.
    browser.run("document.getElementById('q').focus()")
    browser.type("red")
    browser.wait(f"{CARDS} >= 24 && location.search.includes('q=red')")
    assert browser.run("document.title") == "red"
    first = browser.run(FIRST)
    assert browser.run("document.querySelector('#results img').alt").startswith("Result 1, score ")
    # Pages without end.
    browser.run("window.scrollTo(0, document.body.scrollHeight)")
    browser.wait(f"{CARDS} >= 48")
    # Identity only: the clothing bars are empty.
    browser.run(
        "{const b = document.getElementById('beta'); b.value = 0; b.dispatchEvent(new Event('input', {bubbles: true}))}"
    )
    browser.wait(
        "location.search.includes('beta=0') && [...document.querySelectorAll('rect.clo')].every(r => r.width.baseVal.value == 0)"
    )
    assert browser.run("document.getElementById('beta-value').textContent") == "0.00"
    # A camera.
    browser.run("document.querySelector('.cameras input[value=b]').click()")
    browser.wait(
        "location.search.includes('camera=b') && [...document.querySelectorAll('.facts')].every(f => f.innerText.includes('· b'))"
    )
    browser.run("document.querySelector('.cameras input[value=b]').click()")
    browser.wait(f"!location.search.includes('camera=b') && {FIRST} == {first}")
    # Keys: to the second image, confirm it, reject the third.
    browser.run("document.activeElement.blur()")
    browser.press("ArrowRight")
    browser.press("ArrowRight")
    browser.press("c")
    browser.wait("document.querySelectorAll('#results .card')[1].classList.contains('confirmed')")
    browser.press("ArrowRight")
    browser.press("x")
    browser.wait("document.querySelectorAll('#results .card')[2].classList.contains('gone')")
    third = browser.run("document.querySelectorAll('#results .card')[2].dataset.id")
    # The rejected image is gone from a search of the case.
    browser.press("/")
    browser.type(" white")
    browser.wait("location.search.includes('white') && location.search.includes('case=my+case')")
    browser.wait(f"![...document.querySelectorAll('#results .card')].some(c => c.dataset.id == {third})")
    assert own_requests(browser, address)


def own_requests(browser: Browser, address: str) -> bool:
    """True when every request went to the server, and the console is silent."""
    hosts = {request.split("/")[2] for request in browser.requests if "//" in request}
    return hosts == {address.split("/")[2]} and not [text for text in browser.messages if "400" not in text]


def test_a_user_searches_by_images_adds_some_and_exports_a_case(address, browser, tmp_path):
    browser.open(f"{address}/?q=red")
    browser.wait("document.activeElement.id === 'q'")
    browser.press("Escape")
    # More like this.
    browser.press("ArrowRight")
    like = browser.run(FIRST)
    browser.press("c")
    browser.wait("document.querySelector('#results .card').classList.contains('confirmed')")
    browser.press("m")
    browser.wait(f"location.search.includes('like={like}') && {FIRST} == {like}")
    # An image of one's own.
    browser.open(address)
    own = paint(tmp_path / "own", ["mine.png"], seed=77)[0]
    browser.choose_file("#query-image", own)
    browser.wait(f"{CARDS} >= 24 && !document.getElementById('uploaded').hidden")
    # A zip.
    with zipfile.ZipFile(tmp_path / "own.zip", "w") as packed:
        packed.write(own, "cam_c/mine.png")
        packed.writestr("broken.jpg", b"x")
    browser.choose_file("#zip", tmp_path / "own.zip")
    browser.wait("document.getElementById('job').textContent.includes('1 images added, 1 left out')")
    assert browser.run("document.getElementById('count').textContent") == "61"
    # The case, and its files.
    browser.open(f"{address}/case/my%20case")
    assert "1 confirmed, 0 rejected" in browser.run("document.body.innerText")
    assert f"/image/{like}" in browser.run("document.querySelector('.lane img').src")
    assert "confirmed," in browser.run("fetch('?as=csv').then(r => r.text())")
    # An error, and nothing found.
    browser.open(f"{address}/?q=red&beta=-1")
    assert "beta must be a number" in browser.run("document.querySelector('[role=alert]').textContent")
    browser.open(f"{address}/?q=red&least=99")
    assert "Nothing good found." in browser.run("document.body.innerText")
    assert own_requests(browser, address)


def test_a_page_that_is_opened_later_shows_the_progress_of_a_zip(address, browser, tmp_path, monkeypatch):
    goes_on, embed = threading.Event(), ColourEmbedder.embed_images

    def embed_later(self, pixels_N3HW):
        goes_on.wait(60)
        return embed(self, pixels_N3HW)

    monkeypatch.setattr(ColourEmbedder, "embed_images", embed_later)
    with zipfile.ZipFile(tmp_path / "walk.zip", "w") as packed:
        packed.write(paint(tmp_path / "new", ["x.png"], seed=9)[0], "x.png")
    browser.open(address)
    browser.choose_file("#zip", tmp_path / "walk.zip")
    browser.wait("document.getElementById('job').textContent.includes('embedding')")
    browser.open(address)
    browser.wait("document.getElementById('job').innerText.includes('walk.zip: embedding 0 of 1')")
    goes_on.set()
    browser.wait("document.getElementById('job').innerText.includes('1 images added')")


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_wider_than_the_window(width, address, browser):
    browser.resize(width, 800)
    for path in ("/", "/?q=red+blue", "/?q=red&least=99", "/nowhere"):
        browser.open(address + path)
        assert browser.run("document.documentElement.scrollWidth") <= width
