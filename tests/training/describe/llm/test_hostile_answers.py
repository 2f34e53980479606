"""Answers that are JSON and yet no text: half characters, lists and numbers without bound, and a key under other spellings."""

from __future__ import annotations

import html
import json
import time
from typing import Any
from urllib.parse import quote, unquote

import pytest

from bench.pipeline.fake_openai import Behaviour, reply
from tests.support import contents
from tests.support.fake_provider import BackgroundServer
from tests.support.files.batch_service import command, good, requests_of, write
from tests.support.generated_texts import lines
from tests.training.describe.llm.test_client import one, run
from training.describe import __main__ as entry
from training.describe.llm.client import RequestFailedError
from training.describe.llm.providers import read_completion
from training.describe.llm.responses import error_message, spellings, token_usage
from training.utils import cli

KEY = "sk-test/0123456789+ab"
NESTED = b"[" * 200_000
SAID = json.dumps({"error": {"message": f"Incorrect key {KEY}"}})
HALF = '{"identity": "A man with a moustache \ud83d"}'


def response(status: int, content: bytes | str) -> bytes:
    content = content.encode() if isinstance(content, str) else content
    return b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n" % (status, len(content)) + content


def chat(content: Any, **usage: Any) -> dict[str, Any]:
    return {"choices": [{"message": {"content": content}, "finish_reason": "stop"}], "usage": usage}


def escaped(text: str) -> str:
    """A text with each of its characters as JSON may write it."""
    return "".join(f"\\u{ord(character):04X}" for character in text)


def decoded(text: str) -> str:
    """A text with the escapes of JSON, URLs and HTML in it undone, also those within others."""
    for _ in range(3):
        for character in KEY:
            for code in (f"\\u{ord(character):04x}", f"\\u{ord(character):04X}", f"\\{character}"):
                text = text.replace(code, character)
        text = unquote(html.unescape(text))
    return text


@pytest.mark.parametrize(
    "body",
    [
        SAID,
        SAID.replace("/", r"\/"),
        SAID.replace("+", r"\u002b"),
        SAID.replace(KEY, escaped(KEY)),
        SAID.replace("+", r"\u005cu002b"),
        json.dumps({"error": {"message": SAID.replace("/", r"\/")}}),
        json.dumps({"detail": [{"input": KEY}]}).replace("/", r"\/"),
        json.dumps([SAID]).replace("/", r"\/"),
        SAID.replace("/", r"\/")[:-3],
        f"<p>No {html.escape(KEY)}".replace("/", "&#x2F;").replace("+", "&#43;"),
        f"at /v1?key={quote(KEY, safe='')}",
    ],
)
@pytest.mark.parametrize("status", [200, 400, 401, 500])
def test_the_key_is_in_no_reason_however_it_is_spelled(body, status):
    with pytest.raises(RequestFailedError) as failed:
        run(one, Behaviour(plan=[response(status, body)] * 3), key=KEY, retries=1)
    assert "[key]" in str(failed.value) and KEY not in decoded(str(failed.value))


@pytest.mark.parametrize("spelled", [KEY, KEY.replace("/", r"\/"), escaped(KEY)])
def test_the_key_is_in_no_answer(spelled):
    content = '{"identity": "A man named ' + spelled + '."}'
    body = json.dumps(chat(content)).replace("/", r"\/")
    (value, _), _ = run(one, Behaviour(plan=[response(200, body)]), key=KEY)
    assert json.loads(read_completion(value).text) == {"identity": "A man named [key]."}


def test_other_texts_stay_and_are_read_soon():
    for key in (KEY, "sk-proj-" + "aB3_" * 38, 'a"b\\c&d<e'):
        pattern = spellings(key)
        for text in ("", "sk-test/0123456789+a", r"sk-test\/012345678\u002bab", "%73k", "&#115;k"):
            assert pattern.sub("[key]", text) == text
        begun = time.process_time()
        for text in ("\\" * 2**18, "&#0" * 2**16, key[:-1] * 2**12, "%73" * 2**16):
            pattern.sub("[key]", text)
        assert time.process_time() - begun < 10
        spelled = (key, json.dumps(key)[1:-1], json.dumps(json.dumps(key))[3:-3], html.escape(key), escaped(key))
        assert {pattern.sub("[key]", f"<{text}>") for text in spelled} == {"<[key]>"}


@pytest.mark.parametrize("status", [200, 429, 500, 503])
@pytest.mark.parametrize("content", [NESTED, b'{"choices":' * 100_000, b'{"choices":' + NESTED])
def test_a_body_without_end_is_sent_again(status, content):
    (value, _), client = run(one, Behaviour(plan=[response(status, content)] * 2))
    assert "choices" in value and client.meter.requests == 3


def test_a_refused_request_with_a_body_without_end_is_no_defect():
    with pytest.raises(RequestFailedError, match=r"HTTP 413: \[\[\["):
        run(one, Behaviour(plan=[response(413, NESTED)]))


def test_values_of_another_kind_at_any_depth_are_no_text():
    deep: Any = "text"
    for _ in range(100_000):
        deep = [{"text": deep}]
    assert (
        read_completion(chat(deep)).text == "" and read_completion(chat([{"text": "a"}, {"text": "b"}, 3])).text == "ab"
    )
    for value in ({"error": deep}, {"error": {"message": deep}}, {"detail": deep}):
        assert error_message(value, "the body") == "the body"


@pytest.mark.parametrize("tokens", [10**400, 10**30, 1.5, "9"])
def test_impossible_numbers_of_tokens_are_none(tokens):
    body = reply(200, chat("text", prompt_tokens=tokens, completion_tokens=1))
    (value, _), _ = run(one, Behaviour(plan=[body]), tokens_per_minute=10**9)
    assert token_usage(value) == (None, 1)


def generate(server: BackgroundServer, root: Any, out: Any, *words: str) -> int:
    options = ["generate", "cuhk-pedes", str(root), "--out", str(out), "--yes", "--model", "fake", *words]
    return cli.run(entry.main, [*options, "--base-url", f"http://127.0.0.1:{server.port}/v1"])


def test_half_a_character_is_kept_and_its_image_is_rejected(tmp_path, server, pedes, capsys):
    server.behaviour.plan = [reply(200, chat(HALF, prompt_tokens=800, completion_tokens=40))]
    out = tmp_path / "out"
    assert generate(server, pedes, out, "--attempts", "1") == 0
    rows = lines(out / "descriptions.jsonl")
    (row,) = [row for row in rows if row["status"] != "ok"]
    assert len(rows) == 12 and row["status"] == "rejected" and "lone surrogate" in json.dumps(row["checks"])
    stored = (out / "answers.jsonl").read_bytes()
    assert (
        stored.count(b"\n") == 24
        and b"moustache \\ud83d" in stored
        and HALF in {r["text"] for r in lines(out / "answers.jsonl")}
    )
    # The same command finds the answer again, and the page shows it.
    before, asked = contents(out), server.requests
    assert generate(server, pedes, out, "--attempts", "1") == 0 and contents(out) == before and server.requests == asked
    assert cli.run(entry.main, ["page", str(out / "descriptions.jsonl"), "--data", "cuhk-pedes", str(pedes)]) == 0
    assert "moustache \\ud83d" in (out / "descriptions.html").read_text()
    assert cli.run(entry.main, ["check", str(out / "descriptions.jsonl")]) == 0
    assert generate(server, pedes, out, "--attempts", "2", "--again") == 0
    assert {row["status"] for row in lines(out / "descriptions.jsonl")} == {"ok"} and server.requests > asked
    assert b"moustache \\ud83d" in (out / "answers.jsonl").read_bytes() and "error" not in capsys.readouterr().err


def test_half_a_character_in_a_batch_stops_no_import(tmp_path, pedes):
    out = tmp_path / "out"
    command("export-requests", pedes, out)
    answers = [good(row) for row in requests_of(out)]
    answers[3]["response"]["body"]["choices"][0]["message"]["content"] = HALF
    answers[5]["response"] = {"status_code": 400, "body": {"error": {"message": "no \ud83d"}}}
    command("import-answers", pedes, out, "--answers", write(tmp_path / "r", answers))
    assert len(lines(out / "answers.jsonl")) == 23 and HALF in {row["text"] for row in lines(out / "answers.jsonl")}
    (failed,) = [row for row in lines(out / "descriptions.jsonl") if row["status"] == "failed"]
    assert failed["reason"] == "no answer: HTTP 400: no \ud83d"
    # The text that is half a character is requested again.
    command("export-requests", pedes, out)
    assert len(lines(out / "requests-0002.jsonl")) == 1
    command("export-requests", pedes, out, "--again")
    assert len(requests_of(out)) == 26
