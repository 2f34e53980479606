"""causal_conv1d with SiLU in both memory orders against F.conv1d."""

from __future__ import annotations

import torch
import torch.nn.functional as F

import bdam_fast
from bench.harness import Case

# B, D, L, W
SHAPES = [(8, 512, 273, 4), (2, 768, 192, 4)]


def _torch(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    width = weight.shape[1]
    return F.silu(F.conv1d(x, weight[:, None], bias, padding=width - 1, groups=x.shape[1])[..., : x.shape[2]])


def cases() -> list[Case]:
    """All shapes, both memory orders, both directions; F.conv1d(groups=D) + SiLU is the baseline."""
    made = []
    for batch, channels, length, width in SHAPES:
        torch.manual_seed(0)
        weight, bias = torch.randn(channels, width).requires_grad_(), torch.randn(channels).requires_grad_()
        for order in ("BLD", "BDL"):
            last = torch.randn(batch, length, channels)
            x = (last.transpose(1, 2) if order == "BLD" else last.transpose(1, 2).contiguous()).requires_grad_()
            text = f"B {batch} D {channels} L {length} W {width} {order}"
            made += [_case(text, direction, x, weight, bias) for direction in ("forward", "forward+backward")]
    return made


def _case(text: str, direction: str, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> Case:
    gradient = torch.randn_like(x)

    def ours() -> torch.Tensor:
        return bdam_fast.causal_conv1d(x, weight, bias, "silu", backend="cpu")

    def theirs() -> torch.Tensor:
        return _torch(x, weight, bias)

    def wrap(call):  # noqa: ANN001, ANN202
        def forward() -> object:
            with torch.no_grad():
                return call()

        return forward if direction == "forward" else lambda: torch.autograd.grad(call(), [x, weight, bias], gradient)

    streams = 2 if direction == "forward" else 5
    variants = {"cpu": wrap(ours), "F.conv1d": wrap(theirs)}
    return Case("causal_conv1d", text, "float32", direction, variants, streams * x.numel() * 4)
