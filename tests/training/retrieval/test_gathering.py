"""Calls of many threads that are answered together: the same results, the own errors, no waiting for others."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from tests.support.retrieval.galleries import clustered, unit
from training.retrieval.engines.engine import Filter, Metadata
from training.retrieval.engines.exact import ExactEngine
from training.retrieval.gathering import Gathered
from training.retrieval.scoring import Query, best, exact_scores


class Function:
    """Squares numbers; its first call waits until `released`; refuses numbers below 0."""

    def __init__(self) -> None:
        self.calls: list[list[int]] = []
        self.released = threading.Event()

    def __call__(self, numbers: list[int]) -> list[int]:
        self.calls.append(numbers)
        if len(self.calls) == 1:
            assert self.released.wait(30)
        if min(numbers) < 0:
            raise ValueError(f"below 0: {numbers}")
        return [number**2 for number in numbers]


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def gather(function: Function, most: int, numbers: list[int]) -> list[int | str]:
    """Results or errors of calls, of which all but the first come while the first one runs."""
    gathered = Gathered(function, most)

    def call(number: int) -> int | str:
        try:
            return gathered(number)
        except ValueError as error:
            return str(error)

    with ThreadPoolExecutor(len(numbers)) as pool:
        first = pool.submit(call, numbers[0])
        wait_for(lambda: len(function.calls) == 1)
        rest = [pool.submit(call, number) for number in numbers[1:]]
        wait_for(lambda: len(gathered._waiting) == len(rest))
        function.released.set()
        return [future.result(30) for future in (first, *rest)]


def test_what_waits_is_one_call():
    function = Function()
    assert gather(function, 32, [3, 1, 4, 1, 5]) == [9, 1, 16, 1, 25]
    assert [sorted(call) for call in function.calls] == [[3], [1, 1, 4, 5]]


def test_a_call_has_a_largest_size():
    function = Function()
    assert gather(function, 2, [1, 2, 3, 4, 5, 6]) == [1, 4, 9, 16, 25, 36]
    assert [len(call) for call in function.calls] == [1, 2, 2, 1]


def test_each_caller_has_the_error_of_its_own_argument():
    function = Function()
    assert gather(function, 32, [1, 2, -3, 4, -5]) == [1, 4, "below 0: [-3]", 16, "below 0: [-5]"]


def test_a_call_alone_waits_for_nobody():
    function = Function()
    function.released.set()
    gathered = Gathered(function, 32)
    assert [gathered(2), gathered(3)] == [4, 9] and function.calls == [[2], [3]]


@pytest.mark.parametrize("parts", [1, 3])
def test_searches_of_many_threads_find_what_one_finds(parts, monkeypatch):
    """Equal images tie in the order of the gallery, whoever else searches; with filters and without."""
    width, count, k = 16, 6000, 12
    rng = np.random.default_rng(0)
    table = clustered(400, width)[rng.integers(0, 400, count)]
    engine = ExactEngine(2 * width)
    metadata = Metadata(np.arange(count, dtype=float), {"camera": np.arange(count) % 3}, {"camera": ["", "a", "b"]})
    for rows in np.array_split(np.arange(count), parts):
        codes = {"camera": metadata.codes["camera"][rows]}
        engine.add(rows, table[rows], Metadata(metadata.times_N[rows], codes, metadata.values))
    sizes: list[int] = []
    products = engine._products
    monkeypatch.setattr(engine._scores, "_function", lambda queries: (sizes.append(len(queries)), products(queries))[1])
    searches = []
    for i in range(64):
        vector_E = unit(rng.standard_normal(width))
        where = (Filter(), Filter({"camera": ("b",)}), Filter(start=500, end=2000))[i % 3]
        searches.append((Query(vector_E, vector_E, (0.0, 0.7, 4.0)[i % 3 - 1]), where))

    def search(asked: tuple[Query, Filter]) -> list[int]:
        query, where = asked
        ids = np.sort(engine.search(query.vector(2), k, where))
        return ids[best(exact_scores(table[ids], query).score_M, k)].tolist()

    alone = [search(asked) for asked in searches]
    for (query, where), found in zip(searches, alone, strict=True):
        kept = np.flatnonzero(metadata.matches(where, np.arange(count)))
        assert found == kept[best(exact_scores(table[kept], query).score_M, k)].tolist()
    assert set(sizes) == {1}
    with ThreadPoolExecutor(16) as pool:
        with engine._scores._turn:
            together = [pool.submit(search, asked) for asked in searches]
            wait_for(lambda: len(engine._scores._waiting) == 16)
        assert [future.result(30) for future in together] == alone
    assert max(sizes) == 16
