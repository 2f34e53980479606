"""Files of requests in the JSONL format of OpenAI's Batch API, which `vllm run-batch` reads too, and the record of what was
written.

A file is renamed to its name after its requests are in the record, so that a killed process loses no file and writes no request
twice.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import IO, Any, NamedTuple

from training.describe.llm.answer_store import AnswerStore, JsonLines
from training.describe.llm.client import RequestFailedError
from training.describe.llm.providers import Request
from training.utils.io import naming_full_disk

RECORD = "exported.jsonl"
URL = "/v1/chat/completions"


class ExportedRequest(NamedTuple):
    """Facts of a request that its stored answer has beside it."""

    key: str
    file_path: str
    kind: str
    attempt: int


class ExportRecord:
    """OUT/exported.jsonl: a row {"file", "requests"} for each file, and {"returned"} for requests that came back unanswered.

    Opening it finishes or removes a file that a killed process has left. Raises RuntimeError when another process has it open.
    """

    def __init__(self, folder: Path, answers: AnswerStore) -> None:
        self.folder, self.lines = folder, JsonLines(folder / RECORD)
        self.requests: dict[str, ExportedRequest] = {}
        self.files: list[str] = []
        # Keys of requests whose answers are awaited.
        self.out: set[str] = set()
        for _, row in self.lines.rows():
            if "file" in row:
                self._note(row["file"], [ExportedRequest(*values) for values in row["requests"]])
            self.out -= {*row.get("returned", ())}
        self.out = {key for key in self.out if key not in answers}
        for path in folder.glob(".requests-*.jsonl.tmp"):
            name = path.name.removeprefix(".").removesuffix(".tmp")
            if name in self.files and not (folder / name).exists():
                os.replace(path, folder / name)
            else:
                path.unlink()

    def add_file(self, name: str, requests: list[ExportedRequest]) -> None:
        """Records the requests of a file, on disk when it returns."""
        self.lines.append({"file": name, "requests": [list(request) for request in requests]})
        self.lines.sync()
        self._note(name, requests)

    def give_back(self, keys: Iterable[str]) -> None:
        """Records that these requests have no answer and may be written again."""
        if returned := sorted(self.out & {*keys}):
            self.lines.append({"returned": returned})
            self.out -= {*returned}

    def _note(self, name: str, requests: list[ExportedRequest]) -> None:
        self.files.append(name)
        self.requests |= {request.key: request for request in requests}
        self.out |= {request.key for request in requests}


class RequestFiles:
    """Writer of OUT/requests-NNNN.jsonl, each of at most so many requests and bytes. Use as a context manager: a file that an
    error interrupts is not kept."""

    def __init__(self, record: ExportRecord, most_requests: int, most_bytes: int) -> None:
        self.record, self.most_requests, self.most_bytes = record, most_requests, most_bytes
        self.written: list[Path] = []
        self.count = self.bytes = 0
        self._file: IO[bytes] | None = None
        self._requests: list[ExportedRequest] = []
        self._keys, self._size = set[str](), 0

    def __enter__(self) -> RequestFiles:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is None:
            return
        if error is None:
            self._finish()
            return
        self._file.close()
        self._temporary.unlink()

    def __contains__(self, key: str) -> bool:
        """True for a request that is written or in an earlier file, and not answered."""
        return key in self.record.out or key in self._keys

    def add(self, request: Request, body: dict[str, Any]) -> None:
        """Writes one request. Raises RequestFailedError for one larger than a file, OSError where it cannot be written."""
        line = json.dumps({"custom_id": request.key, "method": "POST", "url": URL, "body": body}).encode() + b"\n"
        if len(line) > self.most_bytes:
            raise RequestFailedError(f"its request has {len(line):,} bytes, a file at most {self.most_bytes:,}")
        full = len(self._requests) == self.most_requests or self._size + len(line) > self.most_bytes
        if self._file is not None and full:
            self._finish()
        with naming_full_disk(self._path):
            if self._file is None:
                self._size, self._file = 0, open(self._temporary, "wb")
            self._file.write(line)
        self._size += len(line)
        self._keys.add(request.key)
        self._requests.append(ExportedRequest(request.key, request.file_path, request.kind, request.attempt))
        self.count, self.bytes = self.count + 1, self.bytes + len(line)

    @property
    def _path(self) -> Path:
        return self.record.folder / f"requests-{len(self.record.files) + 1:04}.jsonl"

    @property
    def _temporary(self) -> Path:
        return self._path.with_name(f".{self._path.name}.tmp")

    def _finish(self) -> None:
        assert self._file is not None
        path, temporary = self._path, self._temporary
        with naming_full_disk(path), self._file as file:
            file.flush()
            os.fsync(file.fileno())
        self.record.add_file(path.name, self._requests)
        os.replace(temporary, path)
        self.written.append(path)
        self._file, self._requests = None, []
