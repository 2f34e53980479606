"""Engines against numpy: `python -m bench.retrieval.engines --images 1000000`.

One query, k 10, one thread, clustered embeddings of 2 x 256. Times are CPU time, measured in turns; the ratio of a turn is to
numpy's float32 product and top 10 of the same turn, and the median of all turns is printed. Recall is that of the ten best.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import tyro

from training.retrieval.engines import faiss_engine
from training.retrieval.engines.engine import Engine, Filter, Metadata, near
from training.retrieval.engines.exact import ExactEngine
from training.retrieval.engines.faiss_engine import FaissEngine
from training.retrieval.scoring import Query, best, exact_scores

WIDTH, K, CAMERAS = 256, 10, 8


@dataclass(frozen=True)
class Arguments:
    """Arguments of the command."""

    # Images of the gallery.
    images: int = 100_000
    # Number of queries, each answered by every engine.
    turns: int = 21
    # Engines beside numpy.
    engines: tuple[str, ...] = ("exact", "faiss")
    # Images that `faiss` scans at most; of more it searches the nearest cells.
    scanned: int = faiss_engine.SCANNED
    # Kind of queries: near one image, or between two, by both sides or by identity alone.
    queries: Literal["near", "between", "identity"] = "near"


def main() -> None:
    """Entry point."""
    arguments = tyro.cli(Arguments, description=__doc__)
    faiss_engine.SCANNED = arguments.scanned
    table_NW, queries = make(arguments.images, arguments.turns, arguments.queries)
    cameras = np.arange(arguments.images, dtype=np.int32) % CAMERAS
    values = {"camera": [f"c{i}" for i in range(CAMERAS)]}
    metadata = Metadata(np.zeros(arguments.images), {"camera": cameras}, values)
    found: dict[str, Callable[[np.ndarray, Query], np.ndarray]] = {
        "numpy": lambda query_W, query: by_numpy(table_NW, query_W)
    }
    for name in arguments.engines:
        engine = ExactEngine(2 * WIDTH) if name == "exact" else FaissEngine(2 * WIDTH, arguments.images, WIDTH)
        start = time.process_time()
        engine.add(np.arange(arguments.images), table_NW, metadata)
        print(f"{name}: built in {time.process_time() - start:.0f} CPU-s", flush=True)
        if isinstance(engine, FaissEngine):
            size = sum(engine.faiss.serialize_index(index).nbytes for index in (engine.flat, engine.index) if index)
            print(f"{engine.measured or 'a scan'}, {size / arguments.images:.0f} bytes an image", flush=True)
        found[name] = search(engine, table_NW, Filter())
        found[f"{name}, one of {CAMERAS} cameras"] = search(engine, table_NW, Filter({"camera": ("c3",)}))
    report(found, queries, table_NW, cameras)


def make(images: int, queries: int, kind: str = "near") -> tuple[np.ndarray, list[Query]]:
    """Table (N, 2 WIDTH) around one point for 50 images, and queries of a kind."""
    rng = np.random.default_rng(0)
    points = rng.standard_normal((max(images // 50, 1), 2, WIDTH), np.float32)
    table = np.empty((images, 2, WIDTH), np.float32)
    for start in range(0, images, 50_000):
        part = table[start : start + 50_000]
        part[:] = points[rng.integers(0, len(points), len(part))] + 0.7 * rng.standard_normal(part.shape, np.float32)
        part /= np.linalg.norm(part, axis=2, keepdims=True)
    made = []
    for row, other in rng.integers(0, images, (queries, 2)):
        sides = table[row] + (0.03 * rng.standard_normal((2, WIDTH), np.float32) if kind == "near" else table[other])
        identity, clothing = sides / np.linalg.norm(sides, axis=1, keepdims=True)
        made.append(Query(identity, clothing, 0.0 if kind == "identity" else 1.0))
    return table.reshape(images, 2 * WIDTH), made


def by_numpy(table_NW: np.ndarray, query_W: np.ndarray) -> np.ndarray:
    """The ten best by one float32 product."""
    scores_N = table_NW @ query_W
    part = np.argpartition(-scores_N, K)[:K]
    return part[np.argsort(-scores_N[part])]


def search(engine: Engine, table_NW: np.ndarray, where: Filter) -> Callable[[np.ndarray, Query], np.ndarray]:
    """Candidates of an engine, scored exactly."""

    def find(query_W: np.ndarray, query: Query) -> np.ndarray:
        ids_M = np.sort(engine.search(query_W, K, where))
        ids_M = ids_M[near(table_NW[ids_M], query_W, K)]
        return ids_M[best(exact_scores(table_NW[ids_M], query).score_M, K)]

    return find


def report(
    found: dict[str, Callable[[np.ndarray, Query], np.ndarray]],
    queries: list[Query],
    table_NW: np.ndarray,
    cameras_N: np.ndarray,
) -> None:
    """Prints ratio, CPU time and recall of each; the truth is in float64."""
    seconds: dict[str, list[float]] = {name: [] for name in found}
    recall: dict[str, list[float]] = {name: [] for name in found}
    for query in queries:
        query_W = query.vector(2)
        scores_N = np.concatenate([part @ query_W.astype(np.float64) for part in np.array_split(table_NW, 64)])
        for name, find in found.items():
            start = time.process_time()
            ids = find(query_W, query)
            seconds[name].append(time.process_time() - start)
            kept_N = np.where(cameras_N == 3, scores_N, -np.inf) if "camera" in name else scores_N
            recall[name].append(len({*ids.tolist()} & {*np.argsort(-kept_N)[:K].tolist()}) / K)
    print("| engine | CPU-ms | relative to numpy | recall@10 |\n|---|---|---|---|")
    for name in found:
        ratio = np.median(np.array(seconds[name]) / np.array(seconds["numpy"]))
        print(f"| {name} | {1000 * np.median(seconds[name]):.1f} | {ratio:.2f} | {np.mean(recall[name]):.3f} |")


if __name__ == "__main__":
    main()
