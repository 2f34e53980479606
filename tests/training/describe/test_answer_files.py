"""`import-answers`: files that are refused before anything is stored, options, and every form of an error."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support import contents
from tests.support.files.batch_service import command, expired, write
from training.describe.batches import export_requests, import_answers
from training.describe.batches.answer_files import NoAnswer, read_results
from training.describe.generate import Source

WRONG = {
    "no file": (None, "r does not exist"),
    "cut off": ('{"custom_id": "a", "resp', "line 1 is not valid JSON, is the file whole?"),
    "without end": ("[" * 200_000, "line 1 is nested too deeply for an answer"),
    "no id": ('{"id": 3}', "line 1 must be an object with the string custom_id, as batch services write"),
    "requests": (
        '{"custom_id": "a", "body": {}}',
        "has neither a response nor an error: is this the file of requests?",
    ),
    "foreign": (json.dumps(expired({"custom_id": "a"})), "answers a request that was exported to"),
}


@pytest.mark.parametrize(("text", "message"), WRONG.values(), ids=WRONG)
def test_files_that_hold_no_answers_are_refused(text, message, tmp_path, pedes, capsys):
    out = tmp_path / "out"
    command("export-requests", pedes, out)
    if text is not None:
        (tmp_path / "r").write_text(text)
    before = contents(out)
    command("import-answers", pedes, out, "--answers", str(tmp_path / "r"), status=2)
    after = contents(out)
    assert message in capsys.readouterr().err and {k: v for k, v in after.items() if v} == {
        k: v for k, v in before.items() if v
    }


def test_options_that_batches_need(tmp_path, pedes, capsys):
    out, source = tmp_path / "out", Source("cuhk-pedes", pedes)
    with pytest.raises(ValueError, match="Arguments.model must be given: the service needs its name"):
        export_requests.Arguments(source, out)
    with pytest.raises(
        ValueError, match="Arguments.model must be given: the name that the requests were exported with"
    ):
        import_answers.Arguments(source, out, answers=(out,))
    with pytest.raises(ValueError, match="Arguments.answers must be one or more files"):
        import_answers.Arguments(source, out, "m")
    with pytest.raises(ValueError, match="no text is generated from images of the test split"):
        export_requests.Arguments(source, out, "m", "test")
    answers = write(tmp_path / "r", [expired({"custom_id": "a"})])
    command("import-answers", pedes, out, "--answers", answers, status=2)
    assert "has no exported.jsonl: `describe export-requests` writes" in capsys.readouterr().err and not out.exists()
    command("export-requests", pedes, out)
    command("export-requests", pedes, out, "--temperature", "0.1", status=2)
    assert "holds texts with different settings" in capsys.readouterr().err


def test_errors_are_read_in_every_form(tmp_path):
    rows = [
        {
            "custom_id": "a",
            "response": {"status_code": 400, "body": {"error": {"message": "bad image"}}},
            "error": None,
        },
        {"custom_id": "b", "response": {"status_code": 429, "body": {"error": {"message": "slow"}}}},
        {"custom_id": "c", "response": {"status_code": 400, "body": {"object": "error", "message": "broken"}}},
        {"custom_id": "d", "response": None, "error": "the engine stopped"},
        {"custom_id": "e", "response": {"status_code": 400, "body": None}, "error": {"message": "too long"}},
    ]
    found = dict(read_results(Path(write(tmp_path / "r", rows))))
    assert found == {
        "a": NoAnswer("HTTP 400: bad image", True),
        "b": NoAnswer("HTTP 429: slow", False),
        "c": NoAnswer("HTTP 400: broken", True),
        "d": NoAnswer("the engine stopped", False),
        "e": NoAnswer("HTTP 400: too long", True),
    }
