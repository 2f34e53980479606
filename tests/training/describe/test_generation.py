"""Generation against a server that fails in every way, and with its own process killed at random: nothing lost, nothing twice."""

from __future__ import annotations

import asyncio
import json
import os
import re
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from bench.pipeline.fake_openai import Behaviour, serve
from tests.support.fake_provider import ScriptedProvider
from tests.support.pedes_dataset import make_pedes
from training.describe.generation import (
    DescriptionGenerator,
    GenerationTask,
    ImageItem,
    StatusCounts,
    TextChecker,
    reason_group,
)
from training.describe.llm.answer_store import Answer, AnswerStore, DescriptionStore
from training.describe.llm.client import Client, RequestFailedError, Service
from training.describe.llm.executor import Sampling
from training.describe.llm.limits import Budget, BudgetExceededError, StoppedError, StopSignal, UsageMeter
from training.describe.llm.providers import OpenAIProvider, Request
from training.describe.text.prompts import build_prompt
from training.describe.text.schema import load_schema
from training.describe.text.text_checks import Limits, NearDuplicates

SCHEMA, LIMITS = load_schema(), Limits((3, 80))
GOOD = {
    "identity": "A young man of slim build and medium height with short black hair and fair skin.",
    "clothing": "Wearing a white shirt, blue jeans and black sneakers, with a grey backpack.",
}


def said(kind: str, text: str = "") -> Answer:
    return Answer(json.dumps({kind: text or GOOD[kind]}), "", "stop", 100, 10, 0.1)


def make_task(near: NearDuplicates | None = None, attempts: int = 3, **params: Any) -> GenerationTask:
    prompts = {
        (kind, style): build_prompt(SCHEMA, kind, ["A man." * style] if style else [], (10, 45))
        for kind in GOOD
        for style in (0, 1)
    }
    sampling = Sampling(attempts=attempts, temperature=0.5, temperature_step=0.2, seed=3)
    return GenerationTask(
        "m", params, sampling, lambda kind, style: prompts[kind, style], TextChecker(SCHEMA, LIMITS, near)
    )


@pytest.fixture
def items(tmp_path) -> list[ImageItem]:
    root = make_pedes(tmp_path / "pedes", {"train": 2, "val": 1, "test": 1}, 2)
    records = [record for record in json.loads((root / "reid_raw.json").read_text()) if record["split"] == "train"]
    return [ImageItem(r["file_path"], root / "imgs" / r["file_path"], r["id"], i % 2) for i, r in enumerate(records)]


def run(
    out: Path, items: list[ImageItem], provider: Any, task: GenerationTask | None = None, raise_stop: bool = True
) -> list[dict]:
    """Runs a generation into `out` and returns its new descriptions. Raises what stopped it, unless raise_stop is False."""
    rows: list[dict] = []

    async def inside() -> None:
        answers, descriptions = AnswerStore(out / "answers.jsonl"), DescriptionStore(out / "descriptions.jsonl")
        stop_signal = StopSignal()
        meter = UsageMeter(Budget(), answers)
        try:
            todo = [item for item in items if item.file_path not in descriptions.file_paths]
            await DescriptionGenerator(
                task or make_task(), provider, answers, descriptions, meter, stop_signal, rows.append
            ).run(todo)
            if raise_stop:
                stop_signal.check()
        finally:
            answers.lines.close()
            descriptions.lines.close()

    asyncio.run(inside())
    return rows


def test_a_record_has_texts_style_and_checks(tmp_path, items):
    provider = ScriptedProvider(lambda request: said(request.kind))
    rows = sorted(run(tmp_path, items, provider, make_task(colour="red")), key=lambda row: row["file_path"])
    assert [row["file_path"] for row in rows] == sorted(item.file_path for item in items)
    for row, item in zip(rows, items, strict=True):
        assert {kind: row[kind] for kind in GOOD} == GOOD
        assert row["style"] == item.style and row["model"] == "m" and row["status"] == "ok" and "reason" not in row
        assert row["params"]["colour"] == "red" and row["params"]["seed"] == 3
        assert set(row["checks"].values()) == {""} and {"identity.leak", "clothing.answer"} <= set(row["checks"])
        assert row["attempts"] == {"identity": 1, "clothing": 1}
    assert len({row["prompt_hash"] for row in rows}) == 2
    stored = [json.loads(line) for line in (tmp_path / "descriptions.jsonl").read_text().splitlines()]
    assert sorted(stored, key=lambda row: row["file_path"]) == rows
    assert len(provider.requests) == 2 * len(items)


def test_a_failed_check_is_asked_again_with_other_numbers(tmp_path, items):
    def script(request: Request) -> Answer:
        leaking = request.kind == "identity" and request.attempt < 2
        return said(request.kind, "A young man with short black hair in a red jacket." if leaking else "")

    provider = ScriptedProvider(script)
    (row,) = run(tmp_path, items[:1], provider)
    assert row["status"] == "ok" and row["attempts"] == {"identity": 3, "clothing": 1}
    asked = [(a.attempt, a.temperature, a.seed) for a in provider.requests if a.kind == "identity"]
    assert asked == [(0, 0.5, 3), (1, 0.7, 4), (2, 0.9, 5)]
    assert len({request.key for request in provider.requests}) == 4


@pytest.mark.parametrize(
    ("answer", "name", "why"),
    [
        (Answer("", "I can't help with that."), "clothing.answer", "the model refuses: I can't help with that."),
        (Answer(""), "clothing.answer", "the answer is empty"),
        (Answer('{"clothing": "A white shi', "", "length"), "clothing.answer", "cut off: .* .finish_reason length."),
        (said("clothing", "A man in a white shirt and blue jeans."), "clothing.leak", "has words of identity: man"),
        (said("clothing", "Ein weißes Hemd und eine blaue Hose."), "clothing.language", "is not English"),
    ],
)
def test_what_stays_bad_is_rejected_with_its_reason(tmp_path, items, answer, name, why):
    provider = ScriptedProvider(lambda request: answer if request.kind == "clothing" else said(request.kind))
    (row,) = run(tmp_path, items[:1], provider, make_task(attempts=2))
    assert row["status"] == "rejected" and name in row["reason"].split(", ")
    assert row["attempts"] == {"identity": 1, "clothing": 2} and len(provider.requests) == 3
    assert row["identity"] == GOOD["identity"]
    assert re.search(why, row["checks"][name])


def test_the_same_text_of_two_people_is_asked_again(tmp_path, items):
    def script(request: Request) -> Answer:
        other = "A tall elderly woman of heavy build with long grey hair, brown skin and glasses."
        return said(request.kind, other if request.attempt and request.kind == "identity" else "")

    rows = run(tmp_path, items, ScriptedProvider(script), make_task(NearDuplicates(0.8)))
    assert [row["status"] for row in rows] == ["ok"] * 4
    # Both images of one person may share their texts; the other person's differ after a second try.
    assert sorted(sum(row["attempts"].values()) for row in rows) == [2, 2, 4, 4]
    stubborn = ScriptedProvider(lambda request: said(request.kind))
    (tmp_path / "again").mkdir()
    rows = run(tmp_path / "again", items, stubborn, make_task(NearDuplicates(0.8), attempts=2))
    assert Counter(row["status"] for row in rows) == {"ok": 2, "rejected": 2}
    assert {row.get("reason") for row in rows} == {None, "near_duplicate"}


def test_a_call_without_an_answer_and_a_broken_image_are_failed(tmp_path, items):
    items[0].path.write_bytes(items[0].path.read_bytes()[:100])
    bad = items[1].file_path
    provider = ScriptedProvider(
        lambda request: RequestFailedError("HTTP 500: no (3 times)") if request.file_path == bad else said(request.kind)
    )
    rows = {row["file_path"]: row for row in run(tmp_path, items, provider)}
    assert Counter(row["status"] for row in rows.values()) == {"failed": 2, "ok": 2}
    assert rows[items[0].file_path]["reason"].startswith("unreadable image: the image cannot be read: ")
    assert rows[bad]["reason"] == "no answer: HTTP 500: no (3 times)"
    counts = StatusCounts()
    for row in rows.values():
        counts.add(row)
    assert counts.reasons == {"unreadable image": 1, "no answer": 1} and reason_group("a.b, c.d") == "a.b, c.d"


def test_stored_answers_are_never_asked_for_again(tmp_path, items):
    run(tmp_path, items, ScriptedProvider(lambda request: said(request.kind)))
    (tmp_path / "descriptions.jsonl").unlink()
    again = ScriptedProvider(lambda request: AssertionError("asked twice"))
    rows = run(tmp_path, items, again)
    assert [row["status"] for row in rows] == ["ok"] * 4 and again.requests == []
    (tmp_path / "descriptions.jsonl").unlink()
    other = ScriptedProvider(lambda request: said(request.kind))
    run(tmp_path, items, other, make_task(other=1))
    assert len(other.requests) == 8


def test_files_of_the_same_bytes_share_their_calls(tmp_path, items):
    items[1].path.write_bytes(items[0].path.read_bytes())
    twins = [ImageItem(item.file_path, item.path, item.person, 0) for item in items[:2]]
    provider = ScriptedProvider(lambda request: said(request.kind))
    assert len(run(tmp_path, twins, provider)) == 2 and len(provider.requests) == 2


def test_a_stop_keeps_the_answers_under_way(tmp_path, items):
    def script(request: Request) -> Answer | Exception:
        return StoppedError("refused") if request.kind == "identity" else said(request.kind)

    provider = ScriptedProvider(script)
    with pytest.raises(StoppedError, match="^refused$"):
        run(tmp_path, items, provider)
    assert (tmp_path / "descriptions.jsonl").read_text() == ""
    kept = [json.loads(line)["kind"] for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert kept == ["clothing"] * 3 and len(provider.requests) == 6


def test_a_disk_that_does_not_keep_answers_stops_everything(tmp_path, items, monkeypatch):
    monkeypatch.setattr("training.describe.llm.executor.SYNC_INTERVAL", 0.001)

    def broken(fd: int) -> None:
        raise OSError("Input/output error")

    slow = ScriptedProvider(lambda request: said(request.kind))
    slow.items_in_flight = 1

    def patched(request: Request) -> Answer:
        monkeypatch.setattr(os, "fsync", broken)
        time.sleep(0.02)
        return said(request.kind)

    slow.script = patched
    with pytest.raises((StoppedError, OSError), match="Input/output error"):
        run(tmp_path, items, slow)
    assert len(slow.requests) < 8


def test_a_defect_of_a_provider_comes_through(tmp_path, items):
    with pytest.raises(ZeroDivisionError):
        run(tmp_path, items, ScriptedProvider(lambda request: ZeroDivisionError()))


def test_a_spent_budget_ends_quietly_and_a_larger_one_goes_on(tmp_path, items):
    async def inside(budget: Budget) -> tuple[UsageMeter, StopSignal]:
        server, port = await serve(Behaviour())
        answers, descriptions = (
            AnswerStore(tmp_path / "answers.jsonl"),
            DescriptionStore(tmp_path / "descriptions.jsonl"),
        )
        meter, stop_signal = UsageMeter(budget, answers), StopSignal()
        async with Client(Service(f"http://127.0.0.1:{port}/v1", concurrency=2), "", meter, stop_signal) as client:
            todo = [item for item in items if item.file_path not in descriptions.file_paths]
            provider = OpenAIProvider(client, "m")
            await DescriptionGenerator(
                make_task(), provider, answers, descriptions, meter, stop_signal, lambda row: None
            ).run(todo)
        answers.lines.close()
        descriptions.lines.close()
        server.close()
        return meter, stop_signal

    cost = 840e-6
    meter, stop_signal = asyncio.run(inside(Budget(1.0, 1.0, max_cost=6.5 * cost)))
    assert (
        isinstance(stop_signal.error, BudgetExceededError)
        and meter.answers == 6
        and meter.cost == pytest.approx(6 * cost)
    )
    # The budget is that of the folder, not of a run.
    meter, stop_signal = asyncio.run(inside(Budget(1.0, 1.0, max_cost=6.5 * cost)))
    assert meter.requests == 0
    meter, stop_signal = asyncio.run(inside(Budget(1.0, 1.0, max_cost=1.0)))
    assert stop_signal.error is None and meter.requests == 2
    assert len((tmp_path / "descriptions.jsonl").read_text().splitlines()) == 4
