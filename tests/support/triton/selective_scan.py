"""Ahead-of-time compile cases of selective_scan's Triton kernels: calls, and their budgets on sm_90."""

from typing import Any

import torch

from bdam_fast.ops.selective_scan import triton_impl
from tests.support.operators import packed_index
from tests.support.operators.selective_scan import scan_problem
from tests.support.triton.launches import Case

SCAN = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias", "initial_state")
OPTIONAL = ("D", "z", "delta_bias", "initial_state")


def scan(
    *,
    packed: bool = False,
    reverse: bool = False,
    last: bool = False,
    length: int = 64,
    states: int = 16,
    batch: int = 1,
    channels: int = 128,
    **kwargs: Any,
) -> None:
    """A forward and a backward; channels and length are multiples of 16 as in practice."""
    problem = scan_problem(batch, channels, length, states, **kwargs)
    tensors = [problem.get(name) for name in SCAN] + [packed_index(batch, length) if packed else None]
    out, state, saved = triton_impl.forward(*tensors, True, reverse, last, True)
    triton_impl.backward(torch.empty_like(out), state if last else None, *tensors, saved, True, reverse)


def case(name: str, forward: int, spilled: int, main: bool = False, slow: bool = False, **kwargs: Any) -> Case:
    """Budgets: registers of the forward, which must not spill, and bytes that the backward spills."""
    budget = {"scan_forward": (forward, 0), "scan_backward": (255, spilled)}
    return Case(f"scan-{name}", lambda: scan(**kwargs), budget, main, slow)


BF16, FP16 = torch.bfloat16, torch.float16
NO_STATE = ("initial_state",)
# About a tenth above what was counted with Triton 3.7.1.
CASES = [
    case("bf16-bld", 255, 1600, True, dtype=BF16, absent=NO_STATE),
    case("bf16-bdl", 192, 1450, dtype=BF16, absent=NO_STATE, order="bdl"),
    case("bf16-bdl-odd-length", 224, 1750, dtype=BF16, length=77, order="bdl"),
    case("fp32-bld", 255, 1600, absent=NO_STATE),
    case("fp32-bdl", 255, 1950, absent=NO_STATE, order="bdl"),
    case("fp32-1-step", 72, 0, length=1),
    case("fp16-bare", 255, 950, dtype=FP16, absent=OPTIONAL),
    case("bf16-everything", 192, 2250, dtype=BF16, packed=True, reverse=True, last=True, groups=(2, 2)),
    case("fp32-constant", 224, 1650, slow=True, groups=(None, None), order="bdl"),
    case("bf16-1-state", 96, 80, slow=True, dtype=BF16, states=1),
    case("bf16-8-states", 255, 2300, slow=True, dtype=BF16, states=8),
    case("bf16-64-states", 224, 2550, slow=True, dtype=BF16, states=64),
    case("bf16-256-states", 255, 3000, slow=True, dtype=BF16, states=256),
]
