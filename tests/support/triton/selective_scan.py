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


def case(
    name: str,
    forward: int,
    spilled: int,
    main: bool = False,
    slow: bool = False,
    whole: tuple[float, float] | None = None,
    **kwargs: Any,
) -> Case:
    """Budgets: registers of the forward, which must not spill, and bytes that the backward spills; see `Case.whole`."""
    kernels = ("scan_forward", "scan_backward")
    budget = dict(zip(kernels, ((forward, 0), (255, spilled)), strict=True))
    counted = {} if whole is None else dict(zip(kernels, whole, strict=True))
    return Case(f"scan-{name}", lambda: scan(**kwargs), budget, main, slow, counted)


def chunks(name: str, registers: int, whole: tuple[float, float], slow: bool = False, **kwargs: Any) -> Case:
    """A sequence that is cut: registers of the two walks over chunks, which must not spill; see `Case.whole`."""
    kernels = ("scan_chunks", "scan_gradient_chunks")
    budget = dict.fromkeys(kernels, (registers, 0)) | {"scan_carry": (40, 0)}
    counted = dict(zip(kernels, whole, strict=True))
    return Case(f"scan-{name}", lambda: scan(length=512, **kwargs), budget, not slow, slow, counted)


BF16, FP16 = torch.bfloat16, torch.float16
NO_STATE = ("initial_state",)
# About a tenth above what was counted with Triton 3.7.1; instructions a twentieth above.
CASES = [
    case("bf16-bld", 255, 900, True, whole=(14.3, 41.9), dtype=BF16, absent=NO_STATE),
    case("bf16-bdl", 184, 660, whole=(12.7, 39.1), dtype=BF16, absent=NO_STATE, order="bdl"),
    case("bf16-bdl-odd-length", 184, 1000, whole=(13.4, 42.5), dtype=BF16, length=77, order="bdl"),
    case("fp32-bld", 255, 940, whole=(13.4, 40.6), absent=NO_STATE),
    case("fp32-bdl", 184, 700, whole=(11.6, 37.4), absent=NO_STATE, order="bdl"),
    case("fp32-1-step", 72, 0, length=1),
    case("fp16-bare", 208, 740, dtype=FP16, absent=OPTIONAL),
    case("bf16-everything", 192, 1510, dtype=BF16, packed=True, reverse=True, last=True, groups=(2, 2)),
    case("fp32-constant", 184, 740, slow=True, groups=(None, None), order="bdl"),
    case("bf16-1-state", 176, 80, slow=True, dtype=BF16, states=1),
    case("bf16-8-states", 255, 1760, slow=True, dtype=BF16, states=8),
    case("bf16-64-states", 224, 780, slow=True, dtype=BF16, states=64),
    case("bf16-256-states", 255, 920, slow=True, dtype=BF16, states=256),
    chunks("bf16-bld-chunks", 152, (8.6, 9.9), dtype=BF16, absent=NO_STATE),
    chunks("bf16-bdl-chunks", 144, (8.3, 9.1), slow=True, dtype=BF16, absent=NO_STATE, order="bdl"),
    chunks("fp32-everything-chunks", 152, (10.2, 11.2), slow=True, packed=True, reverse=True, last=True, groups=(2, 2)),
]
