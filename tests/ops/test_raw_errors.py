"""Checks in C++ of the raw operators; test_wrong_arguments.py has the public functions'."""

import pytest
import torch
from torch import ones

from tests.support.operators.kernels import CONV, HSIC, SCAN
from tests.support.operators.selective_scan import scan_problem
from tests.support.operators.wrong_arguments import GOOD, check_refused_in_cpp

A, B = ones(2, 6, 3), ones(2, 6, 4)
RAW = {
    "selective_scan": {
        "delta": ({"delta": ones(2, 6, 7)}, "delta must have shape (2, 6, 8), got (2, 6, 7)"),
        "u": ({"u": ones(6)}, "u must have shape (B, D, L), got (6,)"),
        "A": ({"A": ones(6)}, "A must have shape (D, N), got (6,)"),
        "dtype": ({"u": ones(2, 6, 8, dtype=torch.int32)}, "u must be float32, bfloat16"),
        "states": ({"A": ones(6, 300)}, "needs D >= 1 and 1 <= N <= 256, got D = 6, N = 300"),
        "dim": ({"B": ones(3)}, "B must have 2, 3 or 4 dimensions, got 1"),
        "groups": ({"C": ones(2, 4, 3, 8)}, "C has 4 groups, which must divide the 6 channels"),
        "mixed": (
            {"B": ones(2, 2, 3, 8), "C": ones(2, 3, 3, 8)},
            "B and C must have as many groups, got 2 and 3",
        ),
        "index": ({"seq_idx": ones(2, 8, dtype=torch.int64)}, "seq_idx must be int32"),
    },
    "selective_state_update": {
        "state": ({"state": ones(6)}, "state must have shape (B, D, N), got (6,)"),
        "states": ({"state": ones(2, 6, 300)}, "needs D >= 1 and 1 <= N <= 256, got D = 6, N = 300"),
        "expanded": ({"state": ones(2, 6, 1).expand(-1, -1, 3)}, "must not be expanded, got strides (6, 1, 0)"),
        "dtype": ({"x": ones(2, 6).int()}, "x must be float32, bfloat16, float16 or float64"),
        "dt": ({"dt": ones(2, 5)}, "dt must have shape (2, 6), got (2, 5)"),
        "A": ({"A": ones(6)}, "A must have shape (6, 3), got (6,)"),
        "dim": ({"B": ones(3)}, "B must have 2 or 3 dimensions, got 1"),
        "groups": ({"C": ones(2, 4, 3)}, "C has 4 groups, which must divide the 6 channels"),
        "mixed": ({"B": ones(2, 2, 3), "C": ones(2, 3, 3)}, "B and C must have as many groups, got 2 and 3"),
        "z": ({"z": ones(2, 7)}, "z must have shape (2, 6), got (2, 7)"),
        "bias": ({"dt_bias": ones(1)}, "dt_bias must have shape (6,), got (1,)"),
    },
    "causal_conv1d": {
        "x": ({"x": ones(6)}, "x must have shape (B, D, L), got (6,)"),
        "dtype": ({"x": ones(2, 6, 8).int()}, "x must be float32, bfloat16, float16 or float64"),
        "weight": ({"weight": ones(6)}, "weight must have shape (D, W), got (6,)"),
        "channels": ({"weight": ones(5, 4)}, "weight must have shape (6, 4), got (5, 4)"),
        "width": ({"weight": ones(6, 9)}, "needs D >= 1 and a width of 1 to 8, got D = 6, width = 9"),
        "index": ({"seq_idx": ones(2, 8).long()}, "seq_idx must be int32"),
    },
    "causal_conv1d_update": {
        "x": ({"x": ones(6)}, "x must have shape (B, D) or (B, D, L), got (6,)"),
        "dtype": ({"x": ones(2, 6).int()}, "x must be float32, bfloat16, float16 or float64"),
        "state": ({"conv_state": ones(6)}, "conv_state must have shape (B, D, S), got (6,)"),
        "batch": ({"conv_state": ones(3, 6, 4)}, "conv_state must have shape (2, 6, 4), got (3, 6, 4)"),
        "short": ({"conv_state": ones(2, 6, 2)}, "a width W of 1 to 8 and S >= W - 1, got D = 6, W = 4, S = 2"),
        "expanded": ({"conv_state": ones(2, 1, 4).expand(-1, 6, -1)}, "must not be expanded, got strides (4, 0, 1)"),
        "weight": ({"weight": ones(6)}, "weight must have shape (D, W), got (6,)"),
        "channels": ({"weight": ones(5, 4)}, "weight must have shape (6, 4), got (5, 4)"),
        "bias": ({"bias": ones(5)}, "bias must have shape (6,), got (5,)"),
    },
    "hsic": {
        "dim": ({"x": A[0]}, "x must have shape (batch, N, D), got (6, 3)"),
        "samples": ({"x": A[:, :1], "y": B[:, :1]}, "needs at least 2 samples, got 1"),
        "unbiased": ({"x": A[:, :3], "y": B[:, :3], "unbiased": True}, "needs at least 4 samples, got 3"),
        "dtype": ({"y": B.double()}, "x and y must have the same dtype"),
        "shape": ({"y": B[:, :5]}, "y must have shape (2, 6, 4), got (2, 5, 4)"),
        "feature": ({"x": A[:, :, :0]}, "x must have at least one feature"),
        "width": ({"gaussian": False}, "only the Gaussian kernel has a width"),
        "widths": ({"sigma_x": ones(3)}, "sigma_x must have shape (2,), got (3,)"),
        "kind": ({"sigma_x": ones(2).double()}, "sigma must be float32, or float64 for"),
        "gradient": ({"sigma_x": ones(2).requires_grad_()}, "a width is a constant and has no"),
    },
}


@pytest.mark.parametrize(("op", "case"), [(op, case) for op, cases in RAW.items() for case in cases])
def test_raw_operator_checks_what_it_reads(op, case):
    check_refused_in_cpp(op, *RAW[op][case])


def test_raw_backward_checks_the_upstream_gradient():
    x, weight, *_ = GOOD["causal_conv1d"]().values()
    CONV.raw()
    for bad, text in (
        (ones(3), "dout must have the shape of x, got"),
        (ones(2, 6, 7), "dout must have shape"),
    ):
        with pytest.raises(RuntimeError, match=text):
            CONV.raw_backward()(bad, None, x, weight, None, None, None, True, False)


@pytest.mark.parametrize("change", ["shape", "dtype", "strides"])
def test_raw_backward_refuses_other_saved_states(change):
    arguments = SCAN.raw_arguments(scan_problem(2, 6, 40, 3, absent=("D", "z", "delta_bias", "initial_state")))
    out, _, saved = SCAN.raw()(*arguments)
    bad = {"shape": saved[:1], "dtype": saved.double(), "strides": saved.t().contiguous().t()}
    text = "selective_scan: checkpoint must (have shape|come from the forward of the same)"
    with pytest.raises(RuntimeError, match=text):
        SCAN.raw_backward()(*SCAN.backward_arguments([out, None], [bad[change]], arguments))


def test_raw_backward_refuses_other_saved_values():
    value, saved = HSIC.raw()(A, B, None, None, False, False)
    for bad in (saved[:, 1:], saved.double(), saved.t().contiguous().t()):
        with pytest.raises(RuntimeError, match="hsic: saved must (have shape|come from the forward of the same call)"):
            HSIC.raw_backward()(value, A, B, bad, False, False)
    with pytest.raises(RuntimeError, match="hsic: dvalue must have the dtype of the value"):
        HSIC.raw_backward()(value.double(), A, B, saved, False, False)
