"""selective_scan: checks in C++; tests/ops/test_wrong_arguments.py has the public function's."""

import pytest
import torch

from bdam_fast.ops.selective_scan import op
from tests.support.operators import scan_problem
from tests.support.operators.wrong_arguments import check_refused_in_cpp

RAW = {
    "delta": ({"delta": torch.ones(2, 6, 7)}, "delta must have shape (2, 6, 8), got (2, 6, 7)"),
    "u": ({"u": torch.ones(6)}, "u must have shape (B, D, L), got (6,)"),
    "A": ({"A": torch.ones(6)}, "A must have shape (D, N), got (6,)"),
    "dtype": ({"u": torch.ones(2, 6, 8, dtype=torch.int32)}, "u must be float32, bfloat16"),
    "states": ({"A": torch.ones(6, 300)}, "needs D >= 1 and 1 <= N <= 256, got D = 6, N = 300"),
    "dim": ({"B": torch.ones(3)}, "B must have 2, 3 or 4 dimensions, got 1"),
    "groups": ({"C": torch.ones(2, 4, 3, 8)}, "C has 4 groups, which must divide the 6 channels"),
    "mixed": (
        {"B": torch.ones(2, 2, 3, 8), "C": torch.ones(2, 3, 3, 8)},
        "B and C must have as many groups, got 2 and 3",
    ),
    "index": ({"seq_idx": torch.ones(2, 8, dtype=torch.int64)}, "seq_idx must be int32"),
}


@pytest.mark.parametrize("case", RAW)
def test_raw_operator_checks_what_it_reads(case):
    check_refused_in_cpp(op.OP, *RAW[case])


@pytest.mark.parametrize("change", ["shape", "dtype", "strides"])
def test_raw_backward_refuses_other_saved_states(change):
    problem = scan_problem(2, 6, 40, 3, absent=("D", "z", "delta_bias", "initial_state"))
    args = [problem[n] for n in ("u", "delta", "A", "B", "C")] + [None] * 5
    out, _, saved = op.OPERATOR.raw()(*args, True, False, False, True)
    bad = {"shape": saved[:1], "dtype": saved.double(), "strides": saved.transpose(3, 4).contiguous().transpose(3, 4)}
    with pytest.raises(
        RuntimeError, match="selective_scan: checkpoint must (have shape|come from the forward of the same)"
    ):
        torch.ops.bdam_fast.selective_scan_backward(out, None, *args, bad[change], True, False)
