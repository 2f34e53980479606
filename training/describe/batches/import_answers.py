"""Reads the answers to exported requests, stores them in OUT/answers.jsonl, and checks and records the texts of the images whose
answers are complete.

Takes the output and error files of OpenAI's Batch API and the output of `vllm run-batch`, in any order, again and in parts. The
options are those of `export-requests`.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from training.describe.generate import GenerationOptions
from training.utils import cli

if TYPE_CHECKING:
    from rich.console import Console

    from training.describe.batches.request_files import ExportRecord
    from training.describe.session import GenerationResult, GenerationSession


@dataclass(frozen=True)
class Arguments(GenerationOptions):
    """Arguments of the command."""

    # Files of answers.
    answers: tuple[Path, ...] = ()

    def check(self) -> None:
        self.require(bool(self.model), "model", "given: the name that the requests were exported with")
        self.require(bool(self.answers), "answers", "one or more files")
        super().check()


@dataclass
class ImportCounts:
    """Numbers of lines by what became of them."""

    stored: int = 0
    # Stored before, and of requests that this folder has not exported.
    known: int = 0
    foreign: int = 0
    # Requests without an answer by reason, to be exported again; and reasons of those that failed for good, by key.
    returned: Counter[str] = field(default_factory=Counter)
    failed: dict[str, str] = field(default_factory=dict)


def main(argv: Sequence[str]) -> None:
    """Entry point; raises what `import_answers` raises."""
    arguments = cli.parse(Arguments, argv, "training.describe import-answers", __doc__)
    # Not at the top: --help need not wait for it.
    from training.utils.terminal import make_console

    print(import_answers(arguments, make_console(stderr=True))[0].descriptions)


def import_answers(options: Arguments, console: Console) -> tuple[GenerationResult, ImportCounts]:
    """Stores the answers, then records the images. Raises what `read_results` raises, before anything is written, ValueError
    where no line answers a request of the folder, and what `read_inputs` and `open_session` raise."""
    import asyncio

    from training.describe.batches.answer_files import read_results
    from training.describe.batches.request_files import RECORD, ExportRecord
    from training.describe.batches.requesting import FailedRequests
    from training.describe.text_generation import open_session, read_inputs

    lines = sum(1 for path in options.answers for _ in read_results(path))
    if not (options.out / RECORD).is_file():
        raise FileNotFoundError(f"{options.out} has no {RECORD}: `describe export-requests` writes the requests first")
    inputs = read_inputs(options, "openai")
    with open_session(options, inputs, console) as session:
        record = ExportRecord(options.out, session.answers)
        with closing(record.lines):
            counts = _store(options.answers, session, record)
            if lines and counts.foreign == lines:
                names = ", ".join(map(str, options.answers))
                raise ValueError(f"no line of {names} answers a request that was exported to {options.out}")
            result = asyncio.run(session.run(FailedRequests(counts.failed), lambda question: True))
    _print(counts, console)
    return result, counts


def _store(paths: Sequence[Path], session: GenerationSession, record: ExportRecord) -> ImportCounts:
    from training.describe.batches.answer_files import read_results
    from training.describe.llm.answer_store import Answer

    counts, unanswered = ImportCounts(), dict[str, str]()
    for path in paths:
        for key, found in read_results(path):
            request = record.requests.get(key)
            if request is None:
                counts.foreign += 1
            elif key in session.answers:
                counts.known += 1
            elif isinstance(found, Answer):
                facts = {"file_path": request.file_path, "kind": request.kind, "attempt": request.attempt}
                session.answers.add(key, found, **facts)
                session.meter.count(found)
                counts.stored += 1
            elif found.final:
                counts.failed[key] = found.reason
            else:
                unanswered[key] = found.reason
    session.answers.lines.sync()
    unanswered = {key: reason for key, reason in unanswered.items() if key not in session.answers}
    counts.failed = {key: reason for key, reason in counts.failed.items() if key not in session.answers}
    counts.returned.update(unanswered.values())
    record.give_back([*unanswered, *counts.failed])
    return counts


def _print(counts: ImportCounts, console: Console) -> None:
    console.print(f"{counts.stored} answers stored, {counts.known} stored before, {len(counts.failed)} requests failed")
    if counts.foreign:
        console.print(f"{counts.foreign} lines are of no request that was exported here")
    for reason, count in counts.returned.most_common(5):
        console.print(f"{count} without an answer: {reason}")
    if counts.returned:
        console.print("`describe export-requests` writes them again; --without leaves out a field that is not taken")


if __name__ == "__main__":
    sys.exit(cli.run(main))
