"""causal_conv1d: checks in C++; tests/ops/test_wrong_arguments.py has the public function's."""

import pytest
import torch

from bdam_fast.ops.causal_conv1d import op
from tests.support.operators.wrong_arguments import GOOD, check_refused_in_cpp

RAW = {
    "x": ({"x": torch.ones(6)}, "x must have shape (B, D, L), got (6,)"),
    "dtype": ({"x": torch.ones(2, 6, 8).int()}, "x must be float32, bfloat16, float16 or float64"),
    "weight": ({"weight": torch.ones(6)}, "weight must have shape (D, W), got (6,)"),
    "channels": ({"weight": torch.ones(5, 4)}, "weight must have shape (6, 4), got (5, 4)"),
    "width": ({"weight": torch.ones(6, 9)}, "needs D >= 1 and a width of 1 to 8, got D = 6, width = 9"),
    "index": ({"seq_idx": torch.ones(2, 8).long()}, "seq_idx must be int32"),
}


@pytest.mark.parametrize("case", RAW)
def test_raw_operator_checks_what_it_reads(case):
    check_refused_in_cpp(op.OP, *RAW[case])


def test_raw_backward_checks_the_upstream_gradient():
    x, weight, *_ = GOOD[op.OP]().values()
    op.OPERATOR.raw()
    for bad, text in (
        (torch.ones(3), "dout must have the shape of x, got"),
        (torch.ones(2, 6, 7), "dout must have shape"),
    ):
        with pytest.raises(RuntimeError, match=text):
            torch.ops.bdam_fast.causal_conv1d_backward(bad, None, x, weight, None, None, None, True, False)
