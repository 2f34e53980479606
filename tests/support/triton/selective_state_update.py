"""Ahead-of-time compile cases of selective_state_update's Triton kernel: calls, and their budgets on sm_90."""

from typing import Any

import torch

from bdam_fast.ops.selective_state_update import triton_impl
from tests.support.operators.updates import SELECTIVE_STATE_UPDATE, step_problem
from tests.support.triton.launches import Case


def update(batch: int = 2, **kwargs: Any) -> None:
    """A step of 128 channels of each batch item and 16 states."""
    triton_impl.update(*SELECTIVE_STATE_UPDATE.raw_arguments(step_problem(batch, 128, 16, **kwargs)))


BUDGET = {"update_kernel": (72, 0)}
CASES = [
    Case("state-update-bf16", lambda: update(dtype=torch.bfloat16), BUDGET, True),
    Case("state-update-fp32-strided", lambda: update(state="strided", order="strided", groups=2), BUDGET),
]
