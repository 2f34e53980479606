"""Files of answers: one JSON object a line with `custom_id` and `response` or `error`, as batch services and `vllm run-batch`
write them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.describe.llm.answer_store import Answer
from training.describe.llm.providers import read_completion
from training.describe.llm.responses import REFUSAL_STATUSES, TRANSIENT_STATUSES, error_message, named_fields


@dataclass(frozen=True)
class NoAnswer:
    """Reason why a request has no answer; `final`: another try would not change it."""

    reason: str
    final: bool


def read_results(path: Path) -> Iterator[tuple[str, Answer | NoAnswer]]:
    """Yields (custom_id, answer or reason) of each line. Raises FileNotFoundError, ValueError naming a line that is not of this
    form, as the last one of a download that was cut off."""
    if not path.is_file():
        raise FileNotFoundError(f"--answers {path} does not exist")
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                place = f"{path}, line {number}"
                try:
                    found = _read_line(place, line)
                except RecursionError as error:
                    raise ValueError(f"{place} is nested too deeply for an answer") from error
                yield found


def _read_line(place: str, line: bytes) -> tuple[str, Answer | NoAnswer]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{place} is not valid JSON, is the file whole? {error}") from error
    if not isinstance(row, dict) or not isinstance(row.get("custom_id"), str):
        raise ValueError(f"{place} must be an object with the string custom_id, as batch services write")
    if not (row.get("response") or row.get("error")):
        raise ValueError(f"{place} has neither a response nor an error: is this the file of requests?")
    return row["custom_id"], _read_result(row)


def _read_result(row: dict[str, Any]) -> Answer | NoAnswer:
    response = row["response"] if isinstance(row.get("response"), dict) else {}
    status, body = response.get("status_code"), response.get("body")
    body = body if isinstance(body, dict) else {}
    if status in (200, None) and "choices" in body:
        return read_completion(body)
    error = row.get("error") or body.get("error") or body
    message = error_message({"error": error}, json.dumps(error))
    code = error.get("code") if isinstance(error, dict) else None
    reason = f"HTTP {status}: {message}" if status else f"{code}: {message}" if code else message
    refused = isinstance(status, int) and 400 <= status < 500 and status not in TRANSIENT_STATUSES | REFUSAL_STATUSES
    return NoAnswer(reason, refused and not named_fields(message))
