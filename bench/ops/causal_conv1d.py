"""causal_conv1d with SiLU in both memory orders against F.conv1d.

B batch, D channels, L length, W width (taps).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

import bdam_fast
from bench.harness.case import Case, Variant, Work
from bench.ops import peers

Shape = tuple[int, int, int, int]
MAIN: Shape = (8, 512, 273, 4)
SHAPES: list[Shape] = [MAIN, (2, 768, 192, 4), (1, 1536, 2048, 4)]
NEIGHBOURS: list[Shape] = [(8, 512, 257, 4), (8, 500, 273, 4)]
DIRECTIONS = ("forward", "forward+backward")


def torch_conv(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """F.conv1d with one group per channel, then SiLU."""
    width = weight.shape[1]
    return F.silu(F.conv1d(x, weight[:, None], bias, padding=width - 1, groups=x.shape[1])[..., : x.shape[2]])


def run_conv(*tensors: Tensor, backend: str) -> Tensor:
    """bdam_fast.causal_conv1d on a backend, with SiLU."""
    return bdam_fast.causal_conv1d(*tensors, "silu", backend=backend)


def ours(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Our CPU kernel."""
    return run_conv(x, weight, bias, backend="cpu")


@dataclass(frozen=True)
class Problem:
    """Inputs of one shape, memory order and dtype, with the exact results."""

    shape: Shape
    order: str
    dtype: torch.dtype = torch.float32
    device: str = "cpu"

    @cached_property
    def inputs(self) -> tuple[Tensor, ...]:
        """x (B, D, L), weight (D, W), bias (D,), all requiring gradients."""
        batch, channels, length, width = self.shape
        generator = torch.Generator(self.device).manual_seed(0)
        kind = {"generator": generator, "device": self.device}
        x = torch.randn(batch, length, channels, **kind).transpose(1, 2)
        x = x.contiguous() if self.order == "BDL" else x
        weight = torch.randn(channels, width, **kind)
        bias = torch.randn(channels, **kind)
        return tuple(t.to(self.dtype).requires_grad_() for t in (x, weight, bias))

    @cached_property
    def upstream(self) -> Tensor:
        """Upstream gradient in the memory order of the output."""
        return torch.randn_like(self.inputs[0].detach())

    @cached_property
    def exact(self) -> list[Tensor]:
        """Output and gradients in float64."""
        inputs = [t.detach().double().requires_grad_() for t in self.inputs]
        out = bdam_fast.causal_conv1d(*inputs, "silu", backend="reference")
        return [out.detach(), *torch.autograd.grad(out, inputs, self.upstream.double())]

    def variant(self, name: str, direction: str, function: Callable[..., Tensor], kind: str = "eager") -> Variant:
        """Variant that calls a function on these inputs."""

        def forward() -> list[Tensor]:
            with torch.no_grad():
                return [function(*self.inputs)]

        def both() -> list[Tensor]:
            out = function(*self.inputs)
            return [out, *torch.autograd.grad(out, self.inputs, self.upstream)]

        call = forward if direction == "forward" else both
        return Variant(name, call, kind, elements=float(self.inputs[0].numel()), checked=kind != "anchor")

    def case(
        self,
        direction: str,
        variants: list[Variant],
        skipped: dict[str, str],
        kernel: Callable[..., Tensor] | None = None,
    ) -> Case:
        """Case on these inputs with ours (`kernel`, by default that of the CPU) first."""
        own = self.variant("bdam_fast", direction, kernel or ours, "ours")
        element = self.inputs[0].numel()
        # Forward reads x, writes out, one sigmoid; backward reads x and dout, writes dx, the sigmoid again.
        streams, sigmoids = (2, 1) if direction == "forward" else (5, 2)
        work = Work(streams * element * self.dtype.itemsize, sigmoid=sigmoids * element)
        text = "B {} D {} L {} W {}".format(*self.shape)
        last = 1 if direction == "forward" else None
        dtype = str(self.dtype).removeprefix("torch.")
        exact = lambda: self.exact[:last]  # noqa: E731
        return Case("causal_conv1d", text, direction, [own, *variants], exact, work, self.order, dtype, skipped)


def cases(quick: bool = False) -> Iterator[Case]:
    """All shapes, orders and directions; then bfloat16 and neighbouring shapes beside the main shape."""
    for shape in SHAPES[: 1 if quick else None]:
        for order in ("BLD", "BDL"):
            for direction in DIRECTIONS:
                yield _all_peers(Problem(shape, order), direction, quick)
    main = Problem(MAIN, "BLD")
    beside = [(Problem(MAIN, "BLD", torch.bfloat16), "bdam_fast, float32")]
    beside += [(Problem(shape, "BLD"), "bdam_fast, main shape") for shape in NEIGHBOURS]
    for problem, name in beside:
        for direction in DIRECTIONS:
            anchor = main.variant(name, direction, ours, "anchor")
            yield problem.case(direction, [anchor, problem.variant("F.conv1d + SiLU", direction, torch_conv)], {})


def _all_peers(problem: Problem, direction: str, quick: bool) -> Case:
    variants, skipped = [problem.variant("F.conv1d + SiLU", direction, torch_conv)], {}
    if quick:
        skipped["compiled F.conv1d + SiLU"] = "takes seconds to compile, skipped by --quick"
    else:
        function = peers.compiled(torch_conv)
        variants.append(problem.variant("compiled F.conv1d + SiLU", direction, function, "compiled"))
    return problem.case(direction, variants, skipped)
