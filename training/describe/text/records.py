"""Reader of a file of generated texts: the last record of every image, whatever its status, validated for its form only."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

Status = Literal["ok", "rejected", "failed"]
STATUSES: tuple[Status, ...] = get_args(Status)


@dataclass(frozen=True)
class TextRecord:
    """Record of one image: its generated texts and what became of them."""

    file_path: str
    # "ok", "rejected" (by a check) or "failed" (no answer that could be checked).
    status: str
    identity: str
    clothing: str
    # None where none was recorded.
    style: int | None
    model: str
    prompt_hash: str
    # Reason of a status other than "ok".
    reason: str
    # Name of the check -> "" where it passed, else the reason; None where no checks were recorded.
    checks: dict[str, str] | None


def read_text_records(path: Path) -> Iterator[TextRecord]:
    """Streams the last record of each image, in the order of their lines: the file may be larger than memory.

    Skips an incomplete last line, as a running generation may have. Raises FileNotFoundError, and ValueError naming the line.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"the file of generated texts {path} does not exist")
    last = {item["file_path"]: number for number, item in _lines(path)}
    for number, item in _lines(path):
        if last[item["file_path"]] == number:
            yield _parse_record(item, f"{path}, line {number}")


def _lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with open(path, "rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            where = f"{path}, line {number}"
            try:
                item = json.loads(line)
            except (ValueError, RecursionError) as error:
                if line.endswith(b"\n"):
                    raise ValueError(f"{where} is not valid JSON: {error}") from error
                return
            if not isinstance(item, dict) or not all(isinstance(item.get(key), str) for key in ("file_path", "status")):
                raise ValueError(f"{where} must be an object with the strings file_path and status")
            yield number, item


def _parse_record(item: dict[str, Any], where: str) -> TextRecord:
    if item["status"] not in STATUSES:
        raise ValueError(f"{where}: status must be one of {', '.join(STATUSES)}, got {item['status']!r}")
    strings = {key: item.get(key) or "" for key in ("identity", "clothing", "model", "prompt_hash", "reason")}
    wrong = [key for key, value in strings.items() if not isinstance(value, str)]
    if wrong:
        raise ValueError(f"{where}: {', '.join(wrong)} must be strings")
    style, checks = item.get("style"), item.get("checks")
    if style is not None and (not isinstance(style, int) or isinstance(style, bool)):
        raise ValueError(f"{where}: style must be an integer, got {style!r}")
    if checks is not None and not (isinstance(checks, dict) and all(isinstance(why, str) for why in checks.values())):
        raise ValueError(f"{where}: checks must be an object of strings, got {checks!r}")
    return TextRecord(file_path=item["file_path"], status=item["status"], style=style, checks=checks, **strings)
