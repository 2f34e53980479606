"""Cases measured on a GPU: the shapes that matter, the most important first, with the available kernels and peers.

B batch, D channels, L length, N states, W width of the convolution; for hsic: batch, N samples, D features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate

import torch
from torch import Tensor

from bench.gpu import outcomes
from bench.gpu.peers import causal_conv, mamba_scan, missing_peer
from bench.gpu.processes import COSTS
from bench.harness.case import Case, Variant
from bench.ops import causal_conv1d, hsic, peers, selective_scan

DIRECTIONS = ("forward", "forward+backward")
BF16, FP32 = torch.bfloat16, torch.float32
OPS = ("selective_scan", "causal_conv1d", "hsic")
# (B, D, L), orders, dtype: vision at the lengths of real models, this project's training step, language.
STREAMS: list[tuple[int, tuple[int, int, int], tuple[str, ...], torch.dtype]] = [
    (0, (64, 1536, 192), ("BLD", "BDL"), BF16),
    (0, (64, 1536, 197), ("BLD",), BF16),
    (1, (64, 512, 260), ("BLD",), BF16),
    (1, (2, 1536, 2048), ("BLD", "BDL"), BF16),
    (1, (64, 1536, 77), ("BLD", "BDL"), BF16),
    (1, (64, 1536, 193), ("BLD", "BDL"), BF16),
    (1, (64, 1536, 197), ("BDL",), BF16),
    (2, (2, 1536, 8192), ("BLD", "BDL"), BF16),
    (2, (64, 512, 1), ("BLD",), BF16),
    (2, (64, 512, 260), ("BLD",), FP32),
    (2, (64, 1536, 192), ("BLD",), FP32),
    (3, (64, 768, 256), ("BDL",), BF16),
    (3, (64, 768, 512), ("BLD", "BDL"), BF16),
    (3, (8, 2048, 2048), ("BLD",), BF16),
    (3, (64, 512, 1), ("BLD",), FP32),
    (4, (64, 768, 256), ("BLD",), BF16),
]
PAIRS: list[tuple[int, tuple[int, int, int], tuple[str, ...], torch.dtype]] = [
    (0, (16, 64, 768), ("linear", "rbf"), FP32),
    (1, (1, 1024, 256), ("linear", "rbf"), FP32),
    (1, (1, 64, 768), ("linear", "rbf"), FP32),
    (2, (1, 4096, 256), ("linear", "rbf"), FP32),
    (2, (16, 256, 768), ("linear", "rbf"), FP32),
    (3, (16, 64, 768), ("linear", "rbf"), BF16),
    (3, (64, 1024, 256), ("rbf",), FP32),
    (4, (64, 64, 768), ("linear", "rbf"), FP32),
]
# torch.compile takes ten seconds and more for a function: only here, at the end.
COMPILED_STREAM = ((64, 768, 256), "BLD", BF16)
COMPILED_PAIR = ((64, 64, 768), FP32)


@dataclass(frozen=True)
class Group:
    """Both directions of one shape, which share inputs and exact results; these are computed when `cases` is called."""

    # 0 is measured first; where time is short, the highest ranks are cut.
    rank: int
    op: str
    title: str
    cases: Callable[[], list[Case]]
    # Estimated for the plan, of which costs.json says what was counted and what is assumed.
    seconds: float = 0.0


def groups(
    chosen: dict[str, Sequence[str]], device: str = "cuda", failed: Sequence[outcomes.Test] = ()
) -> Iterator[Group]:
    """Groups of the chosen operators, each with its backends, in order of importance.

    Args:
        chosen: backends of an operator by its name; the first one is "ours", the others are shown beside it.
        failed: tests that did not pass; a group goes without the backends that these concern, or is not there.
    """
    found = [group for op, backends in chosen.items() if backends for group in _of(op, tuple(backends), device, failed)]
    yield from sorted(found, key=lambda group: group.rank)


def _of(op: str, backends: tuple[str, ...], device: str, failed: Sequence[outcomes.Test]) -> Iterator[Group]:
    make = {"selective_scan": scan_cases, "causal_conv1d": conv_cases, "hsic": hsic_cases}[op]
    for rank, shape, ways, dtype in PAIRS if op == "hsic" else STREAMS:
        for way in ways:
            names = {"dtype": str(dtype)}
            names |= {"kernel": way, "samples": str(shape[1])} if op == "hsic" else {}
            names |= {"order": way.lower(), "length": str(shape[2])} if op != "hsic" else {}
            left = outcomes.remaining(failed, op, backends, names)
            if left:
                text = " ".join([op, *map(str, shape), way, str(dtype).removeprefix("torch.")])
                yield Group(
                    rank, op, text, partial(make, shape, way, dtype, left, device), _seconds(op, shape, way, dtype)
                )


def _seconds(op: str, shape: tuple[int, int, int], way: str, dtype: torch.dtype) -> float:
    """Estimated seconds of a group."""
    seconds = COSTS["group"]["base"]
    if op == "selective_scan":
        items = max(1, int(selective_scan.EXACT_STATES / (shape[1] * shape[2] * 16)))
        seconds += COSTS["group"]["launches_a_step"] * COSTS["group"]["launch"] * shape[2] * -(-shape[0] // items)
    compiles = (shape, way, dtype) == COMPILED_STREAM and op == "causal_conv1d" or (shape, dtype) == COMPILED_PAIR
    return seconds + (2 * COSTS["inductor_seconds"] if compiles else 0.0)


def within(found: Iterable[Group], seconds: float) -> tuple[list[Group], list[Group]]:
    """Returns (the first groups, which together take at most so many seconds by their estimates; the others)."""
    found = list(found)
    ends = list(accumulate(group.seconds for group in found))
    count = sum(end <= seconds for end in ends)
    return found[:count], found[count:]


def scan_cases(
    shape: tuple[int, int, int], order: str, dtype: torch.dtype, backends: Sequence[str], device: str
) -> list[Case]:
    """selective_scan with 16 states against mamba-ssm, at one shape also against a parallel form in plain PyTorch."""
    problem = selective_scan.Problem((*shape, 16), order, dtype, device)
    kernels = {backend: partial(selective_scan.run_scan, backend=backend) for backend in backends}
    others = {"mamba-ssm": mamba_scan}
    skipped = _skipped("selective_scan", "mamba-ssm")
    if (shape, order, dtype) == COMPILED_STREAM:
        others["chunked cumsum"] = peers.chunked_cumsum
    return [_stream_case(problem, direction, kernels, others, skipped) for direction in DIRECTIONS]


def conv_cases(
    shape: tuple[int, int, int], order: str, dtype: torch.dtype, backends: Sequence[str], device: str
) -> list[Case]:
    """causal_conv1d of width 4 with SiLU against causal-conv1d and F.conv1d."""
    problem = causal_conv1d.Problem((*shape, 4), order, dtype, device)
    kernels = {backend: partial(causal_conv1d.run_conv, backend=backend) for backend in backends}
    others = {"causal-conv1d": causal_conv, "F.conv1d + SiLU": causal_conv1d.torch_conv}
    if (shape, order, dtype) == COMPILED_STREAM:
        others["compiled F.conv1d + SiLU"] = peers.compiled(causal_conv1d.torch_conv)
    skipped = _skipped("causal_conv1d", "causal-conv1d")
    return [_stream_case(problem, direction, kernels, others, skipped) for direction in DIRECTIONS]


def _skipped(op: str, name: str) -> dict[str, str]:
    reason = missing_peer(op)
    return {name: reason} if reason else {}


def _stream_case(
    problem: selective_scan.Problem | causal_conv1d.Problem,
    direction: str,
    kernels: dict[str, Callable[..., Tensor]],
    others: dict[str, Callable[..., Tensor]],
    skipped: dict[str, str],
) -> Case:
    """Case of one direction: the first kernel is ours, our further ones are shown beside the peers and not counted as such."""
    (_, first), *beside = kernels.items()
    variants = [problem.variant(f"bdam_fast, {backend}", direction, f, "other") for backend, f in beside]
    for name, function in others.items():
        if name not in skipped:
            kind = "compiled" if name.startswith("compiled") else "eager"
            variants.append(problem.variant(name, direction, function, kind))
    case = problem.case(direction, variants, skipped, first)
    return _named(case, next(iter(kernels)))


def _named(case: Case, backend: str) -> Case:
    """The case with our first variant named by its backend."""
    own, *others = case.variants
    own = Variant(**{**vars(own), "name": f"bdam_fast, {backend}"})
    return Case(**{**vars(case), "variants": [own, *others]})


def hsic_cases(
    shape: tuple[int, int, int], kernel: str, dtype: torch.dtype, backends: Sequence[str], device: str
) -> list[Case]:
    """hsic against the textbook formula and its optimised form, at one shape compiled too."""
    sigma = None if kernel == "linear" else shape[2] ** 0.5
    tensors = hsic.inputs(shape, dtype, device)
    doubles = [t.detach().double().requires_grad_() for t in tensors]
    formulas: dict[str, Callable[..., Tensor]] = {
        "textbook": hsic.textbook,
        "centred sum": hsic.centred_sum,
    }
    if (shape, dtype) == COMPILED_PAIR:
        formulas["compiled textbook"] = peers.compiled(hsic.textbook)
    made = []
    for direction in DIRECTIONS:
        run = partial(hsic.runner, tensors=tensors, sigma=sigma, direction=direction)
        variants = [
            Variant(
                f"bdam_fast, {backend}", run(partial(hsic.run_hsic, backend=backend)), "other" if number else "ours"
            )
            for number, backend in enumerate(backends)
        ]
        for name, formula in formulas.items():
            variants.append(Variant(name, run(formula), "compiled" if name.startswith("compiled") else "eager"))
        exact = partial(hsic.runner(hsic.textbook, doubles, sigma, direction))
        work = hsic.work(shape, kernel, direction, dtype.itemsize)
        text = "batch {} N {} D {} ".format(*shape) + kernel
        made.append(Case("hsic", text, direction, variants, exact, work, dtype=str(dtype).removeprefix("torch.")))
    return made
