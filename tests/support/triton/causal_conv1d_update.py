"""Ahead-of-time compile cases of causal_conv1d_update's Triton kernel: calls, and its budget on sm_90."""

from typing import Any

import torch

from bdam_fast.ops.causal_conv1d_update import triton_impl
from tests.support.operators.updates import CAUSAL_CONV1D_UPDATE, update_problem
from tests.support.triton.launches import Case


def update(length: int = 0, width: int = 4, batch: int = 2, **kwargs: Any) -> None:
    """A call for 128 channels of each batch item."""
    triton_impl.update(*CAUSAL_CONV1D_UPDATE.raw_arguments(update_problem(batch, 128, length, width, **kwargs)))


BUDGET = {"update_kernel": (72, 0)}
CASES = [
    Case("conv-update-bf16", lambda: update(dtype=torch.bfloat16), BUDGET, True),
    Case("conv-update-fp32-bld", lambda: update(3, order="bld", absent=("bias",)), BUDGET),
    Case("conv-update-fp16-8", lambda: update(width=8, dtype=torch.float16), BUDGET),
]
