"""Helpers of the tests of the GPU kernels: where they run, the references on the same device, and what each op must survive.

With a GPU every test runs the CUDA C++ and the Triton kernels on it. Without one the same tests run the CPU kernels at
fewer lengths, so that the tests themselves are tested.
"""

import os
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support import operators
from tests.support.operators import compare, leaves, moved, packed_index, same_bits
from tests.support.operators.kernels import KERNELS

GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
# `make gpu` gives each backend a process of its own, and has the references run on the CPU under compute-sanitizer.
BACKENDS = os.environ.get("BDAM_FAST_GPU_BACKENDS", "cuda,triton" if GPU else "cpu").split(",")
REFERENCE = os.environ.get("BDAM_FAST_GPU_REFERENCE", DEVICE)
HALVES = [torch.float32, torch.bfloat16, torch.float16]
LENGTHS = [0, *operators.LENGTHS] if GPU else [0, 1, 2, 9, 33, 65, 130]
# The reference is a loop of some twenty tiny kernels a step: beyond this many steps the CPU runs it faster, and several
# processes do not wait for each other's.
LOOPED = 130
ORDERS = ["bld", "bdl"]
ONLY_GPU = pytest.mark.skipif(not GPU, reason="needs a GPU")
# The topmost mark varies fastest: the backends of one case follow each other and share its reference.
backends = pytest.mark.parametrize("backend", BACKENDS)
hsic_backends = pytest.mark.parametrize("backend", [b for b in BACKENDS if b != "cuda"])
small = pytest.mark.sanitize
Results = dict[str, Tensor]


def on_device(problem: dict[str, Any], device: str = DEVICE) -> dict[str, Any]:
    """A problem's tensors with their strides, where the tests run; what is no tensor stays."""
    return {name: moved(v, device) if isinstance(v, Tensor) else v for name, v in problem.items()}


OPERATORS = {kernel.name: kernel for kernel in KERNELS}


def with_broken_padding(problem: dict[str, Tensor], names: tuple[str, ...], index: Tensor) -> dict[str, Tensor]:
    """The problem with NaN in the padded steps of some tensors, memory order kept."""
    padded = (index < 0)[:, None]
    broken = {name: problem[name].clone().masked_fill_(padded, float("nan")) for name in names}
    assert all(broken[name].stride() == problem[name].stride() for name in names)
    return {**problem, **broken}


def references(op: str, problem: dict[str, Tensor], options: dict[str, Any]) -> tuple[Results, Results]:
    """The reference's results in float64 and in the problem's own dtype, on the same device up to LOOPED steps."""
    steps = 0 if op == "hsic" else problem["u" if op == "selective_scan" else "x"].shape[2]
    place = "cpu" if steps > LOOPED else REFERENCE
    problem, options = on_device(problem, place), on_device(options, place)
    exact = OPERATORS[op].run(leaves(problem, torch.float64), backend="reference", **options)
    same = OPERATORS[op].run(leaves(problem), backend="reference", **options)
    return tuple({name: value.to(DEVICE) for name, value in found.items()} for found in (exact, same))


@lru_cache(maxsize=8)
def _prepared(op: str, shape: tuple, make: tuple, run: tuple, padding: float) -> tuple:
    """Problem, options and references, shared by the backends."""
    torch.manual_seed(0)
    problem, options = OPERATORS[op].problem(*shape, **dict(make)), dict(run)
    if padding:
        options["seq_idx"] = packed_index(shape[0], shape[2], padding)
    problem, options = on_device(problem), on_device(options)
    return problem, options, references(op, problem, options)


def check(op: str, backend: str, *shape: int, padding: float = 0, make: dict | None = None, **run: Any) -> Results:
    """An operator against its reference, forward and every gradient.

    Args:
        shape: the positional arguments of the op's problem.
        padding: with packed sequences, this share of whose steps is padding; 0 is one sequence.
        make: the keyword arguments of the problem; `run`: those of the call.
    """
    made = _prepared(op, shape, tuple((make or {}).items()), tuple(run.items()), padding)
    return _compared(op, backend, *made)


def check_against_reference(op: str, backend: str, problem: dict[str, Tensor], **options: Any) -> Results:
    """The same for a problem that lies on the device already."""
    return _compared(op, backend, problem, options, references(op, problem, options))


def _compared(op: str, backend: str, problem: dict, options: dict, expected: tuple[Results, Results]) -> Results:
    exact, same = expected
    got = OPERATORS[op].run(leaves(problem), backend=backend, **options)
    assert {value.device.type for value in got.values()} == {DEVICE}
    compare(got, exact, same)
    return got


def check_repeats(run: Callable[[], Results], times: int = 5) -> None:
    """The same bits at every call, with other work in between so that blocks are scheduled differently."""
    first = run()
    for _ in range(times - 1):
        torch.randn(1 << 16, device=DEVICE).sort()
        again = run()
        assert [name for name in first if not same_bits(first[name], again[name])] == []


def flat(call: Callable[..., Any], tensors: list[Tensor]) -> list[Tensor]:
    """Results of a call that returns one tensor or a tuple, and the gradients of a weighted sum of all of them."""
    results = call(*tensors)
    results = list(results) if isinstance(results, tuple) else [results]
    weights = [torch.linspace(-1, 1, max(r.numel(), 1), device=r.device).to(r.dtype)[: r.numel()] for r in results]
    grads = torch.autograd.grad(results, tensors, [w.reshape(r.shape) for w, r in zip(weights, results, strict=True)])
    return [r.detach() for r in results] + list(grads)


def check_graph(call: Callable[..., Any], problem: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    """Captures forward and backward in a CUDA graph and replays them on other values."""
    tensors = list(leaves(problem).values())
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            flat(call, tensors)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = flat(call, tensors)
    for values in (other, problem):
        fresh = [v.detach().clone(memory_format=torch.preserve_format) for v in values.values()]
        expected = flat(call, [v.requires_grad_() for v in fresh])
        with torch.no_grad():
            for target, value in zip(tensors, fresh, strict=True):
                target.copy_(value)
        for result in captured:
            result.fill_(float("nan"))
        graph.replay()
        torch.cuda.synchronize()
        assert all(same_bits(a, b) for a, b in zip(captured, expected, strict=True))


def check_compiled(call: Callable[..., Any], problems: list[dict[str, Tensor]]) -> None:
    """One graph without breaks, forward and backward; two serve all lengths (L where one state is saved is special)."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = torch.compile(call, fullgraph=True, dynamic=True, backend="inductor" if GPU else "aot_eager")
    for problem in problems:
        eager = flat(call, list(leaves(problem).values()))
        graph = flat(compiled, list(leaves(problem).values()))
        for a, b in zip(graph, eager, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 2 < len(problems)


def check_autocast(call: Callable[..., Any], problem: dict[str, Tensor]) -> None:
    """Under autocast nothing changes: no operand is rounded."""
    tensors = list(leaves(problem).values())
    plain = flat(call, tensors)
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        cast = flat(call, tensors)
    assert all(a.dtype == b.dtype and same_bits(a, b) for a, b in zip(cast, plain, strict=True))


def check_side_stream(call: Callable[..., Any], problem: dict[str, Tensor]) -> None:
    """The kernels run on the current stream: on a stream whose inputs arrive late they still read them."""
    late = [torch.full_like(v, float("nan")).requires_grad_() for v in problem.values()]
    expected = flat(call, list(leaves(problem).values()))
    side = torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(side):
        torch.cuda._sleep(100_000_000)  # about 60 ms
        with torch.no_grad():
            for target, value in zip(late, problem.values(), strict=True):
                target.copy_(value)
        got = flat(call, late)
        got = [g.clone() for g in got]
    side.synchronize()
    assert all(same_bits(a, b) for a, b in zip(got, expected, strict=True))
