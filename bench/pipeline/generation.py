"""Throughput and memory of generation against a server in another process: `python -m bench.pipeline.generation`.

The server answers every request after 20 ms, so C requests at a time allow C / 0.020 answers per second. For each C, the same
requests are also sent by a bare client that only writes prepared bytes to sockets: its shortfall is that of the machine, not of
the generator. Images are JPEG files of the size of CUHK-PEDES, checks and stores are those of a real generation.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.request import urlopen

import numpy as np
import tyro
from PIL import Image

from bench.harness.memory import resident_mib
from bench.harness.results import ROOT
from training.describe.generation import DescriptionGenerator, GenerationTask, ImageItem, TextChecker
from training.describe.llm.answer_store import AnswerStore, DescriptionStore
from training.describe.llm.client import Client, Service
from training.describe.llm.executor import Sampling
from training.describe.llm.limits import Budget, StopSignal, UsageMeter
from training.describe.llm.providers import OpenAIProvider, Request, load_image
from training.describe.text.prompts import build_prompt, load_schema
from training.describe.text.text_checks import Limits

SECONDS = 0.020
# Height and width of the images, pixels.
SIZE = (384, 128)


@dataclass(frozen=True)
class Arguments:
    """Numbers of requests and repeats."""

    # Requests at a time.
    concurrency: tuple[int, ...] = (2, 4, 8, 12, 16, 32)
    # Seconds of each throughput measurement.
    seconds: float = 2.0
    # Measurements of each concurrency.
    repeats: int = 5
    # Requests of the memory measurement; 0: none.
    calls: int = 20_000


@contextmanager
def server(seconds: float) -> Iterator[int]:
    """Runs a server that answers after so many seconds, in a process of its own; yields its port."""
    command = [sys.executable, "-m", "bench.pipeline.fake_openai", "--seconds", str(seconds)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield int(process.stdout.readline())
    finally:
        process.terminate()
        process.wait()


def make_items(folder: Path, count: int) -> list[ImageItem]:
    """Writes image files of different bytes: one smooth image, with a different comment in each file."""
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 255, (12, 4, 3), dtype=np.uint8))
    image = small.resize(SIZE[::-1], Image.Resampling.BICUBIC)
    items = []
    for number in range(count):
        path = folder / f"{number}.jpg"
        image.save(path, quality=90, comment=str(number).encode())
        items.append(ImageItem(path.name, path, number, 0))
    return items


def make_task() -> GenerationTask:
    """The default task of a generation, without near-duplicate search, whose memory would be measured too."""
    schema = load_schema()
    prompts = {kind: build_prompt(schema, kind, (), (10, 45)) for kind in ("identity", "clothing")}
    return GenerationTask(
        "fake", {}, Sampling(attempts=1), lambda kind, style: prompts[kind], TextChecker(schema, Limits((3, 80)))
    )


async def generate(items: list[ImageItem], port: int, concurrency: int, out: Path) -> tuple[float, list[float]]:
    """Returns (answers per second, resident MiB after every tenth of the images)."""
    answers, descriptions = AnswerStore(out / "answers.jsonl"), DescriptionStore(out / "descriptions.jsonl")
    meter, stop_signal, memory = UsageMeter(Budget()), StopSignal(), list[float]()
    count = 0

    def on_record(row: dict) -> None:
        nonlocal count
        count += 1
        if count % max(1, len(items) // 10) == 0:
            memory.append(resident_mib("VmRSS"))

    async with Client(
        Service(f"http://127.0.0.1:{port}/v1", concurrency=concurrency), "", meter, stop_signal
    ) as client:
        started = time.perf_counter()
        await DescriptionGenerator(
            make_task(), OpenAIProvider(client, "fake"), answers, descriptions, meter, stop_signal, on_record
        ).run(items)
        seconds = time.perf_counter() - started
    if stop_signal.error is not None:
        # A run that stopped early is not a measurement.
        raise stop_signal.error
    answers.lines.close()
    descriptions.lines.close()
    return meter.answers / seconds, memory


async def bare(item: ImageItem, port: int, concurrency: int, calls: int) -> float:
    """Answers per second of a client that only writes prepared bytes and reads responses."""
    content = asyncio.Queue[bytes]()
    prompt = make_task().prompts("identity", 0)
    request = Request("0" * 64, item.file_path, 0, prompt, load_image(item.path), 0, 0.7, 0, 300)
    body = json.dumps(OpenAIProvider.request_body("fake", request)).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    for _ in range(calls):
        content.put_nowait(head + body)

    async def work() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while not content.empty():
            writer.write(content.get_nowait())
            reply = (await reader.readuntil(b"\r\n\r\n")).lower()
            await reader.readexactly(int(reply.split(b"content-length:")[1].split(b"\r\n")[0]))
        writer.close()

    started = time.perf_counter()
    await asyncio.gather(*(work() for _ in range(concurrency)))
    return calls / (time.perf_counter() - started)


def server_time(port: int) -> tuple[int, float]:
    """Returns (responses so far, seconds that the server itself took for them)."""
    with urlopen(f"http://127.0.0.1:{port}/") as response:
        counters = json.loads(response.read())
    return counters["replies"], counters["spent"]


def row(items: list[ImageItem], port: int, concurrency: int, calls: int) -> tuple[float, float, float, float]:
    """Measures once: (answers per second, CPU ms per answer, the server's own ms per answer, answers per second of the bare
    client)."""
    before = server_time(port)
    with tempfile.TemporaryDirectory() as out:
        cpu = time.process_time()
        rate, _ = asyncio.run(generate(items[: calls // 2], port, concurrency, Path(out)))
        cpu = time.process_time() - cpu
    replies, spent = (now - then for now, then in zip(server_time(port), before, strict=True))
    return rate, 1000 * cpu / calls, 1000 * spent / replies, asyncio.run(bare(items[0], port, concurrency, calls))


def main() -> None:
    """Prints a line for each concurrency (best and median of the repeats), then the memory over many requests."""
    arguments = tyro.cli(Arguments, description=__doc__)
    with tempfile.TemporaryDirectory() as folder, server(SECONDS) as port:
        most = int(max(arguments.concurrency, default=1) / SECONDS * arguments.seconds / 2)
        items = make_items(Path(folder), max(arguments.calls // 2, most))
        print(
            "concurrency  answers/s (median)  % of allowed (median)  bare client %  CPU ms/answer  server ms",
            flush=True,
        )
        for concurrency in arguments.concurrency:
            allowed = concurrency / SECONDS
            calls = int(allowed * arguments.seconds / 2) * 2
            rates, cpu, own, references = zip(
                *(row(items, port, concurrency, calls) for _ in range(arguments.repeats)), strict=True
            )
            best, middle, reference = max(rates), statistics.median(rates), max(references)
            shares = f"{best / allowed:19.1%} ({middle / allowed:5.1%}) {reference / allowed:14.1%}"
            print(
                f"{concurrency:11d} {best:10.0f} ({middle:6.0f}) {shares} {min(cpu):14.2f} {min(own):10.2f}", flush=True
            )
        if arguments.calls:
            with tempfile.TemporaryDirectory() as out:
                _, memory = asyncio.run(generate(items[: arguments.calls // 2], port, 16, Path(out)))
            print(f"resident MiB after each tenth of {arguments.calls} calls: {', '.join(f'{m:.1f}' for m in memory)}")


if __name__ == "__main__":
    main()
