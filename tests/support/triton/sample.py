"""A sample of parametrised tests: a few runs of each test, in which every value of every parameter occurs."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

# Runs with one of these values are all in the sample: lengths of the GPU benchmark, which need no further compilation.
ALWAYS = {"length": {"77", "192", "193", "197", "2048"}}


def chosen(runs: Sequence[Mapping[str, str]]) -> list[int]:
    """Places, in order, of the runs of one test, given their parameters, that are in its sample.

    Run t of the sample has value t of the longest parameter, and t modulo their number of each other one; among parameters
    with equally many values the later ones change more slowly, so that their combinations occur too.
    """
    values: dict[str, list[str]] = defaultdict(list)
    for run in runs:
        for name, value in run.items():
            if value not in values[name]:
                values[name].append(value)
    slow: dict[str, int] = {}
    for name, own in values.items():
        before = [len(values[other]) for other in slow]
        slow[name] = len(own) ** before.count(len(own))
    count = max((len(values[name]) * slow[name] for name in values), default=1)
    wanted = [{name: own[t // slow[name] % len(own)] for name, own in values.items()} for t in range(count)]
    return [at for at, run in enumerate(runs) if run in wanted or any(run.get(k) in v for k, v in ALWAYS.items())]


def shared(functions: Sequence[str], weights: Mapping[str, float], number: int, shares: int) -> list[int]:
    """Places of the tests of process `number` of several: neighbours, which share much of what Triton compiles for them.

    Args:
        functions: the tests' functions, test by test.
        weights: seconds that Triton compiles for all tests of a function; every test counts for a second more.
    """
    counts = Counter(functions)
    own = [weights.get(name, 0.0) / counts[name] + 1 for name in functions]
    middles = (end - weight / 2 for end, weight in zip(accumulate(own), own, strict=True))
    return [at for at, middle in enumerate(middles) if min(shares, 1 + int(middle / sum(own) * shares)) == number]


def function_of(nodeid: str) -> str:
    """Name of the function of a test."""
    return nodeid.partition("[")[0].rpartition("::")[2]


def sampled(items: Sequence[Any]) -> list[Any]:
    """The sample of all tests of pytest, in their order."""
    tests: dict[str, list[Any]] = defaultdict(list)
    for item in items:
        tests[item.nodeid.partition("[")[0]].append(item)
    kept = set()
    for runs in tests.values():
        parameters = [getattr(run, "callspec", None) and run.callspec.params or {} for run in runs]
        plain = [{name: str(value) for name, value in p.items() if name != "backend"} for p in parameters]
        kept |= {runs[at] for at in chosen(plain)}
    return [item for item in items if item in kept]
