"""Ahead-of-time compile cases of causal_conv1d's Triton kernels: calls, and their budgets on sm_90."""

from typing import Any

import torch

from bdam_fast.ops.causal_conv1d import triton_impl
from tests.support.operators import packed_index
from tests.support.operators.causal_conv1d import conv_problem
from tests.support.triton.launches import Case

CONV = ("x", "weight", "bias", "initial_states")


def conv(
    width: int = 4,
    *,
    packed: bool = False,
    silu: bool = True,
    reverse: bool = False,
    last: bool = True,
    length: int = 192,
    batch: int = 2,
    channels: int = 64,
    **kwargs: Any,
) -> None:
    """A forward and a backward; channels are a multiple of 16 as in practice."""
    problem = conv_problem(batch, channels, length, width, **kwargs)
    index = packed_index(batch, length) if packed else None
    tensors = [problem.get(name) for name in CONV]
    out, final = triton_impl.forward(*tensors, index, silu, reverse, last)
    triton_impl.backward(torch.empty_like(out), final if last else None, *tensors, index, silu, reverse)


def case(name: str, dtype: torch.dtype, order: str, width: int, absent: tuple[str, ...] = (), **flags: Any) -> Case:
    """The budgets are wide: they bound spills."""
    label = f"conv-{name}-{str(dtype).removeprefix('torch.')}-{order}-{width}"
    budget = {"forward_kernel": (255, 0), "backward_kernel": (255, 0)}
    return Case(label, lambda: conv(width, dtype=dtype, order=order, absent=absent, **flags), budget)


BF16, FP32 = torch.bfloat16, torch.float32
PLAIN = ("initial_states",)
CASES = [
    case("plain", BF16, "bld", 4, PLAIN, last=False),
    case("plain", FP32, "bdl", 4, PLAIN, last=False),
    case("odd-length", BF16, "bdl", 4, PLAIN, last=False, length=77),
    case("states", torch.float16, "bld", 8, reverse=True),
    case("packed", BF16, "bld", 4, packed=True),
    case("packed", FP32, "bdl", 3, packed=True, silu=False),
    case("states", BF16, "bdl", 1, ("bias",), reverse=True),
]
