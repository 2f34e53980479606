"""hsic: checks in C++; tests/ops/test_wrong_arguments.py has the public function's."""

import pytest
import torch

from bdam_fast.ops.hsic import op
from tests.support.operators.wrong_arguments import check_refused_in_cpp

A, B = torch.ones(2, 6, 3), torch.ones(2, 6, 4)
RAW = {
    "dim": ({"x": A[0]}, "x must have shape (batch, N, D), got (6, 3)"),
    "samples": ({"x": A[:, :1], "y": B[:, :1]}, "needs at least 2 samples, got 1"),
    "unbiased": ({"x": A[:, :3], "y": B[:, :3], "unbiased": True}, "needs at least 4 samples, got 3"),
    "dtype": ({"y": B.double()}, "x and y must have the same dtype"),
    "shape": ({"y": B[:, :5]}, "y must have shape (2, 6, 4), got (2, 5, 4)"),
    "feature": ({"x": A[:, :, :0]}, "x must have at least one feature"),
    "width": ({"gaussian": False}, "only the Gaussian kernel has a width"),
    "widths": ({"sigma_x": torch.ones(3)}, "sigma_x must have shape (2,), got (3,)"),
    "kind": ({"sigma_x": torch.ones(2).double()}, "sigma must be float32, or float64 for"),
    "gradient": ({"sigma_x": torch.ones(2).requires_grad_()}, "a width is a constant and has no"),
}


@pytest.mark.parametrize("case", RAW)
def test_raw_operator_checks_what_it_reads(case):
    check_refused_in_cpp(op.OP, *RAW[case])


def test_raw_backward_refuses_other_saved_values():
    value, saved = op.OPERATOR.raw()(A, B, None, None, False, False)
    backward = torch.ops.bdam_fast.hsic_backward
    for bad in (saved[:, 1:], saved.double(), saved.t().contiguous().t()):
        with pytest.raises(RuntimeError, match="hsic: saved must (have shape|come from the forward of the same call)"):
            backward(value, A, B, bad, False, False)
    with pytest.raises(RuntimeError, match="hsic: dvalue must have the dtype of the value"):
        backward(value.double(), A, B, saved, False, False)
