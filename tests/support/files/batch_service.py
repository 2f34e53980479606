"""A batch service for tests: answers to files of requests, and the commands that write and read them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.pipeline.fake_openai import Call, completion
from tests.support.generated_texts import lines
from training.describe import __main__ as entry
from training.utils import cli

MODEL = ("--model", "fake")


def command(name: str, root: Path, out: Path, *words: str, status: int = 0) -> None:
    """The command as `python -m training.describe` would run it, and its exit status."""
    assert cli.run(entry.main, [name, "cuhk-pedes", str(root), "--out", str(out), *MODEL, *words]) == status


def requests_of(out: Path) -> list[dict[str, Any]]:
    return [row for path in sorted(out.glob("requests-*.jsonl")) for row in lines(path)]


def good(row: dict[str, Any]) -> dict[str, Any]:
    """The line of the output file for a request that is answered well."""
    return answered(row, "good")


def answered(row: dict[str, Any], what: str) -> dict[str, Any]:
    body = completion(Call.of(row["body"]), what)
    response = {"status_code": 200, "request_id": "r", "body": body}
    return {
        "id": f"batch_req_{row['custom_id'][:8]}",
        "custom_id": row["custom_id"],
        "response": response,
        "error": None,
    }


def refused(status: int, message: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    def answer(row: dict[str, Any]) -> dict[str, Any]:
        body = {"error": {"message": message, "type": "invalid_request_error"}}
        response = {"status_code": status, "request_id": "r", "body": body}
        return {"id": "x", "custom_id": row["custom_id"], "response": response, "error": None}

    return answer


def expired(row: dict[str, Any]) -> dict[str, Any]:
    error = {
        "code": "batch_expired",
        "message": "This request could not be executed before the completion window expired.",
    }
    return {"id": "x", "custom_id": row["custom_id"], "response": None, "error": error}


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def run_batch(out: Path, results: Path, answer: Callable[[dict[str, Any]], dict[str, Any]] = good) -> str:
    """A batch service: the answers to the newest file of requests, in another order."""
    newest = max(out.glob("requests-*.jsonl"))
    return write(results, [answer(row) for row in reversed(lines(newest))])
