"""selective_scan against loops, parallel scans and compiled loops: both memory orders, both dtypes, neighbouring shapes.

B batch, D channels, L length, N states.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

import bdam_fast
from bench.harness.case import Case, Variant, Work
from bench.ops import peers

Shape = tuple[int, int, int, int]
MAIN: Shape = (8, 512, 273, 16)  # the token fusion of the paper's size
LANGUAGE: Shape = (1, 1536, 2048, 16)
SHAPES: list[Shape] = [MAIN, LANGUAGE, (2, 768, 192, 16), (64, 512, 1, 16)]
# One value away from MAIN: a length and a channel count that fill no tile, fewer states, one more state.
NEIGHBOURS: list[Shape] = [(8, 512, 257, 16), (8, 500, 273, 16), (8, 512, 273, 8), (8, 512, 273, 17)]
# Element-states (B·D·L·N) of which the float64 reference keeps the gradient at once: 6 * 8 bytes each.
EXACT_STATES = 2e8
NO_GRADIENT = "works in place, has no gradient"
# The gradient of transformers' loop writes all of (B, D, L, N) once per step: 14 s at MAIN, minutes at LANGUAGE.
SLOW_GRADIENT_LENGTH = 1024


@dataclass(frozen=True)
class Problem:
    """Inputs of one shape, memory order and dtype, with the exact results."""

    shape: Shape
    order: str = "BLD"
    dtype: torch.dtype = torch.float32
    device: str = "cpu"

    @cached_property
    def inputs(self) -> dict[str, Tensor]:
        """The tensor arguments: the same numbers in both orders, all requiring gradients."""
        batch, channels, length, states = self.shape
        generator = torch.Generator(self.device).manual_seed(0)

        def draw(width: int) -> Tensor:
            values = torch.randn(batch, length, width, generator=generator, device=self.device)
            return values.to(self.dtype).transpose(1, 2)

        tensors = {name: draw(channels) for name in ("u", "delta", "z")}
        if self.order == "BDL":
            tensors = {name: t.contiguous() for name, t in tensors.items()}
        tensors |= {"A": -torch.arange(1, states + 1).float().repeat(channels, 1), "B": draw(states), "C": draw(states)}
        tensors |= {"D": torch.ones(channels), "delta_bias": torch.full((channels,), -3.0)}
        names = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")
        return {name: tensors[name].to(self.device).requires_grad_() for name in names}

    @cached_property
    def upstream(self) -> Tensor:
        """Upstream gradient in the memory order of the output."""
        return torch.randn_like(self.inputs["u"].detach())

    @cached_property
    def exact(self) -> list[Tensor]:
        """Output and all gradients of the reference in float64, a few batch items at a time: its gradient keeps six
        tensors of all element-states, 15 GB at B 64, D 1536, L 197.
        """
        batch, channels, length, states = self.shape
        items = max(1, int(EXACT_STATES / (channels * length * states)))
        parts = [self._exact_part(slice(start, start + items)) for start in range(0, batch, items)]
        names = ("out", *self.inputs)
        shared = ("A", "D", "delta_bias")
        columns = zip(names, zip(*parts, strict=True), strict=True)
        return [torch.stack(c).sum(0) if name in shared else torch.cat(c) for name, c in columns]

    def _exact_part(self, items: slice) -> list[Tensor]:
        per_item = ("u", "delta", "z", "B", "C")
        inputs = {n: t.detach()[items] if n in per_item else t.detach() for n, t in self.inputs.items()}
        inputs = {name: t.double().requires_grad_() for name, t in inputs.items()}
        out = bdam_fast.selective_scan(**inputs, delta_softplus=True, backend="reference")
        return [out.detach(), *torch.autograd.grad(out, list(inputs.values()), self.upstream[items].double())]

    def run(self, direction: str, function: Callable[..., Tensor]) -> Callable[[], list[Tensor]]:
        """Builds a call of `function` that returns the output (forward), the gradients (backward), or both."""
        tensors = list(self.inputs.values())

        def forward() -> list[Tensor]:
            with torch.no_grad():
                return [function(*tensors)]

        def both() -> list[Tensor]:
            out = function(*tensors)
            return [out, *torch.autograd.grad(out, tensors, self.upstream)]

        if direction == "backward":
            kept = function(*tensors)
            return lambda: list(torch.autograd.grad(kept, tensors, self.upstream, retain_graph=True))
        return forward if direction == "forward" else both

    def variant(self, name: str, direction: str, function: Callable[..., Tensor], kind: str = "eager") -> Variant:
        """Variant that calls a function on these inputs."""
        batch, channels, length, states = self.shape
        elements = float(batch * channels * length)
        call = self.run(direction, function)
        return Variant(name, call, kind, elements=elements, states=elements * states, checked=kind != "anchor")

    def case(
        self,
        direction: str,
        variants: list[Variant],
        skipped: dict[str, str] | None = None,
        kernel: Callable[..., Tensor] | None = None,
    ) -> Case:
        """Case on these inputs with ours (`kernel`, by default that of the CPU) first."""
        text = "B {} D {} L {} N {}".format(*self.shape)
        expected = {"forward": slice(0, 1), "backward": slice(1, None)}.get(direction, slice(None))
        return Case(
            "selective_scan",
            text,
            direction,
            [self.variant("bdam_fast", direction, kernel or ours, "ours"), *variants],
            lambda: self.exact[expected],
            work(self.shape, direction, self.dtype.itemsize),
            self.order,
            str(self.dtype).removeprefix("torch."),
            skipped or {},
        )


def work(shape: Shape, direction: str, itemsize: int = 4) -> Work:
    """Minimum work of a direction: bytes and elementary functions.

    Forward reads u, delta, z, B, C and writes out: one exp2 per element-state, one softplus and one sigmoid (the gate) per
    element. Backward reads the same and dout, writes du, ddelta, dz, dB, dC, takes all of these functions again, and the
    derivative of softplus, one more sigmoid.
    """
    batch, channels, length, states = shape
    element, projection = batch * channels * length, batch * length * states
    forward = Work(itemsize * (4 * element + 2 * projection), element * states, element, element)
    backward = Work(itemsize * (7 * element + 4 * projection), element * states, element, 2 * element)
    if direction == "forward+backward":
        names = ("bytes", "exp2", "softplus", "sigmoid")
        return Work(*(getattr(forward, name) + getattr(backward, name) for name in names))
    return {"forward": forward, "backward": backward}[direction]


def run_scan(*tensors: Tensor, backend: str) -> Tensor:
    """bdam_fast.selective_scan on a backend, softplus on."""
    return bdam_fast.selective_scan(*tensors, delta_softplus=True, backend=backend)


def ours(*tensors: Tensor) -> Tensor:
    """Our CPU kernel."""
    return run_scan(*tensors, backend="cpu")


def reference(*tensors: Tensor) -> Tensor:
    """Our reference, a loop over unbound steps."""
    return run_scan(*tensors, backend="reference")


def all_peers(problem: Problem, direction: str, quick: bool) -> Case:
    """Ours against every available peer."""
    functions: dict[str, Callable[..., Tensor]] = {
        "reference loop": reference,
        "lean loop": peers.lean_loop,
        "lean loop, blocked": peers.blocked_loop,
        "chunked cumsum": peers.chunked_cumsum,
        "mambapy": peers.mambapy,
        "transformers": peers.transformers_scan,
    }
    skipped = {name: why for name in functions if (why := _refusal(name, problem, direction, quick))}
    variants = [problem.variant(n, direction, f) for n, f in functions.items() if n not in skipped]
    why = _compile_refusal(problem, direction, quick)
    if why:
        skipped["compiled loop"] = why
    else:
        variants.append(problem.variant("compiled loop", direction, peers.compiled(peers.compilable_loop), "compiled"))
    return problem.case(direction, variants, skipped)


def _refusal(name: str, problem: Problem, direction: str, quick: bool) -> str:
    if name == "mambapy":
        if problem.shape[2] == 1:
            return "pscan fails on one step"
        return peers.missing("mambapy.pscan", "pscan")
    if name.startswith("lean loop") and direction != "forward":
        return NO_GRADIENT
    if name == "transformers":
        if direction != "forward" and problem.shape[2] > SLOW_GRADIENT_LENGTH:
            return f"its gradient costs L² memory traffic: minutes a call at L {problem.shape[2]}"
        if direction != "forward" and quick and problem.shape[2] > 1:
            return "seconds a call, skipped by --quick"
        return peers.missing(peers.TRANSFORMERS_MODULE, "mamba_selective_scan")
    return ""


def _compile_refusal(problem: Problem, direction: str, quick: bool) -> str:
    if problem != Problem(MAIN) or direction != "forward":
        return "takes minutes to compile; measured forward at the first shape only"
    return "takes minutes to compile, skipped by --quick" if quick else ""


def against_anchor(problem: Problem, main: Problem, direction: str, anchor: str) -> Case:
    """Ours beside ours at another shape, order or dtype, in turn, with one loop as the peer."""
    beside = main.variant(anchor, direction, ours, "anchor")
    peer = problem.variant("reference loop", direction, reference)
    return problem.case(direction, [beside, peer], {})


def cases(quick: bool = False) -> Iterator[Case]:
    """All shapes in both directions; then variations that should keep the speed: other order, bfloat16, neighbouring shapes."""
    for shape in SHAPES[: 1 if quick else None]:
        problem = Problem(shape)
        for direction in ("forward", "forward+backward"):
            yield all_peers(problem, direction, quick)
        yield problem.case("backward", [])
    main = Problem(MAIN)
    others = [
        (Problem(MAIN, "BDL"), "bdam_fast, (B, L, D) order"),
        (Problem(MAIN, "BLD", torch.bfloat16), "bdam_fast, float32"),
    ]
    others += [(Problem(shape), "bdam_fast, main shape") for shape in NEIGHBOURS]
    for problem, anchor in others:
        for direction in ("forward", "forward+backward"):
            yield against_anchor(problem, main, direction, anchor)
    if not quick:
        language = Problem(LANGUAGE, "BDL")
        for direction in ("forward", "forward+backward"):
            yield against_anchor(language, Problem(LANGUAGE), direction, "bdam_fast, (B, L, D) order")
