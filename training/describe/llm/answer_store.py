"""Answers and descriptions on disk: append-only JSON lines that survive a kill, and answers found again by their key.

What a file promises: a row that `append` returned for is there after the process is killed, since it is one write to a
descriptor opened for appending. fsync, which a power cut needs, is the caller's to ask for (`sync`); generation does so
every second, so a power cut loses at most the rows of the last one.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

# Bytes that are read at a time where a row is looked up by its place.
_BLOCK = 4096


class JsonLines:
    """An append-only file of one JSON object a line, held by one process at a time.

    Opening makes the file, and removes what a kill or a full disk left of a last line. Raises RuntimeError when another
    process holds it.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self._fd = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._fd)
            raise RuntimeError(f"{path} is being written by another process; wait for it to end") from error
        self._size = self._repair()

    def _repair(self) -> int:
        """The size in bytes after the last line is whole; one that lacks only its line end is kept."""
        size = os.fstat(self._fd).st_size
        start, tail = size, b""
        while start > 0 and b"\n" not in tail:
            step = min(_BLOCK, start)
            start -= step
            tail = os.pread(self._fd, step, start) + tail
        end = start + tail.rfind(b"\n") + 1
        if end == size:
            return size
        try:
            whole = isinstance(json.loads(tail[tail.rfind(b"\n") + 1 :]), dict)
        except ValueError:
            whole = False
        if whole:
            return size + os.write(self._fd, b"\n")
        os.ftruncate(self._fd, end)
        return end

    def append(self, row: dict[str, Any]) -> int:
        """Writes one row and returns its place. Raises OSError, with the file as before, when it does not fit."""
        data = json.dumps(row, ensure_ascii=False, allow_nan=False).encode() + b"\n"
        place = self._size
        try:
            written = os.write(self._fd, data)
        except OSError as error:
            raise OSError(f"{self.path} cannot be written: {error.strerror}") from error
        if written != len(data):
            os.ftruncate(self._fd, place)
            raise OSError(f"{self.path}: {written} of {len(data)} bytes could be written; is the disk full?")
        self._size += written
        return place

    def at(self, place: int) -> dict[str, Any]:
        """The row at a place that `append` or `rows` gave."""
        data = b""
        while b"\n" not in data:
            block = os.pread(self._fd, _BLOCK, place + len(data))
            if not block:
                raise ValueError(f"{self.path} was cut short by somebody else while it was in use")
            data += block
        return json.loads(data[: data.index(b"\n")])

    def rows(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """(place, row) of every line, one line in memory at a time. Raises ValueError naming a line that is no object."""
        place = 0
        with open(self.path, "rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    try:
                        row = json.loads(line)
                    except ValueError as error:
                        raise ValueError(f"{self.path}, line {number} is not valid JSON: {error}") from error
                    if not isinstance(row, dict):
                        raise ValueError(f"{self.path}, line {number} must be an object, got {type(row).__name__}")
                    yield place, row
                place += len(line)

    def sync(self) -> None:
        """Everything so far survives a power cut."""
        os.fsync(self._fd)

    def close(self) -> None:
        """Syncs and lets go of the file."""
        self.sync()
        os.close(self._fd)


@dataclass(frozen=True)
class Answer:
    """What a model said to one call."""

    text: str
    # Why the model would not answer, in its own words; "" if it did not refuse.
    refusal: str = ""
    # "stop", "length" (cut off), "content_filter", ... as the server reports it.
    finish: str = "stop"
    # As the server counts them; None where it does not.
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    # From the start of the request that was answered to its last byte.
    seconds: float = 0.0


def answer_key(**parts: Any) -> str:
    """SHA-256 (hex) over everything that an answer depends on; JSON values only."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


class Answers:
    """Every answer that was ever paid for, on disk; in memory only where each one lies (about 180 bytes an answer).

    Raises ValueError for a row without a key or with one that is there already.
    """

    def __init__(self, path: Path) -> None:
        self.lines = JsonLines(path)
        self._places: dict[bytes, int] = {}
        # For estimates: the seconds of all answers, and the sums over those whose tokens are known.
        self.counted, self.prompt_tokens, self.completion_tokens, self.seconds = 0, 0, 0, 0.0
        for place, row in self.lines.rows():
            key = row.get("key")
            if not isinstance(key, str) or not isinstance(row.get("text"), str):
                raise ValueError(f"{path} has a row without the texts key and text at byte {place}")
            if _short(key) in self._places:
                raise ValueError(f"{path} holds two answers of the key {key}")
            self._note(key, place, row)

    def __len__(self) -> int:
        return len(self._places)

    def get(self, key: str) -> Answer | None:
        """The stored answer of a key."""
        place = self._places.get(_short(key))
        if place is None:
            return None
        row = self.lines.at(place)
        return Answer(**{name: row[name] for name in Answer.__dataclass_fields__ if name in row})

    def add(self, key: str, answer: Answer, **about: Any) -> None:
        """Stores an answer under a key that has none yet; `about`: further fields of its row, for readers of the file."""
        row = {"key": key, **about, **asdict(answer)}
        self._note(key, self.lines.append(row), row)

    def _note(self, key: str, place: int, row: dict[str, Any]) -> None:
        self._places[_short(key)] = place
        if row.get("prompt_tokens") is not None and row.get("completion_tokens") is not None:
            self.counted += 1
            self.prompt_tokens += row["prompt_tokens"]
            self.completion_tokens += row["completion_tokens"]
        self.seconds += row.get("seconds", 0.0)


def _short(key: str) -> bytes:
    """128 bits tell the answers apart as well as all 256, in half the memory."""
    return bytes.fromhex(key)[:16]


class Records:
    """descriptions.jsonl: one row per image. Raises ValueError for a row without a path, or for a second one of an image."""

    def __init__(self, path: Path) -> None:
        self.lines = JsonLines(path)
        self.done: set[str] = set()
        for place, row in self.lines.rows():
            file_path = row.get("file_path")
            if not isinstance(file_path, str) or not isinstance(row.get("status"), str):
                raise ValueError(f"{path} has a row without the texts file_path and status at byte {place}")
            if file_path in self.done:
                raise ValueError(f"{path} has more than one record of {file_path}")
            self.done.add(file_path)

    def add(self, row: dict[str, Any]) -> None:
        """Stores the record of an image that has none yet."""
        self.lines.append(row)
        self.done.add(row["file_path"])
