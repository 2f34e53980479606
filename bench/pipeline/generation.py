"""Throughput and memory of generation against a server in another process: `python -m bench.pipeline.generation`.

The server answers every request after 20 ms, so C requests at a time allow C / 0.020 answers a second. For each C, the same
calls are also made by a client that does nothing but write prepared bytes to sockets: what is missing there is the machine's,
not the generator's. Images are JPEG files of the size of CUHK-PEDES, checks and stores are those of a real generation.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.request import urlopen

import numpy as np
from PIL import Image

from bench.harness.memory import resident_mib
from bench.harness.results import ROOT
from training.describe.generation import Generator, Item, Judge, Task
from training.describe.llm.answer_store import Answers, Records
from training.describe.llm.client import Client, Service
from training.describe.llm.executor import Sampling
from training.describe.llm.limits import Budget, Halt, Meter
from training.describe.llm.providers import Ask, OpenAIProvider, load_picture
from training.describe.text.prompts import build_prompt, load_schema
from training.describe.text.text_checks import Limits

SECONDS = 0.020
# Height and width of the images, pixels.
SIZE = (384, 128)


@contextmanager
def server(seconds: float) -> Iterator[int]:
    """The port of a server in a process of its own that answers after so many seconds."""
    command = [sys.executable, "-m", "bench.pipeline.fake_openai", "--seconds", str(seconds)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield int(process.stdout.readline())
    finally:
        process.terminate()
        process.wait()


def make_items(folder: Path, count: int) -> list[Item]:
    """So many images of different bytes: one smooth picture, with a comment of its own in each file."""
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 255, (12, 4, 3), dtype=np.uint8))
    picture = small.resize(SIZE[::-1], Image.Resampling.BICUBIC)
    items = []
    for number in range(count):
        path = folder / f"{number}.jpg"
        picture.save(path, quality=90, comment=str(number).encode())
        items.append(Item(path.name, path, number, 0))
    return items


def make_task() -> Task:
    """What a generation asks for by default, without the search for near-duplicates, whose memory is its own."""
    schema = load_schema()
    prompts = {kind: build_prompt(schema, kind, (), (10, 45)) for kind in ("identity", "clothing")}
    return Task("fake", {}, Sampling(attempts=1), lambda kind, style: prompts[kind], Judge(schema, Limits((3, 80))))


async def generate(items: list[Item], port: int, concurrency: int, out: Path) -> tuple[float, list[float]]:
    """(answers a second, resident MiB after every tenth of the images)"""
    answers, records = Answers(out / "answers.jsonl"), Records(out / "descriptions.jsonl")
    meter, halt, memory = Meter(Budget(), 0, 0, 0, 0, 0.0), Halt(), list[float]()
    count = 0

    def recorded(row: dict) -> None:
        nonlocal count
        count += 1
        if count % max(1, len(items) // 10) == 0:
            memory.append(resident_mib("VmRSS"))

    async with Client(Service(f"http://127.0.0.1:{port}/v1", concurrency=concurrency), "", meter, halt) as client:
        begun = time.perf_counter()
        await Generator(make_task(), OpenAIProvider(client, "fake"), answers, records, meter, halt, recorded).run(items)
        seconds = time.perf_counter() - begun
    if halt.error is not None:
        # A run that stopped early is no measurement.
        raise halt.error
    answers.lines.close()
    records.lines.close()
    return meter.answers / seconds, memory


async def bare(item: Item, port: int, concurrency: int, calls: int) -> float:
    """Answers a second of a client that only writes prepared bytes and reads replies."""
    content = asyncio.Queue[bytes]()
    prompt = make_task().prompts("identity", 0)
    ask = Ask("0" * 64, item.file_path, 0, prompt, load_picture(item.path), 0, 0.7, 0, 300)
    body = json.dumps(OpenAIProvider.body_of("fake", ask)).encode()
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

    begun = time.perf_counter()
    await asyncio.gather(*(work() for _ in range(concurrency)))
    return calls / (time.perf_counter() - begun)


def server_time(port: int) -> tuple[int, float]:
    """(replies so far, seconds that the server itself took for them)"""
    with urlopen(f"http://127.0.0.1:{port}/") as answer:
        told = json.loads(answer.read())
    return told["replies"], told["spent"]


def row(items: list[Item], port: int, concurrency: int, calls: int) -> tuple[float, float, float, float]:
    """One measurement: (answers a second, CPU ms an answer, the server's own ms an answer, the bare client's answers a
    second)."""
    before = server_time(port)
    with tempfile.TemporaryDirectory() as out:
        cpu = time.process_time()
        rate, _ = asyncio.run(generate(items[: calls // 2], port, concurrency, Path(out)))
        cpu = time.process_time() - cpu
    replies, spent = (now - then for now, then in zip(server_time(port), before, strict=True))
    return rate, 1000 * cpu / calls, 1000 * spent / replies, asyncio.run(bare(items[0], port, concurrency, calls))


def main() -> None:
    """Prints a line for each concurrency (best and median of the repeats), then the memory over many calls."""
    parser = argparse.ArgumentParser("python -m bench.pipeline.generation", description=__doc__)
    parser.add_argument("--concurrency", type=int, nargs="*", default=[2, 4, 8, 12, 16, 32])
    parser.add_argument("--seconds", type=float, default=2.0, help="of each throughput measurement")
    parser.add_argument("--repeats", type=int, default=5, help="measurements of each concurrency")
    parser.add_argument("--calls", type=int, default=20_000, help="of the measurement of memory; 0: none")
    known = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, server(SECONDS) as port:
        most = int(max(known.concurrency, default=1) / SECONDS * known.seconds / 2)
        items = make_items(Path(folder), max(known.calls // 2, most))
        print(
            "concurrency  answers/s (median)  % of allowed (median)  bare client %  CPU ms/answer  server ms",
            flush=True,
        )
        for concurrency in known.concurrency:
            allowed = concurrency / SECONDS
            calls = int(allowed * known.seconds / 2) * 2
            rates, cpu, own, references = zip(
                *(row(items, port, concurrency, calls) for _ in range(known.repeats)), strict=True
            )
            best, middle, reference = max(rates), statistics.median(rates), max(references)
            shares = f"{best / allowed:19.1%} ({middle / allowed:5.1%}) {reference / allowed:14.1%}"
            print(
                f"{concurrency:11d} {best:10.0f} ({middle:6.0f}) {shares} {min(cpu):14.2f} {min(own):10.2f}", flush=True
            )
        if known.calls:
            with tempfile.TemporaryDirectory() as out:
                _, memory = asyncio.run(generate(items[: known.calls // 2], port, 16, Path(out)))
            print(f"resident MiB after each tenth of {known.calls} calls: {', '.join(f'{m:.1f}' for m in memory)}")


if __name__ == "__main__":
    main()
