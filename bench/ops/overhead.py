"""Overhead of a call with almost nothing to compute: B 1, D 8, L 1, without gradient and forward+backward."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

import bdam_fast
from bench.harness.case import Case, Variant
from bench.ops import causal_conv1d, hsic
from bench.ops.selective_scan import Problem, ours, reference

DIRECTIONS = ("forward", "forward+backward")
CHANNELS, STATES, WIDTH = 8, 16, 4


def _conv_inputs() -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(1, CHANNELS, 1), torch.randn(CHANNELS, WIDTH), torch.randn(CHANNELS)]


def _problems() -> list[tuple[str, list[Tensor], Callable[..., Tensor], Callable[..., Tensor]]]:
    """(shape, inputs, our function, plain PyTorch formula) of each operator with a gradient."""
    shape = f"B 1 D {CHANNELS} L 1"
    scan = [t.detach() for t in Problem((1, CHANNELS, 1, STATES)).inputs.values()]
    samples = [t.detach() for t in hsic.inputs((1, 4, CHANNELS))]
    return [
        (f"selective_scan, {shape}", scan, ours, reference),
        (f"causal_conv1d, {shape}", _conv_inputs(), causal_conv1d.ours, causal_conv1d.torch_conv),
        (f"hsic, N 4 D {CHANNELS}", samples, lambda x, y: hsic.ours(x, y, None), _textbook),
    ]


def _textbook(x: Tensor, y: Tensor) -> Tensor:
    return hsic.textbook(x, y, None)


def cases(quick: bool = False) -> Iterator[Case]:
    """The three operators in both directions, then the two single-step operators, where this version has them."""
    for shape, tensors, own, peer in _problems():
        inputs = [t.detach().requires_grad_() for t in tensors]
        for direction in DIRECTIONS:
            yield _case(shape, direction, inputs, own, peer)
    yield from _update_cases()


def _case(
    shape: str, direction: str, inputs: list[Tensor], own: Callable[..., Tensor], peer: Callable[..., Tensor]
) -> Case:
    upstream = torch.ones_like(own(*inputs).detach())

    def run(function: Callable[..., Tensor], tensors: list[Tensor]) -> Callable[[], list[Tensor]]:
        def forward() -> list[Tensor]:
            return [function(*tensors)]

        def both() -> list[Tensor]:
            out = function(*tensors)
            return [out, *torch.autograd.grad(out, tensors, upstream.to(out.dtype))]

        return forward if direction == "forward" else both

    plain = [t.detach() for t in inputs] if direction == "forward" else inputs
    variants = [Variant("bdam_fast", run(own, plain), "ours"), Variant("plain PyTorch", run(peer, plain))]
    doubles = [t.detach().double().requires_grad_() for t in inputs]
    return Case("overhead", shape, direction, variants, run(peer, doubles))


def _update_cases() -> Iterator[Case]:
    """selective_state_update and causal_conv1d_update on zero states, so that every call returns the same result."""
    scan = getattr(bdam_fast, "selective_state_update", None)
    conv = getattr(bdam_fast, "causal_conv1d_update", None)
    if scan is not None:
        yield _state_update(scan)
    if conv is not None:
        yield _conv_update(conv)


def _state_update(update: Callable[..., Tensor]) -> Case:
    u, delta, A, B, C, D, z, bias = (t.detach() for t in Problem((1, CHANNELS, 1, STATES)).inputs.values())
    state = torch.zeros(1, CHANNELS, STATES)
    u, delta, B, C, z = (t[..., 0].contiguous() for t in (u, delta, B, C, z))

    def step(state: Tensor, *tensors: Tensor) -> Tensor:
        u, delta, A, B, C, D, z, bias = tensors
        dt = F.softplus(delta + bias)
        state.mul_(torch.exp(dt[..., None] * A)).add_((dt * u)[..., None] * B[:, None])
        return ((state * C[:, None]).sum(-1) + D * u) * F.silu(z)

    def ours() -> Tensor:
        state.zero_()
        return update(state, u, delta, A, B, C, D=D, z=z, dt_bias=bias, dt_softplus=True, backend="cpu")

    def plain(dtype: torch.dtype = torch.float32) -> Tensor:
        return step(state.to(dtype).zero_(), *(t.to(dtype) for t in (u, delta, A, B, C, D, z, bias)))

    variants = [Variant("bdam_fast", ours, "ours"), Variant("plain PyTorch", plain)]
    exact = lambda: [plain(torch.float64)]  # noqa: E731
    return Case("overhead", f"selective_state_update, B 1 D {CHANNELS}", "forward", variants, exact)


def _conv_update(update: Callable[..., Tensor]) -> Case:
    x, weight, bias = _conv_inputs()
    x = x[..., 0].contiguous()
    state = torch.zeros(1, CHANNELS, WIDTH - 1)

    def ours() -> Tensor:
        state.zero_()
        return update(x, state, weight, bias, "silu", backend="cpu")

    def plain(dtype: torch.dtype = torch.float32) -> Tensor:
        window = torch.cat([state.to(dtype).zero_(), x.to(dtype).unsqueeze(-1)], -1)
        return F.silu((window * weight.to(dtype)).sum(-1) + bias.to(dtype))

    variants = [Variant("bdam_fast", ours, "ours"), Variant("plain PyTorch", plain)]
    exact = lambda: [plain(torch.float64)]  # noqa: E731
    return Case("overhead", f"causal_conv1d_update, B 1 D {CHANNELS}", "forward", variants, exact)
