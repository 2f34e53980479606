"""Outcomes of the GPU tests, case by case, and the cases of the benchmark that they remove.

tests/gpu/conftest.py writes a file of JSON lines for each process: first the tests that it will run, with their parameters, then
a line for each that begins and one for each that passed. A test without the latter failed, or its process was stopped or died.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.gpu.processes import PROCESSES, name_of
from bench.gpu.steps import Outcome

SUFFIX = ".tests.jsonl"
# Parameters of tests that a case of the benchmark has with one value only: it is not packed, runs forward in time, ….
FIXED: dict[str, dict[str, str]] = {
    "selective_scan": {"states": "16", "reverse": "False", "packed": "False", "softplus": "True"},
    "causal_conv1d": {"width": "4", "reverse": "False", "packed": "False"},
    "hsic": {"estimator": "biased"},
}
FIXED["selective_scan"]["groups"] = "(1, 1)"
# A parameter with one of these names belongs to another case, whatever its value.
OTHER = ("padding", "bad", "where", "dout", "absent", "batch", "gradient", "state", "variant")
# Parameters that name a case, without one of which a test says nothing about any.
NAMING = ("dtype", "length", "samples", "shape", "states")


@dataclass(frozen=True)
class Test:
    """A test of an operator by a backend, with its parameters as text."""

    op: str
    backend: str
    name: str
    parameters: dict[str, str]

    # pytest must not take it for a class of tests.
    __test__ = False

    def plain(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)

    def concerns(self, op: str, backend: str, case: Mapping[str, str]) -> bool:
        """True if the test is about a case of the benchmark.

        It is if it names a dtype or a size, and nothing that it names is otherwise in the case (a parameter that no case has,
        such as the padding of packed sequences, is). A case is compared with float64 before it is timed in any event.

        Args:
            case: `dtype`, `order`, `length` of a stream; `dtype`, `kernel`, `samples` of a pair.
        """
        named = dict(self.parameters)
        if (op, backend) != (self.op, self.backend) or not set(NAMING) & named.keys() or set(OTHER) & named.keys():
            return False
        if "shape" in named:
            sizes = ast.literal_eval(named.pop("shape"))
            named |= {"samples": str(sizes[0])} if op == "hsic" else {"length": str(sizes[2])}
            named |= {"states": str(sizes[3])} if len(sizes) == 4 else {}
        has = {**FIXED[op], **case}
        return all(has[key] == value for key, value in named.items() if key in has)


@dataclass(frozen=True)
class Refused:
    """Tests that did not pass, and (operator, backend) of which a process left no list of tests."""

    tests: list[Test]
    untested: set[tuple[str, str]]


def read_tests(path: Path, op: str, backend: str) -> tuple[list[Test], list[Test]]:
    """Returns (tests that did not pass, all tests) of a process; a last line that was cut off is ignored."""
    found: dict[str, Test] = {}
    passed: set[str] = set()
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if "parameters" in entry:
            found[entry["test"]] = Test(op, backend, entry["test"], entry["parameters"])
        elif entry["passed"]:
            passed.add(entry["test"])
    return [test for name, test in found.items() if name not in passed], list(found.values())


def refused(folder: Path, done: Mapping[str, Outcome]) -> Refused:
    """Tests and backends that the outcomes of a run, in `folder`, exclude from the benchmark."""
    failed: list[Test] = []
    untested: set[tuple[str, str]] = set()
    for (op, backend), processes in PROCESSES.items():
        for number in range(1, processes + 1):
            name = name_of(op, backend, number)
            bad, everything = read_tests(folder / f"{name}{SUFFIX}", op, backend) if name in done else ([], [])
            failed += bad
            if not everything:
                untested.add((op, backend))
    return Refused(failed, untested)


def read_failed(path: Path) -> list[Test]:
    """Tests from the file that the benchmark is given."""
    return [Test(**entry) for entry in json.loads(path.read_text())]


def remaining(tests: Sequence[Test], op: str, backends: Sequence[str], case: Mapping[str, str]) -> tuple[str, ...]:
    """Backends of a case that no failed test concerns, in their order."""
    return tuple(b for b in backends if not any(test.concerns(op, b, case) for test in tests))
