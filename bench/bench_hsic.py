"""hsic against the textbook formula."""

from __future__ import annotations

import torch

import bdam_fast
from bench.harness import Case

# batch, N, D
SHAPES = [(1, 64, 768), (16, 64, 768), (1, 1024, 256)]


def cases() -> list[Case]:
    """Linear and RBF kernels, both directions; the reference is the textbook formula."""
    made = []
    for batch, samples, width in SHAPES:
        for kernel in ("linear", "rbf"):
            torch.manual_seed(0)
            x, y = (torch.randn(batch, samples, width).requires_grad_() for _ in range(2))
            text = f"batch {batch} N {samples} D {width} {kernel}"
            made += [_case(text, kernel, direction, x, y) for direction in ("forward", "forward+backward")]
    return made


def _case(text: str, kernel: str, direction: str, x: torch.Tensor, y: torch.Tensor) -> Case:
    sigma = None if kernel == "linear" else x.shape[-1] ** 0.5

    def forward(backend: str) -> torch.Tensor:
        with torch.no_grad():
            return bdam_fast.hsic(x, y, kernel=kernel, sigma_x=sigma, sigma_y=sigma, backend=backend)

    def both(backend: str) -> tuple[torch.Tensor, ...]:
        value = bdam_fast.hsic(x, y, kernel=kernel, sigma_x=sigma, sigma_y=sigma, backend=backend)
        return torch.autograd.grad(value.sum(), [x, y])

    run = forward if direction == "forward" else both
    streams = 2 if direction == "forward" else 6
    variants = {backend: lambda backend=backend: run(backend) for backend in ("cpu", "reference")}
    return Case("hsic", text, "float32", direction, variants, streams * x.numel() * 4)
