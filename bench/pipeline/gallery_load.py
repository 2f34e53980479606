"""Many clients of one gallery: `python -m bench.pipeline.gallery_load --run RUN` (or --onnx FOLDER).

A gallery of clustered embeddings is served by `python -m training.serve`. Each client sends a search of the API with a text of
its own, reads the answer, pauses, and sends the next; meanwhile connections that send nothing stay open. Printed: latencies as
the clients see them, errors, searches a second, and the memory of the server after a warm-up and at the end.
"""

from __future__ import annotations

import http.client
import json
import random
import socket
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlencode, urlsplit

import numpy as np
import tyro

from training.retrieval.embedders import open_embedder
from training.retrieval.gallery_writer import open_writer
from training.retrieval.store import About, Gallery, ImageRow

WRITTEN_AT_ONCE = 10_000
WORDS = (
    ("man", "woman", "boy", "girl", "person"),
    ("red", "blue", "green", "black", "white", "gray", "pink", "yellow", "brown", "purple"),
    ("coat", "shirt", "jacket", "dress", "sweater"),
    ("black", "blue", "white", "gray", "brown"),
    ("trousers", "jeans", "shorts", "skirt"),
    ("backpack", "handbag", "hat", "scarf", "umbrella"),
)


@dataclass(frozen=True)
class Arguments:
    """Arguments of the command."""

    # Run folder, or folder of an export, whose model reads the texts.
    run: Path | None = None
    onnx: Path | None = None
    images: int = 100_000
    clients: int = 32
    seconds: float = 60.0
    # Seconds between the answer to a client and its next search; 0 for as fast as it can.
    pause: float = 1.0
    # Connections that send nothing.
    idle: int = 1000
    engine: str = "exact"
    # Folder for the gallery, kept when it is given.
    gallery: Path | None = None


@dataclass
class Measured:
    """Seconds of each search, and the errors."""

    seconds: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


def main() -> None:
    """Entry point. Raises SystemExit with status 1 after an error of any client."""
    arguments = tyro.cli(Arguments, description=__doc__)
    with ExitStack() as stack:
        folder = arguments.gallery or Path(stack.enter_context(tempfile.TemporaryDirectory())) / "gallery"
        if not folder.exists():
            fill(folder, open_embedder(arguments.run, arguments.onnx, "cpu").about, arguments.images)
        process, address = serve(arguments, folder)
        stack.callback(process.wait)
        stack.callback(process.kill)
        host, port = urlsplit(address).hostname, urlsplit(address).port
        assert host is not None and port is not None
        idle = [socket.create_connection((host, port)) for _ in range(arguments.idle)]
        load(arguments, host, port, 5.0)
        before, start = memory_mb(process.pid), cpu_seconds(process.pid)
        measured = load(arguments, host, port, arguments.seconds)
        after, used = memory_mb(process.pid), cpu_seconds(process.pid) - start
        for connection in idle:
            connection.close()
        p50, p99 = (1000 * float(np.quantile(measured.seconds, q)) for q in (0.5, 0.99))
        count = len(measured.seconds)
        print(
            f"{arguments.images:,} images, {arguments.engine}, {arguments.clients} clients, pause {arguments.pause:g} s, "
            f"{arguments.idle} idle connections: {count} searches, {count / arguments.seconds:.1f} a second, p50 {p50:.0f} ms, "
            f"p99 {p99:.0f} ms, {len(measured.errors)} errors; {1000 * used / count:.1f} CPU-ms a search; "
            f"memory {before:.0f} MB, then {after:.0f} MB"
        )
        if measured.errors:
            print(measured.errors[:5])
            raise SystemExit(1)


def fill(folder: Path, about: About, images: int) -> None:
    """A gallery of images that do not exist, whose embeddings lie around 2,000 points; cameras and times in turn."""
    rng = np.random.default_rng(0)
    gallery, shape = Gallery.create(folder, about), (about.branches, about.width)
    points = rng.standard_normal((2000, *shape))
    with open_writer(gallery) as writer:
        for start in range(0, images, WRITTEN_AT_ONCE):
            count = min(WRITTEN_AT_ONCE, images - start)
            table = points[rng.integers(0, len(points), count)] + 0.7 * rng.standard_normal((count, *shape))
            table /= np.linalg.norm(table, axis=2, keepdims=True)
            numbers = range(start, start + count)
            rows = [ImageRow(f"/images/{i:08}.jpg", 1, 1, f"{i:064x}", f"c{i % 8}", float(i)) for i in numbers]
            writer.add(rows, table.reshape(count, -1).astype(np.float32))
    gallery.close()


def serve(arguments: Arguments, folder: Path) -> tuple[subprocess.Popen[str], str]:
    """The server, and its address."""
    model = ["--run", str(arguments.run)] if arguments.run else ["--onnx", str(arguments.onnx)]
    words = ["--gallery", str(folder), *model, "--port", "0", "--engine", arguments.engine, "--device", "cpu"]
    command = [sys.executable, "-m", "training.serve", *words]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    line = process.stdout.readline()
    return process, line.rsplit(" ", 1)[-1].strip()


def load(arguments: Arguments, host: str, port: int, seconds: float) -> Measured:
    """Searches of all clients for so many seconds."""
    measured, end = Measured(), time.monotonic() + seconds
    threads = [
        threading.Thread(
            target=search, args=(host, port, end, arguments.pause, random.Random(f"{i} {seconds}"), measured)
        )
        for i in range(arguments.clients)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return measured


def search(host: str, port: int, end: float, pause: float, rng: random.Random, measured: Measured) -> None:
    """Searches of one client."""
    connection = http.client.HTTPConnection(host, port, timeout=60)
    time.sleep(rng.random() * pause)
    while time.monotonic() < end:
        person, colour, top, other, bottom, thing = map(rng.choice, WORDS)
        text = f"a {person} in a {colour} {top} and {other} {bottom} with a {rng.choice(WORDS[1])} {thing}"
        address = f"/api/search?{urlencode({'q': text, 'k': 24, 'weak': 1})}"
        start = time.perf_counter()
        try:
            connection.request("GET", address)
            response = connection.getresponse()
            answer = json.loads(response.read())
            if response.status != 200 or len(answer["results"]) != 24:
                measured.errors.append(f"status {response.status}: {str(answer)[:200]}")
            measured.seconds.append(time.perf_counter() - start)
        except (OSError, ValueError, http.client.HTTPException) as error:
            measured.errors.append(f"{type(error).__name__}: {error}")
            connection.close()
        time.sleep(pause)
    connection.close()


def memory_mb(process: int) -> float:
    """Resident memory that is not of files: the table is in the page cache."""
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{process}/status").read_text().splitlines())
    return int(fields["RssAnon"].split()[0]) / 1000


def cpu_seconds(process: int) -> float:
    """CPU time of a process so far."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


if __name__ == "__main__":
    main()
