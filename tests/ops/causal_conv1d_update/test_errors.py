"""causal_conv1d_update: each error text, and that a refused call leaves the state as it was."""

import pytest
import torch

import bdam_fast
from bdam_fast.ops.causal_conv1d_update import op
from tests.ops.causal_conv1d_update.test_values import BACKENDS, NAMES, update_problem

CASES = {
    "x list": ({"x": [1.0]}, TypeError, "causal_conv1d_update: x must be a tensor, got list"),
    "x int": ({"x": torch.ones(2, 6).int()}, TypeError, "x must be float32, bfloat16, float16 or float64, got"),
    "x dim": ({"x": torch.ones(6)}, ValueError, r"x must have shape \(B, D\) or \(B, D, L\), got \(6,\)"),
    "no channel": ({"x": torch.ones(2, 0)}, ValueError, "causal_conv1d_update: x must have at least one channel, got"),
    "state list": ({"conv_state": [1.0]}, TypeError, "causal_conv1d_update: conv_state must be a tensor, got list"),
    "state dim": (
        {"conv_state": torch.ones(6, 4)},
        ValueError,
        r"conv_state must have shape \(B, D, S\), got \(6, 4\)",
    ),
    "state": (
        {"conv_state": torch.ones(1, 6, 4)},
        ValueError,
        r"conv_state must have shape \(2, 6, 4\), got \(1, 6, 4\)",
    ),
    "short": (
        {"conv_state": torch.ones(2, 6, 2)},
        ValueError,
        r"conv_state must have at least W - 1 = 3 entries, got shape \(2, 6, 2\)",
    ),
    "expanded": (
        {"conv_state": torch.ones(1, 6, 4).expand(2, -1, -1)},
        ValueError,
        r"causal_conv1d_update: conv_state is updated in place and must not be expanded, got strides \(0, 4, 1\)",
    ),
    "weight dim": ({"weight": torch.ones(6, 1, 4)}, ValueError, r"weight must have shape \(D, W\), got \(6, 1, 4\)"),
    "weight": ({"weight": torch.ones(5, 4)}, ValueError, r"weight must have shape \(6, 4\), got \(5, 4\)"),
    "wide": ({"weight": torch.ones(6, 9)}, ValueError, r"weight must have 1 to 8 taps, got shape \(6, 9\)"),
    "bias": ({"bias": torch.ones(6, 1)}, ValueError, r"bias must have shape \(6,\), got \(6, 1\)"),
    "silu": (
        {"activation": "relu"},
        ValueError,
        'causal_conv1d_update: activation must be None, "silu" or "swish", got',
    ),
    "activation": (
        {"activation": True},
        TypeError,
        "causal_conv1d_update: activation must be None or a string, got bool",
    ),
    "device": ({"weight": torch.ones(6, 4, device="meta")}, ValueError, "weight must be on cpu like the first"),
    "backend": (
        {"backend": "fast"},
        ValueError,
        "causal_conv1d_update: backend must be one of auto, cuda, triton, cpu, reference",
    ),
    "cuda": ({"backend": "cuda"}, ValueError, 'causal_conv1d_update: backend="cuda" needs tensors on a GPU'),
}


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", CASES)
def test_error(case, backend, grad):
    changes, error, text = CASES[case]
    problem = {n: v.requires_grad_(grad and n != "conv_state") for n, v in update_problem(2, 6).items()}
    before = problem["conv_state"].clone()
    with pytest.raises(error, match=text):
        bdam_fast.causal_conv1d_update(**{"backend": backend, **problem, **changes})
    assert torch.equal(problem["conv_state"], before)


RAW = {
    "x": ({0: torch.ones(6)}, r"causal_conv1d_update: x must have shape \(B, D\) or \(B, D, L\), got \(6,\)"),
    "dtype": ({0: torch.ones(2, 6).int()}, "causal_conv1d_update: x must be float32, bfloat16, float16 or float64"),
    "state": ({1: torch.ones(6)}, r"causal_conv1d_update: conv_state must have shape \(B, D, S\), got \(6,\)"),
    "batch": ({1: torch.ones(3, 6, 4)}, r"conv_state must have shape \(2, 6, 4\), got \(3, 6, 4\)"),
    "short": ({1: torch.ones(2, 6, 2)}, "a width W of 1 to 8 and S >= W - 1, got D = 6, W = 4, S = 2"),
    "expanded": ({1: torch.ones(2, 1, 4).expand(-1, 6, -1)}, r"must not be expanded, got strides \(4, 0, 1\)"),
    "weight": ({2: torch.ones(6)}, r"causal_conv1d_update: weight must have shape \(D, W\), got \(6,\)"),
    "channels": ({2: torch.ones(5, 4)}, r"causal_conv1d_update: weight must have shape \(6, 4\), got \(5, 4\)"),
    "bias": ({3: torch.ones(5)}, r"causal_conv1d_update: bias must have shape \(6,\), got \(5,\)"),
}


@pytest.mark.parametrize("case", RAW)
def test_raw_operator_checks_what_it_touches(case):
    args = [update_problem(2, 6)[n] for n in NAMES] + [True]
    state, before = args[1], args[1].clone()
    for place, value in RAW[case][0].items():
        args[place] = value
    with pytest.raises(RuntimeError, match=RAW[case][1]):
        op._raw()(*args)
    assert torch.equal(state, before)


@pytest.mark.parametrize("place", range(1, 4))
def test_raw_operator_does_not_mix_real_and_meta_tensors(place):
    args = [update_problem(2, 6)[n] for n in NAMES] + [True]
    args[place] = args[place].to("meta")
    with pytest.raises(ValueError, match="causal_conv1d_update: all tensors must be on cpu like the first argument"):
        op._raw()(*args)
