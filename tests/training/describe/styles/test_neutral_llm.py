"""Neutral captions by a language model: the prompt, the accepted answers, and failures of the server."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from bench.pipeline.fake_openai import CAPTION
from tests.support.fake_provider import KEY, BackgroundServer, ScriptedProvider
from tests.support.generated_texts import lines
from tests.support.pedes_dataset import write_people
from tests.support.pretrained.tiny_vlm import save_tiny_vlm
from tests.training.describe.styles.test_command import run
from training.describe.__main__ import main
from training.describe.llm.answer_store import Answer, AnswerStore
from training.describe.llm.client import Service
from training.describe.llm.executor import CachedProvider, Sampling
from training.describe.llm.limits import Budget, StoppedError, StopSignal, UsageMeter
from training.describe.llm.providers import Request
from training.describe.styles import neutral_llm
from training.describe.styles.neutral import NeutraliserOptions, neutral_captions
from training.describe.styles.neutral_rules import find_content, neutralise

LONG = "A tall man wears a red shirt, blue jeans and white shoes."
TERSE = "woman; black coat; grey bag."


def ask_for(
    tmp_path: Path, caption: str, said: Any, attempts: int = 3
) -> tuple[neutral_llm.NeutralResult, ScriptedProvider]:
    """Neutralises one caption by a model that answers `said(attempt)`; returns the result and the provider."""

    def answer(request: Request) -> Answer:
        value = said(request.attempt)
        return Answer(value if isinstance(value, str) else json.dumps(value))

    provider, answers = ScriptedProvider(answer), AnswerStore(tmp_path / "answers.jsonl")

    async def inside() -> neutral_llm.NeutralResult:
        cached = CachedProvider(provider, answers, UsageMeter(Budget()))
        return await neutral_llm.neutralise_by_model(
            [caption], cached, "m", {}, Sampling(0.0, 0.3, 0, 200, attempts), StopSignal()
        )

    try:
        return asyncio.run(inside()), provider
    finally:
        answers.lines.close()


def test_the_prompt_holds_one_caption_as_it_is_and_examples_that_the_lexicon_answers() -> None:
    prompt = neutral_llm.build_prompt('A "man"\nin red')
    assert json.loads(prompt.user.rpartition("\n")[2]) == 'A "man"\nin red'
    assert '{"caption": "A person with item is wearing a item, item and item."}' in prompt.user
    assert prompt.json_schema["required"] == ["caption"] and prompt.kind == CAPTION
    assert prompt.hash != neutral_llm.build_prompt('A "man" in red').hash


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("A person wears a item, item and item.", ""),
        ("A person wears a item, item and white shoes.", ""),
        ("A person wears a red shirt, item and white shoes.", "content: still names red shirt, white shoes"),
        (LONG, "content: still names tall man, red shirt, blue jeans"),
        ("item", ""),
        ("A person wears " + "a item, " * 10, "length: 23 words for 12"),
        ("I'm sorry, I can't rewrite captions of people.", "refusal: i'm sorry"),
    ],
)
def test_what_is_accepted_as_a_neutral_caption(text: str, problem: str) -> None:
    assert neutral_llm.find_problem(LONG, text).lower() == problem


def test_the_lexicon_leaves_no_attributes_and_its_own_captions_pass(tmp_path: Path) -> None:
    root = write_people(tmp_path / "data", ids=60)
    captions = [text for record in json.loads((root / "reid_raw.json").read_text()) for text in record["captions"]]
    made = neutralise(captions)
    assert len(captions) > 300 and not [text for text in made if find_content(text)]
    assert not [problem for problem in map(neutral_llm.find_problem, captions, made) if problem]
    assert find_content("A slim man in plain white, with a black and red hat") == [
        "slim man",
        "black and red hat",
        "white",
    ]


def test_a_caption_is_asked_again_until_it_passes(tmp_path: Path) -> None:
    good = {"caption": "A person  wears a item, item and item."}
    found, provider = ask_for(tmp_path, LONG, lambda attempt: good if attempt == 2 else {"caption": LONG})
    assert found == neutral_llm.NeutralResult({LONG: "A person wears a item, item and item."}, {}, {})
    assert [(request.temperature, request.seed) for request in provider.requests] == [(0.0, 0), (0.3, 1), (0.6, 2)]
    again, other = ask_for(tmp_path, LONG, lambda attempt: "never asked")
    assert again == found and not other.requests


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ({"caption": LONG}, "content"),
        ("no JSON", "answer: the answer holds no JSON object"),
        ("", "answer: the answer is empty"),
    ],
)
def test_a_caption_that_never_passes_is_rejected_with_its_reason(tmp_path: Path, answer: Any, reason: str) -> None:
    found, provider = ask_for(tmp_path, LONG, lambda attempt: answer, attempts=2)
    assert not found.texts and found.rejected[LONG].startswith(reason) and len(provider.requests) == 2


def options(server: BackgroundServer, **changed: Any) -> NeutraliserOptions:
    quick = {"first_wait": 0.01, "longest_wait": 0.05, "retries": 2, "read_timeout": 0.3, "total_timeout": 0.6}
    service = Service(f"http://127.0.0.1:{server.port}/v1", **(quick | changed.pop("service", {})))  # type: ignore[arg-type]
    return NeutraliserOptions("openai", "m", yes=True, service=service, **changed)


def neutralised(captions: list[str], chosen: NeutraliserOptions, folder: Path) -> Any:
    return neutral_captions(captions, chosen, folder, {}, Console(quiet=True), lambda told: False)


def test_a_server_that_fails_in_every_way_answers_every_caption_once(server: BackgroundServer, tmp_path: Path) -> None:
    captions = [f"A man with {n} buttons wears a red shirt and shoes number {n}." for n in range(60)] * 2
    server.behaviour.faults, server.behaviour.kinds = (
        0.4,
        ("limit", "error", "cut", "torn", "short", "refusal", "empty"),
    )
    chosen = options(server, attempts=5, service={"retries": 20})
    found = neutralised(captions, chosen, tmp_path)
    assert found.texts == neutralise(captions)
    assert found.by["by"] == "openai" and found.by["model"] == "m"
    keys = Counter(row["key"] for row in lines(tmp_path / "answers.jsonl"))
    assert len(keys) >= 60 and set(keys.values()) == {1}
    asked = server.requests
    assert neutralised(captions, chosen, tmp_path).texts == found.texts and server.requests == asked


def test_captions_that_the_model_does_not_manage_go_to_the_word_lists_and_are_counted(
    server: BackgroundServer, tmp_path: Path
) -> None:
    server.behaviour.faults, server.behaviour.kinds = 1.0, ("refusal",)
    found = neutralised([LONG, TERSE, LONG], options(server), tmp_path)
    assert found.texts == neutralise([LONG, TERSE, LONG]) and found.fallbacks == 2 and server.requests == 4


def test_captions_without_an_answer_end_it_and_are_asked_for_again(server: BackgroundServer, tmp_path: Path) -> None:
    server.behaviour.plan = ["good", *["error"] * 3]
    chosen = options(server, service={"concurrency": 1})
    with pytest.raises(
        StoppedError, match=r"no answer for a caption: HTTP 500.*; 1 of 2 captions remain; run the same command"
    ):
        neutralised([LONG, TERSE], chosen, tmp_path)
    assert neutralised([LONG, TERSE], chosen, tmp_path).texts == neutralise([LONG, TERSE])
    assert server.requests == 5


def test_the_budget_and_the_question_stop_before_more_is_spent(server: BackgroundServer, tmp_path: Path) -> None:
    captions = [f"{TERSE} {n}" for n in range(20)]
    with pytest.raises(StoppedError, match=r"the budget of 7 requests is spent; 13 of 20 captions remain"):
        neutralised(captions, options(server, budget=Budget(max_requests=7)), tmp_path / "budget")
    told: list[str] = []

    def no(question: str) -> bool:
        told.append(question)
        return False

    asking = NeutraliserOptions("openai", "m", service=Service(f"http://127.0.0.1:{server.port}/v1"))
    with pytest.raises(StoppedError, match="stopped at your request; 15 of 20 captions remain"):
        neutral_captions(captions, asking, tmp_path / "asked", {}, Console(quiet=True), no)
    assert len(told) == 1 and told[0].startswith("15 captions in about 15 calls, 0.01 million input")


def test_styles_by_a_model_are_those_of_its_neutral_captions(
    server: BackgroundServer, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_people(tmp_path / "data", ids=40)
    monkeypatch.setenv("SOME_KEY", KEY)
    asked = ["--neutraliser", "openai", "--model", "m", "--base-url", f"http://127.0.0.1:{server.port}/v1", "--yes"]
    by_model = run(
        root, tmp_path / "model", *asked, "--key-variable", "SOME_KEY", "--method", "kmeans", "--clusters", "4"
    )
    by_lists = run(root, tmp_path / "lists", "--method", "kmeans", "--clusters", "4")
    assert by_model["neutral"]["model"] == "m" and by_lists["neutral"] == {"by": "lexicon"}
    assert by_model["styles"] == by_lists["styles"] and by_model["ari"] == by_lists["ari"]
    assert by_model["neutral_by_lists"] == 0 and server.requests > 100
    written = [path.read_bytes() for path in (tmp_path / "model").rglob("*") if path.is_file()]
    assert not [content for content in written if KEY.encode() in content]
    with pytest.raises(SystemExit, match="2"):
        main(["styles", "own", "x", "--out", "y", "--neutraliser", "openai"])
    # The message may be wrapped inside a frame.
    message = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert "NeutraliserOptions.model must be given for openai, got ''" in message


def test_a_local_model_is_asked_without_an_image(tmp_path: Path) -> None:
    """Random weights say nothing of use: every caption goes to the word lists, after the model has answered."""
    chosen = NeutraliserOptions(
        "transformers", str(save_tiny_vlm(tmp_path / "model")), attempts=1, max_tokens=16, batch=2
    )
    found = neutralised([LONG, TERSE], chosen, tmp_path / "out")
    assert found.texts == neutralise([LONG, TERSE]) and found.fallbacks == 2
    rows = lines(tmp_path / "out" / "answers.jsonl")
    assert len(rows) == 2 and all(row["prompt_tokens"] > 100 and row["completion_tokens"] > 0 for row in rows)


def test_keys_of_neutral_captions_that_were_stored_before_never_change() -> None:
    assert neutral_llm.build_prompt("A man in red.").hash == "16df2310d5bc2abe"
    params = NeutraliserOptions("openai", "m").params
    key = "060d7d86922f84ab75b0843570f398ce9bfa6f2a4d8549fa273d0a450dc5eea9"
    assert neutral_llm.call_key("A man.", "m", params, 1) == key
