"""causal_conv1d: each error text."""

import pytest
import torch

import bdam_fast
from bdam_fast.ops.causal_conv1d import op
from tests.ops.causal_conv1d.test_values import BACKENDS, NAMES, conv_problem

GOOD = {"batch": 2, "channels": 6, "length": 8}
CASES = {
    "x list": ({"x": [1.0]}, TypeError, "causal_conv1d: x must be a tensor, got list"),
    "x int": ({"x": torch.ones(2, 6, 8).int()}, TypeError, "causal_conv1d: x must be float32, bfloat16, float16 or"),
    "x dim": ({"x": torch.ones(6, 8)}, ValueError, r"causal_conv1d: x must have shape \(B, D, L\), got \(6, 8\)"),
    "no channel": ({"x": torch.ones(2, 0, 8)}, ValueError, "causal_conv1d: x must have at least one channel, got"),
    "weight list": ({"weight": [1.0]}, TypeError, "causal_conv1d: weight must be a tensor, got list"),
    "weight dim": ({"weight": torch.ones(6, 1, 4)}, ValueError, r"weight must have shape \(D, W\), got \(6, 1, 4\)"),
    "weight": ({"weight": torch.ones(5, 4)}, ValueError, r"weight must have shape \(6, 4\), got \(5, 4\)"),
    "wide": ({"weight": torch.ones(6, 9)}, ValueError, r"weight must have 1 to 8 taps, got shape \(6, 9\)"),
    "no tap": ({"weight": torch.ones(6, 0)}, ValueError, r"weight must have 1 to 8 taps, got shape \(6, 0\)"),
    "bias": ({"bias": torch.ones(6, 1)}, ValueError, r"bias must have shape \(6,\), got \(6, 1\)"),
    "state": ({"initial_states": torch.ones(2, 6, 4)}, ValueError, r"initial_states must have shape \(2, 6, 3\), got"),
    "silu": ({"activation": "relu"}, ValueError, 'activation must be None, "silu" or "swish", got \'relu\''),
    "activation": ({"activation": True}, TypeError, "activation must be None or a string, got bool"),
    "index type": ({"seq_idx": torch.zeros(2, 8).long()}, TypeError, "causal_conv1d: seq_idx must be int32, got"),
    "index": ({"seq_idx": torch.zeros(2, 9).int()}, ValueError, r"seq_idx must have shape \(2, 8\), got \(2, 9\)"),
    "device": ({"weight": torch.ones(6, 4, device="meta")}, ValueError, "weight must be on cpu like the first"),
    "backend": (
        {"backend": "fast"},
        ValueError,
        "causal_conv1d: backend must be one of auto, cuda, triton, cpu, reference, got",
    ),
    "cuda": ({"backend": "cuda"}, ValueError, 'causal_conv1d: backend="cuda" needs tensors on a GPU'),
}


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", CASES)
def test_error(case, backend, grad):
    changes, error, text = CASES[case]
    problem = {n: v.requires_grad_(grad) for n, v in conv_problem(**GOOD).items()}
    with pytest.raises(error, match=text):
        bdam_fast.causal_conv1d(**{"backend": backend, **problem, **changes})


RAW = {
    "x": ({0: torch.ones(6)}, r"causal_conv1d: x must have shape \(B, D, L\), got \(6,\)"),
    "dtype": ({0: torch.ones(2, 6, 8).int()}, "causal_conv1d: x must be float32, bfloat16, float16 or float64"),
    "weight": ({1: torch.ones(6)}, r"causal_conv1d: weight must have shape \(D, W\), got \(6,\)"),
    "channels": ({1: torch.ones(5, 4)}, r"causal_conv1d: weight must have shape \(6, 4\), got \(5, 4\)"),
    "width": ({1: torch.ones(6, 9)}, "causal_conv1d: needs D >= 1 and a width of 1 to 8, got D = 6, width = 9"),
    "index": ({4: torch.ones(2, 8).long()}, "causal_conv1d: seq_idx must be int32"),
}


@pytest.mark.parametrize("case", RAW)
def test_raw_operator_checks_what_it_reads(case):
    args = [*(conv_problem(**GOOD, absent=NAMES[2:]).values()), None, None, None, True, False, True]
    for place, value in RAW[case][0].items():
        args[place] = value
    with pytest.raises(RuntimeError, match=RAW[case][1]):
        op._raw()(*args)


def test_raw_backward_checks_the_upstream_gradient():
    x, weight = conv_problem(**GOOD, absent=NAMES[2:]).values()
    op._raw()
    for bad, text in (
        (torch.ones(3), "dout must have the shape of x, got"),
        (torch.ones(2, 6, 7), "dout must have shape"),
    ):
        with pytest.raises(RuntimeError, match=text):
            torch.ops.bdam_fast.causal_conv1d_backward(bad, None, x, weight, None, None, None, True, False)
