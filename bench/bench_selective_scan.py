"""selective_scan in both memory orders against the loop of the reference."""

from __future__ import annotations

import torch

import bdam_fast
from bench.harness import Case

# B, D, L, N: the token fusion of the paper's size, a vision length, a language length.
SHAPES = [(8, 512, 273, 16), (2, 768, 192, 16), (1, 1536, 2048, 16)]


def _inputs(shape: tuple[int, int, int, int], channels_last: bool) -> dict[str, torch.Tensor]:
    batch, channels, length, states = shape
    torch.manual_seed(0)

    def stream() -> torch.Tensor:
        if channels_last:
            return torch.randn(batch, length, channels).transpose(1, 2).requires_grad_()
        return torch.randn(batch, channels, length).requires_grad_()

    def projection() -> torch.Tensor:
        return torch.randn(batch, length, states).transpose(1, 2).requires_grad_()

    steps = torch.arange(1, states + 1).float().repeat(channels, 1)
    tensors = {"u": stream(), "delta": stream(), "A": (-steps).requires_grad_(), "B": projection(), "C": projection()}
    return (
        tensors
        | {"D": torch.ones(channels).requires_grad_(), "z": stream()}
        | {"delta_bias": torch.full((channels,), -3.0).requires_grad_()}
    )


def cases() -> list[Case]:
    """All shapes and both directions; the reference's loop is the baseline."""
    made = []
    for shape in SHAPES:
        for order in ("BLD", "BDL"):
            inputs = _inputs(shape, order == "BLD")
            for direction in ("forward", "forward+backward"):
                made.append(_case(shape, order, direction, inputs))
    return made


def _case(shape: tuple[int, int, int, int], order: str, direction: str, inputs: dict[str, torch.Tensor]) -> Case:
    gradient = torch.randn_like(inputs["u"])

    def forward(backend: str) -> torch.Tensor:
        with torch.no_grad():
            return bdam_fast.selective_scan(**inputs, delta_softplus=True, backend=backend)

    def both(backend: str) -> tuple[torch.Tensor, ...]:
        out = bdam_fast.selective_scan(**inputs, delta_softplus=True, backend=backend)
        return torch.autograd.grad(out, list(inputs.values()), gradient)

    run = forward if direction == "forward" else both
    streams = 4 if direction == "forward" else 11
    text = "B {} D {} L {} N {} {}".format(*shape, order)
    moved = streams * inputs["u"].numel() * 4
    variants = {backend: lambda backend=backend: run(backend) for backend in ("cpu", "reference")}
    return Case("selective_scan", text, "float32", direction, variants, moved)
