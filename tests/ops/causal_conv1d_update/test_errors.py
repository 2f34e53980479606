"""causal_conv1d_update: checks in C++; tests/ops/test_wrong_arguments.py has the public function's."""

import pytest
import torch

from bdam_fast.ops.causal_conv1d_update import op
from tests.support.operators.wrong_arguments import check_refused_in_cpp

RAW = {
    "x": ({"x": torch.ones(6)}, "x must have shape (B, D) or (B, D, L), got (6,)"),
    "dtype": ({"x": torch.ones(2, 6).int()}, "x must be float32, bfloat16, float16 or float64"),
    "state": ({"conv_state": torch.ones(6)}, "conv_state must have shape (B, D, S), got (6,)"),
    "batch": ({"conv_state": torch.ones(3, 6, 4)}, "conv_state must have shape (2, 6, 4), got (3, 6, 4)"),
    "short": ({"conv_state": torch.ones(2, 6, 2)}, "a width W of 1 to 8 and S >= W - 1, got D = 6, W = 4, S = 2"),
    "expanded": ({"conv_state": torch.ones(2, 1, 4).expand(-1, 6, -1)}, "must not be expanded, got strides (4, 0, 1)"),
    "weight": ({"weight": torch.ones(6)}, "weight must have shape (D, W), got (6,)"),
    "channels": ({"weight": torch.ones(5, 4)}, "weight must have shape (6, 4), got (5, 4)"),
    "bias": ({"bias": torch.ones(5)}, "bias must have shape (6,), got (5,)"),
}


@pytest.mark.parametrize("case", RAW)
def test_raw_operator_checks_what_it_reads(case):
    check_refused_in_cpp(op.OP, *RAW[case])
