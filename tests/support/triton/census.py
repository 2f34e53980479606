"""Counts what Triton compiles for the GPU tests and for the GPU benchmark: `python -m tests.support.triton.census [tests/gpu/…]`.

The tests of tests/gpu run as on a GPU, on tensors without memory, and nothing is compiled or run: their launches are caught
where Triton would look for the device, and specialised by Triton's own rule. Comparisons always hold. Where a test looks at a
value it ends there, so that launches after that are not counted; few do.
"""

from __future__ import annotations

import argparse
import json
import resource
from collections import Counter, defaultdict
from typing import Any

import pytest
import torch
import triton
from triton.compiler import ASTSource, make_backend
from triton.runtime import jit

from bdam_fast import _backend
from tests.support.triton.launches import TARGETS
from tests.support.triton.sample import function_of, shared

Key = tuple[str, str]


class Census:
    """A plugin of pytest that notes the launches of each test."""

    def __init__(self) -> None:
        self.sources: dict[Key, tuple[ASTSource, Any]] = {}
        self.tests: dict[str, set[Key]] = defaultdict(set)
        self.now = ""

    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        self.now = item.nodeid

    def record(self, function: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        """Stands in for JITFunction.run."""
        backend = make_backend(TARGETS["sm_90"])
        binder = jit.create_function_from_signature(function.signature, function.params, backend)
        bound, specialization, options = binder(*args, **kwargs)
        options, signature, constexprs, attrs = function._pack_args(backend, kwargs, bound, specialization, options)
        source = ASTSource(function, signature, constexprs, attrs)
        key = (function.__name__, f"{source.signature} {source.constants} {source.attrs} {options}")
        self.sources.setdefault(key, (source, options))
        self.tests[self.now].add(key)


def pretend(census: Census) -> None:
    """Lets the GPU tests believe in a GPU on which every comparison holds. For a process of its own."""
    torch.cuda.is_available = lambda: True
    torch.cuda.get_device_capability = lambda device=None: (9, 0)
    torch.compile = lambda function, **_: function
    from tests.support import operators

    def holds(*_: Any, **__: Any) -> bool:
        return True

    operators.assert_close = operators.compare = operators.same_bits = torch.testing.assert_close = holds
    from tests.support import gpu

    def flat(call: Any, problem: dict[str, torch.Tensor], *_: Any) -> None:
        gpu.flat(call, list(operators.leaves(problem).values()))

    gpu.DEVICE, gpu.BACKENDS, gpu.on_device.__defaults__ = "meta", ["triton"], ("meta",)
    gpu.backends = pytest.mark.parametrize("backend", gpu.BACKENDS)
    gpu.hsic_backends = gpu.backends
    gpu.check_graph = gpu.check_side_stream = gpu.check_autocast = flat
    gpu.check_compiled = lambda call, problems: [flat(call, problem) for problem in problems]
    gpu.check_repeats = lambda run, times=5: run()
    gpu.references = lambda op, problem, options: ({}, {})
    _backend._require_gpu_kernel = holds
    register = torch.library.register_fake

    def register_others(name: Any, *args: Any, **kwargs: Any) -> Any:
        """Without a fake the kernel itself serves tensors without memory."""
        return None if str(name).startswith("bdam_fast_triton::") else register(name, *args, **kwargs)

    torch.library.register_fake = register_others
    jit.JITFunction.run = lambda function, *args, **kwargs: census.record(function, *args, **kwargs)


def of_tests(arguments: list[str]) -> Census:
    """The launches of the GPU tests. This process is of no other use afterwards."""
    census = Census()
    pretend(census)
    pytest.main(["-p", "no:cacheprovider", "--tb=line", "-q", "-rf", *arguments], plugins=[census])
    return census


def of_benchmark() -> Census:
    """The launches of the GPU benchmark's cases."""
    census = Census()
    pretend(census)
    from bench.gpu import cases
    from bench.gpu.processes import MEASURED

    class NoGenerator:
        """Tensors without memory draw no numbers."""

        def __init__(self, device: str) -> None: ...

        def manual_seed(self, seed: int) -> None: ...

    torch.Generator = NoGenerator
    for group in cases.groups({op: ["triton"] for op in MEASURED}, "meta"):
        census.now = group.title
        for case in group.cases():
            case.variants[0].call()
    return census


def label(source: ASTSource) -> str:
    """Operator and name of a kernel, with its tile where that decides how long it takes to compile."""
    name = f"{source.fn.__module__.split('.')[-2]} {source.fn.__name__}"
    tile = source.fn.arg_names.index("BLOCK") if "small" in name else None
    return name if tile is None else f"{name} {source.constants[tile,]}"


def by_function(census: Census, seconds: dict[str, float]) -> dict[str, float]:
    """Seconds that Triton compiles for each test function, each variant counted where it is first launched."""
    taken: dict[str, float] = defaultdict(float)
    known: set[Key] = set()
    for test, keys in census.tests.items():
        taken[function_of(test)] += sum(seconds[label(census.sources[key][0])] for key in keys - known)
        known |= keys
    return {name: round(value) for name, value in taken.items() if value >= 1}


def slowest(census: Census, seconds: dict[str, float], shares: int) -> float:
    """Seconds that Triton compiles in the slowest of so many processes, each of which compiles what its tests launch."""
    tests, weights = list(census.tests.items()), by_function(census, seconds)
    functions = [function_of(test) for test, _ in tests]
    found = []
    for number in range(1, shares + 1):
        keys = set().union(*(tests[at][1] for at in shared(functions, weights, number, shares)))
        found.append(sum(seconds[label(census.sources[key][0])] for key in keys))
    return round(max(found))


def compile_seconds(census: Census, most: int) -> dict[str, float]:
    """Mean seconds of a processor that compiling for sm_90 takes, of up to `most` variants of each label."""
    taken: dict[str, list[float]] = defaultdict(list)
    triton.knobs.compilation.always_compile = True
    for source, options in census.sources.values():
        times = taken[label(source)]
        if len(times) < most:
            before = _processor_seconds()
            triton.compile(source, target=TARGETS["sm_90"], options=options.__dict__)
            times.append(_processor_seconds() - before)
    return {name: sum(times) / len(times) for name, times in taken.items()}


def _processor_seconds() -> float:
    """Seconds that this process and the compilers that it has started have used."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)


def main() -> None:
    """Prints the counts as JSON, and with --compile the seconds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--benchmark", action="store_true", help="count for the GPU benchmark instead of the tests")
    parser.add_argument("--shares", type=int, default=0, metavar="N", help="seconds of N processes, by the known costs")
    parser.add_argument("--compile", type=int, default=0, metavar="N", help="compile N variants of each kernel too")
    options, arguments = parser.parse_known_args()
    census = of_benchmark() if options.benchmark else of_tests(arguments or ["tests/gpu"])
    counts = Counter(label(source) for source, _ in census.sources.values())
    found: dict[str, Any] = {"triton": dict(sorted(counts.items()))}
    if options.shares:
        from bench.gpu.processes import COSTS

        found |= {"seconds": by_function(census, COSTS["triton_seconds"])} if options.shares > 1 else {}
        found["slowest"] = slowest(census, COSTS["triton_seconds"], options.shares)
    print(json.dumps(found))
    if options.compile:
        seconds = compile_seconds(census, options.compile)
        print(json.dumps({name: round(value, 1) for name, value in sorted(seconds.items())}))


if __name__ == "__main__":
    main()
