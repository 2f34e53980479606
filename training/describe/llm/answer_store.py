"""Answers and descriptions on disk: append-only JSON Lines that survive a kill, and answers looked up by their key.

Durability: once `append` has returned, the row survives a kill of the process, since it is one write to a descriptor opened
for appending. A power cut needs fsync, which is left to the caller (`sync`); generation calls it every second, so a power cut
loses at most one second of rows.
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

# Bytes read at a time when a row is looked up by its offset.
_BLOCK = 4096


def json_line(row: dict[str, Any]) -> bytes:
    """A row as a line of JSON in UTF-8."""
    # Half a character (a lone surrogate) has no UTF-8: it stays the escape \udXXX, by which JSON reads it again.
    return json.dumps(row, ensure_ascii=False, allow_nan=False).encode(errors="backslashreplace") + b"\n"


class JsonLines:
    """Append-only file with one JSON object per line, locked by one process at a time.

    Opening creates the file and removes an incomplete last line, as left by a kill or a full disk. Raises RuntimeError when
    another process holds the lock.
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
        """Removes an incomplete last line, completes one that only lacks its line end, and returns the size in bytes."""
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
            complete = isinstance(json.loads(tail[tail.rfind(b"\n") + 1 :]), dict)
        except (ValueError, RecursionError):
            complete = False
        if complete:
            return size + os.write(self._fd, b"\n")
        os.ftruncate(self._fd, end)
        return end

    def append(self, row: dict[str, Any]) -> int:
        """Writes one row and returns its byte offset. Raises OSError when it does not fit; the file is then unchanged."""
        data = json_line(row)
        offset = self._size
        try:
            written = os.write(self._fd, data)
        except OSError as error:
            raise OSError(f"{self.path} cannot be written: {error.strerror}") from error
        if written != len(data):
            os.ftruncate(self._fd, offset)
            raise OSError(f"{self.path}: {written} of {len(data)} bytes could be written; is the disk full?")
        self._size += written
        return offset

    def read_at(self, offset: int) -> dict[str, Any]:
        """Row at an offset returned by `append` or `rows`. Raises ValueError when the file has been truncated."""
        data = b""
        while b"\n" not in data:
            block = os.pread(self._fd, _BLOCK, offset + len(data))
            if not block:
                raise ValueError(f"{self.path} was truncated by another process while in use")
            data += block
        return json.loads(data[: data.index(b"\n")])

    def rows(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Streams (offset, row) of every line. Raises ValueError naming the line that is not a JSON object."""
        offset = 0
        with open(self.path, "rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    try:
                        row = json.loads(line)
                    except (ValueError, RecursionError) as error:
                        raise ValueError(f"{self.path}, line {number} is not valid JSON: {error}") from error
                    if not isinstance(row, dict):
                        raise ValueError(f"{self.path}, line {number} must be an object, got {type(row).__name__}")
                    yield offset, row
                offset += len(line)

    def sync(self) -> None:
        """Flushes to disk (fsync), so that all rows so far survive a power cut. Raises OSError."""
        os.fsync(self._fd)

    def close(self) -> None:
        """Syncs and closes the file, which releases the lock."""
        self.sync()
        os.close(self._fd)


@dataclass(frozen=True)
class Answer:
    """A model's answer to one request."""

    text: str
    # The model's own words of refusal; "" if it did not refuse.
    refusal: str = ""
    # Finish reason as reported by the server: "stop", "length" (truncated), "content_filter", ...
    finish: str = "stop"
    # Token usage as reported by the server; None where it reports none.
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    # Latency: from sending the request that succeeded to the last byte of its response.
    seconds: float = 0.0


def answer_key(**parts: Any) -> str:
    """SHA-256 (hex) over everything that an answer depends on, given as JSON values.

    Names and values are part of the key: changing either would orphan every stored answer.
    """
    return hashlib.sha256(json.dumps(parts, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


class AnswerStore:
    """Every answer that was ever paid for, on disk; memory holds only their offsets (about 180 bytes an answer).

    Raises ValueError for a row without a key, or with a key that occurred before.
    """

    def __init__(self, path: Path) -> None:
        self.lines = JsonLines(path)
        self._offsets: dict[bytes, int] = {}
        # For estimates: answers with known token usage, the sums over these, and the seconds of all answers.
        self.with_usage, self.prompt_tokens, self.completion_tokens, self.seconds = 0, 0, 0, 0.0
        for offset, row in self.lines.rows():
            key = row.get("key")
            if not isinstance(key, str) or not isinstance(row.get("text"), str):
                raise ValueError(f"{path}: the row at byte {offset} lacks the strings key and text")
            if _short_key(key) in self._offsets:
                raise ValueError(f"{path} holds two answers for the key {key}")
            self._index(key, offset, row)

    def __len__(self) -> int:
        return len(self._offsets)

    def __contains__(self, key: str) -> bool:
        return _short_key(key) in self._offsets

    def get(self, key: str) -> Answer | None:
        """Stored answer for a key, None without one."""
        offset = self._offsets.get(_short_key(key))
        if offset is None:
            return None
        row = self.lines.read_at(offset)
        return Answer(**{name: row[name] for name in Answer.__dataclass_fields__ if name in row})

    def add(self, key: str, answer: Answer, **fields: Any) -> None:
        """Stores an answer under a new key; `fields`: further columns of its row, for readers of the file. Raises OSError."""
        row = {"key": key, **fields, **asdict(answer)}
        self._index(key, self.lines.append(row), row)

    def _index(self, key: str, offset: int, row: dict[str, Any]) -> None:
        self._offsets[_short_key(key)] = offset
        if row.get("prompt_tokens") is not None and row.get("completion_tokens") is not None:
            self.with_usage += 1
            self.prompt_tokens += row["prompt_tokens"]
            self.completion_tokens += row["completion_tokens"]
        self.seconds += row.get("seconds", 0.0)


def _short_key(key: str) -> bytes:
    """The first 128 bits, which identify an answer as well as all 256 do, in half the memory."""
    return bytes.fromhex(key)[:16]


class DescriptionStore:
    """descriptions.jsonl, one row per image. Raises ValueError for a row without a path, or for a second row of an image."""

    def __init__(self, path: Path) -> None:
        self.lines = JsonLines(path)
        self.file_paths: set[str] = set()
        for offset, row in self.lines.rows():
            file_path = row.get("file_path")
            if not isinstance(file_path, str) or not isinstance(row.get("status"), str):
                raise ValueError(f"{path}: the row at byte {offset} lacks the strings file_path and status")
            if file_path in self.file_paths:
                raise ValueError(f"{path} has more than one record of {file_path}")
            self.file_paths.add(file_path)

    def add(self, row: dict[str, Any]) -> None:
        """Stores the record of an image that has none yet. Raises OSError."""
        self.lines.append(row)
        self.file_paths.add(row["file_path"])
