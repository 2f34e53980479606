"""The Triton kernels' arguments are checked before a kernel runs: from Python, in a graph, and by the raw operators."""

import re

import pytest
import torch

import bdam_fast
from bdam_fast._operators import NAMESPACES, OPERATORS
from tests.support.operators.wrong_arguments import CASES, EVERY, GOOD, check_raw_refused, check_refused, raw_cases

RAW = NAMESPACES["triton"]


@pytest.fixture(autouse=True)
def no_kernel():
    """No Triton kernel runs in these tests."""
    bdam_fast.reset_call_counts()
    yield
    assert [name for name, count in bdam_fast.call_counts().items() if count and ".triton." in name] == []


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize(("op", "case"), EVERY)
def test_error(op, case, grad):
    check_refused(op, case, "triton", grad)


@pytest.mark.parametrize(("op", "case"), [(op, case) for op in CASES for case in raw_cases(op)])
def test_raw_operator(op, case):
    check_raw_refused(op, case, "triton")


def test_a_state_of_fewer_rows_in_a_pool():
    pool = torch.zeros(4, 8, 4)
    with pytest.raises(ValueError, match=r"conv_state must have shape \(2, 8, 3\), got \(1, 8, 3\)"):
        bdam_fast.causal_conv1d_update(torch.randn(2, 8), pool[:1, :, :3], torch.randn(8, 4), backend="triton")
    assert pool.count_nonzero() == 0


@pytest.mark.parametrize("op", CASES)
def test_compiled(op):
    torch._dynamo.reset()
    good = GOOD[op]()
    first = next(iter(good))
    changes, error, _ = CASES[op][f"{first} has one more row"]
    with pytest.raises(error, match=f"^{op}: "):
        torch.compile(getattr(bdam_fast, op), backend="eager")(**good | changes, backend="triton")


U, A = torch.ones(2, 6, 20), -torch.ones(6, 3)
SCAN = {"dout": U, "dlast_state": torch.ones(2, 6, 3), "u": U, "delta": U, "A": A, "B": A, "C": A}
SCAN |= dict.fromkeys(("D", "z", "delta_bias", "initial_state", "seq_idx")) | {"checkpoint": torch.ones(2, 52)}
CONV = {"dout": U, "dfinal_states": torch.ones(2, 6, 3), "x": U, "weight": torch.ones(6, 4)}
CONV |= dict.fromkeys(("bias", "initial_states", "seq_idx"))
HSIC = {"dvalue": torch.ones(2), "x": torch.ones(2, 6, 3), "y": torch.ones(2, 6, 4), "saved": torch.ones(2, 16)}
BACKWARD = {
    "selective_scan": (SCAN, (True, False)),
    "causal_conv1d": (CONV, (True, False)),
    "hsic": (HSIC, (True, False)),
}
WRONG = [
    ("selective_scan", {"dout": U[:1]}, ValueError, "dout must have shape (2, 6, 20) like u, got (1, 6, 20)"),
    ("selective_scan", {"dout": U.int()}, TypeError, "dout must be float32, bfloat16, float16 or float64, got"),
    ("selective_scan", {"dlast_state": U}, ValueError, "dlast_state must have shape (2, 6, 3), got"),
    ("selective_scan", {"A": A[:5]}, ValueError, "A must have shape (6, 3), got (5, 3)"),
    ("selective_scan", {"checkpoint": U}, ValueError, "checkpoint must have shape (2, 52), got (2, 6, 20)"),
    (
        "selective_scan",
        {"checkpoint": U.half()},
        TypeError,
        "checkpoint must be torch.float32 for these arguments, got",
    ),
    (
        "selective_scan",
        {"checkpoint": torch.ones(52, 2).mT},
        ValueError,
        "checkpoint must be contiguous, as the forward saved it, got strides (1, 2)",
    ),
    ("causal_conv1d", {"dout": U[..., 1:]}, ValueError, "dout must have shape (2, 6, 20) like x, got (2, 6, 19)"),
    ("causal_conv1d", {"dfinal_states": U}, ValueError, "dfinal_states must have shape (2, 6, 3), got (2, 6, 20)"),
    ("causal_conv1d", {"weight": torch.ones(6, 9)}, ValueError, "weight must have 1 to 8 taps, got shape (6, 9)"),
    ("hsic", {"dvalue": torch.ones(3)}, ValueError, "dvalue must have shape (2,), got (3,)"),
    ("hsic", {"dvalue": torch.ones(2).half()}, TypeError, "dvalue must be torch.float32 for these arguments, got"),
    ("hsic", {"saved": torch.ones(2, 15)}, ValueError, "saved must have shape (2, 16), got (2, 15)"),
    ("hsic", {"y": torch.ones(2, 5, 4)}, ValueError, "y must have shape (2, 6, Dy) like x, got (2, 5, 4)"),
]


@pytest.mark.parametrize(("op", "changes", "error", "text"), WRONG)
def test_raw_backward(op, changes, error, text):
    OPERATORS[op].raw("triton")
    tensors, flags = BACKWARD[op]
    with pytest.raises(error, match=f"^{re.escape(f'{op}: {text}')}"):
        getattr(getattr(torch.ops, RAW), f"{op}_backward")(*(tensors | changes).values(), *flags)


WIDTHS = [
    ((torch.ones(2), None, False), ValueError, 'sigma_x is for kernel="rbf" only'),
    ((None, torch.ones(3), True), ValueError, "sigma_y must have shape (2,), got (3,)"),
    ((None, torch.ones(2).half(), True), TypeError, "sigma_y must be torch.float32 for these arguments, got"),
]


@pytest.mark.parametrize(("widths", "error", "text"), WIDTHS)
def test_raw_widths_of_hsic(widths, error, text):
    raw = OPERATORS["hsic"].raw("triton")
    with pytest.raises(error, match=f"^hsic: {re.escape(text)}"):
        raw(HSIC["x"], HSIC["y"], *widths, False)
