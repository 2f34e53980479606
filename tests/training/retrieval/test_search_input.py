"""Queries from standard input: a line that is no query does not end the others."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from tests.support.retrieval.galleries import ColourEmbedder, clustered, fill
from training import search
from training.retrieval import gallery_search
from training.retrieval.finder import Finder
from training.retrieval.store import Gallery
from training.utils import cli


@pytest.fixture(autouse=True)
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images that every search opens."""
    fill(tmp_path / "g", clustered(20, 16)).close()
    monkeypatch.setattr(
        gallery_search, "open_finder", lambda *arguments: Finder(Gallery(tmp_path / "g"), ColourEmbedder())
    )


def ask(monkeypatch: pytest.MonkeyPatch, content: bytes, *words: str) -> int:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content), "utf-8"))
    return cli.run(search.main, ["run", "-", *words])


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"x" * 2001, "TEXT has 2001 characters, at most 2000 are read"),
        (b"red\0coat", "TEXT has a NUL character"),
        (b"red \xff", "TEXT has a NUL character or bytes that are not UTF-8"),
    ],
)
def test_a_line_that_is_no_query_does_not_end_the_others(line, reason, monkeypatch, capsys):
    content = b"red\n\n" + line + b"\nblue\n"
    assert ask(monkeypatch, content, "--json") == 2
    out, err = capsys.readouterr()
    answers = [json.loads(text) for text in out.splitlines()]
    assert [len(answer["results"]) for answer in answers] == [10, 0, 10]
    assert [answers[i]["query"] for i in (0, 2)] == [["red"], ["blue"]] and reason in answers[1]["error"]
    lines = err.splitlines()
    assert len(lines) == 2 and lines[0].startswith(f"error: line 3: {reason}")
    assert lines[1] == "error: lines of standard input that could not be answered: 1"
    assert ask(monkeypatch, content) == 2
    out, err = capsys.readouterr()
    assert [text for text in out.splitlines() if text in ("red", "blue")] == ["red", "blue"] and reason in err


def test_what_is_wrong_with_every_query_is_said_once(tmp_path, monkeypatch, capsys):
    (tmp_path / "bad.jpg").write_bytes(b"x")
    wrong = {
        ("--beta", "-1"): "beta must be a number from 0",
        ("--k", "20000"): "k must be from 1 to 10000",
        ("--image", str(tmp_path / "bad.jpg")): "is not a readable image",
    }
    for words, reason in wrong.items():
        assert ask(monkeypatch, b"red\nblue\n", *words) == 2
        out, err = capsys.readouterr()
        assert out == "" and err.startswith("error: ") and reason in err and err.count("\n") == 1
    assert ask(monkeypatch, b"red\nblue\n") == 0
