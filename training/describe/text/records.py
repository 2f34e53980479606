"""A file of generated texts as it is: every image's last record, whatever its status, checked for its form only."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

STATUSES = ("ok", "rejected", "failed")


@dataclass(frozen=True)
class Text:
    """The generated texts of one image."""

    file_path: str
    # "ok", "rejected" (by a check) or "failed" (no answer that could be checked).
    status: str
    identity: str
    clothing: str
    # None where none was recorded.
    style: int | None
    model: str
    prompt_hash: str
    # Why it is not "ok".
    reason: str
    # Name of the check -> "" or why it failed; None where none were recorded.
    checks: dict[str, str] | None


def read_texts(path: Path) -> Iterator[Text]:
    """The last record of each image, in the order of those lines, streamed: the file may be larger than memory.

    A torn last line, such as a running generation has, is left out. Raises FileNotFoundError, and ValueError that names the
    line.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file of generated texts {path}")
    last = {item["file_path"]: number for number, item in _lines(path)}
    for number, item in _lines(path):
        if last[item["file_path"]] == number:
            yield _text(item, f"{path}, line {number}")


def _lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with open(path, "rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            where = f"{path}, line {number}"
            try:
                item = json.loads(line)
            except ValueError as error:
                if line.endswith(b"\n"):
                    raise ValueError(f"{where} is not valid JSON: {error}") from error
                return
            if not isinstance(item, dict) or not all(isinstance(item.get(key), str) for key in ("file_path", "status")):
                raise ValueError(f"{where} must be an object with the texts file_path and status")
            yield number, item


def _text(item: dict[str, Any], where: str) -> Text:
    if item["status"] not in STATUSES:
        raise ValueError(f"{where}: status must be one of {', '.join(STATUSES)}, got {item['status']!r}")
    words = {key: item.get(key) or "" for key in ("identity", "clothing", "model", "prompt_hash", "reason")}
    wrong = [key for key, value in words.items() if not isinstance(value, str)]
    if wrong:
        raise ValueError(f"{where}: {', '.join(wrong)} must be texts")
    style, checks = item.get("style"), item.get("checks")
    if style is not None and (not isinstance(style, int) or isinstance(style, bool)):
        raise ValueError(f"{where}: style must be a whole number, got {style!r}")
    if checks is not None and not (isinstance(checks, dict) and all(isinstance(why, str) for why in checks.values())):
        raise ValueError(f"{where}: checks must be an object of texts, got {checks!r}")
    return Text(file_path=item["file_path"], status=item["status"], style=style, checks=checks, **words)
