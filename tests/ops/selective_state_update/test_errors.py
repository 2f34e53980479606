"""selective_state_update: checks in C++; tests/ops/test_wrong_arguments.py has the public function's."""

import pytest
import torch

from bdam_fast.ops.selective_state_update import op
from tests.support.operators.wrong_arguments import check_refused_in_cpp

RAW = {
    "state": ({"state": torch.ones(6)}, "state must have shape (B, D, N), got (6,)"),
    "states": ({"state": torch.ones(2, 6, 300)}, "needs D >= 1 and 1 <= N <= 256, got D = 6, N = 300"),
    "expanded": ({"state": torch.ones(2, 6, 1).expand(-1, -1, 3)}, "must not be expanded, got strides (6, 1, 0)"),
    "dtype": ({"x": torch.ones(2, 6).int()}, "x must be float32, bfloat16, float16 or float64"),
    "dt": ({"dt": torch.ones(2, 5)}, "dt must have shape (2, 6), got (2, 5)"),
    "A": ({"A": torch.ones(6)}, "A must have shape (6, 3), got (6,)"),
    "dim": ({"B": torch.ones(3)}, "B must have 2 or 3 dimensions, got 1"),
    "groups": ({"C": torch.ones(2, 4, 3)}, "C has 4 groups, which must divide the 6 channels"),
    "mixed": ({"B": torch.ones(2, 2, 3), "C": torch.ones(2, 3, 3)}, "B and C must have as many groups, got 2 and 3"),
    "z": ({"z": torch.ones(2, 7)}, "z must have shape (2, 6), got (2, 7)"),
    "bias": ({"dt_bias": torch.ones(1)}, "dt_bias must have shape (6,), got (1,)"),
}


@pytest.mark.parametrize("case", RAW)
def test_raw_operator_checks_what_it_reads(case):
    check_refused_in_cpp(op.OP, *RAW[case])
