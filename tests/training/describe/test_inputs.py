"""Styles that generation reads, what it says the rest will take, and what it shows meanwhile."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from tests.support.generated_texts import LONG, TERSE, write_styles
from training.describe.generation import StatusCounts
from training.describe.inputs import read_styles, record_settings
from training.describe.llm.answer_store import Answer
from training.describe.llm.client import Service
from training.describe.llm.limits import Budget, UsageMeter
from training.describe.progress import ProgressReporter
from training.describe.session import estimate
from training.utils.io import read_json


def test_estimates():
    meter, blind = UsageMeter(Budget()), UsageMeter(Budget())
    for _ in range(10):
        meter.count(Answer("text", "", "stop", 800, 40, 2.0))
        blind.count(Answer("text", seconds=2.0))
    assert estimate(meter, Service(concurrency=4), 1000, 2.2).endswith("no price given (price_in, price_out), 18 min.")
    assert estimate(meter, Service(concurrency=64), 1000, 2.0).endswith(", 62 s.")
    assert estimate(meter, Service(requests_per_minute=10), 1000, 2.0).endswith(", 3.3 h.")
    assert estimate(meter, Service(tokens_per_minute=8400, concurrency=64), 1000, 2.0).endswith(", 3.3 h.")
    unknown = estimate(blind, Service(), 10, 2.0)
    assert unknown == "10 images in about 20 calls, of unknown size, since the server reports no token usage, 5 s."


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("styles.json", None, "styles.json does not exist"),
        ("styles.json", "[]", "must contain `styles`, a list of objects with style, size"),
        (
            "styles.json",
            '{"styles": [{"style": 0, "size": 0, "examples": []}]}',
            "must contain `styles`, a list of objects",
        ),
        (
            "styles.json",
            '{"styles": [{"style": 0, "size": 1, "examples": 3}]}',
            "must contain `styles`, a list of objects",
        ),
        ("styles.jsonl", None, "styles.jsonl does not exist; `python -m training.describe styles` writes it"),
        ("styles.jsonl", "[" * 200_000, "line 1 must be an object with file_path, caption and style"),
        ("styles.jsonl", "[]\n", "line 1 must be an object with file_path, caption and style"),
        ("styles.jsonl", '{"file_path": "a", "caption": 0, "style": 7}\n', "line 1 names style 7, which .*styles.json"),
    ],
)
def test_styles_that_cannot_be_read(tmp_path, pedes, name, content, text):
    folder = write_styles(tmp_path / "styles", pedes)
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_text(content)
    with pytest.raises((ValueError, FileNotFoundError), match=text):
        read_styles(folder, 5)


@pytest.mark.parametrize("name", ["answers.jsonl", "descriptions.jsonl", "gallery-val.jsonl", "exported.jsonl"])
def test_settings_are_fixed_by_the_first_row_of_any_file(tmp_path, name):
    path = tmp_path / "generation.json"
    for model in ("goood", "good"):
        record_settings(path, {"model": model})
        assert read_json(path) == {"model": model}
        (tmp_path / name).touch()
    (tmp_path / name).write_text("{}\n")
    record_settings(path, {"model": "good"})
    with pytest.raises(ValueError, match="holds texts with different settings: model 'better' instead of 'good'"):
        record_settings(path, {"model": "better"})
    assert read_json(path) == {"model": "good"}


def test_images_without_clustered_captions_get_a_style_by_size(tmp_path, pedes):
    styles = read_styles(write_styles(tmp_path / "styles", pedes), 1)
    assert styles.examples == {0: (TERSE[0],), 1: (LONG[0],)}
    drawn = [styles.style_of(f"unknown/{number}.jpg") for number in range(400)]
    assert drawn == [styles.style_of(f"unknown/{number}.jpg") for number in range(400)]
    assert 150 < sum(drawn) < 250


def test_progress_on_a_terminal_and_in_a_log(monkeypatch):
    meter = UsageMeter(Budget(price_in=1000.0))
    meter.count(Answer("text", "", "stop", 3000, 80, 1.0))
    row = {"file_path": "a", "status": "rejected", "reason": "identity.leak"}
    for terminal in (True, False):
        monkeypatch.setattr("training.describe.progress.LOG_INTERVAL", 0.0)
        shown = io.StringIO()
        console = Console(file=shown, force_terminal=terminal, width=150)
        with ProgressReporter(3, meter, StatusCounts(), console) as reporter:
            reporter.record(row)
            with reporter.paused():
                console.print("question")
            reporter.record(row)
        text = shown.getvalue()
        assert "question" in text and "cost 3.00, 2 identity.leak" in text
        assert ("2 of 3 images, " in text) is not terminal
