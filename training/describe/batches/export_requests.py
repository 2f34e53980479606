"""Writes the requests of `describe generate` to files, OUT/requests-0001.jsonl and so on, in the format of OpenAI's Batch API,
which `vllm run-batch` reads too.

A request is written once: not when its answer is stored, nor while that of an earlier file is awaited. `import-answers` reads the
answers; the same command then writes the requests that are still needed, such as further attempts.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from training.config.fields import Within
from training.describe.generate import GenerationOptions
from training.utils import cli

if TYPE_CHECKING:
    from rich.console import Console

    from training.describe.batches.request_files import RequestFiles


@dataclass(frozen=True)
class Arguments(GenerationOptions):
    """Arguments of the command."""

    # Requests in a file at most; OpenAI takes 50,000.
    file_requests: Annotated[int, Within(1)] = 50_000
    # Size of a file at most, MB of 10^6 bytes; OpenAI takes 200.
    file_mb: Annotated[float, Within(0.001)] = 200.0
    # Fields that the server does not take; max_tokens is then sent as max_completion_tokens.
    without: tuple[Literal["response_format", "max_tokens", "temperature", "seed"], ...] = ()
    # Write again what was written before and has no answer: its batch was cancelled, or its answers are lost.
    lost: bool = False

    def check(self) -> None:
        self.require(bool(self.model), "model", "given: the service needs its name")
        super().check()


def main(argv: Sequence[str]) -> None:
    """Entry point; raises what `export_requests` raises."""
    arguments = cli.parse(Arguments, argv, "training.describe export-requests", __doc__)
    # Not at the top: --help need not wait for it.
    from training.utils.terminal import make_console

    for path in export_requests(arguments, make_console(stderr=True)).written:
        print(path)


def export_requests(options: Arguments, console: Console) -> RequestFiles:
    """Writes the requests of the images that have no record; the files it returns are written. Raises what `read_inputs` and
    `open_session` raise. A budget that is spent ends it early."""
    import asyncio

    from training.describe.batches.request_files import ExportRecord, RequestFiles
    from training.describe.batches.requesting import RequestExporter
    from training.describe.text_generation import open_session, read_inputs

    inputs = read_inputs(options, "openai")
    with open_session(options, inputs, console) as session:
        record = ExportRecord(options.out, session.answers)
        with closing(record.lines), RequestFiles(record, options.file_requests, int(options.file_mb * 1e6)) as files:
            if options.lost:
                record.give_back(record.out)
            # Requests of earlier files are paid for when their answers come.
            awaited = session.meter.in_flight = len(record.out)
            exporter = RequestExporter(files, session.meter, options.model, options.without)
            result = asyncio.run(session.run(exporter, lambda question: True))
    tokens, priced = session.meter.expected_tokens, options.budget.price_in or options.budget.price_out
    cost = f", about {files.count * options.budget.cost(*tokens):.2f} to pay" if priced else ""
    console.print(f"{files.count} requests in {len(files.written)} files of {files.bytes / 1e6:.1f} MB{cost}")
    if awaited:
        console.print(f"{awaited} requests of earlier files have no answer yet; --lost writes them again")
    if result.stop_reason:
        console.print(result.stop_reason)
    return files


if __name__ == "__main__":
    sys.exit(cli.run(main))
