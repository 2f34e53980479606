"""selective_state_update: each error text, and that a refused call leaves the state as it was."""

import pytest
import torch

import bdam_fast
from bdam_fast.ops.selective_state_update import op
from tests.ops.selective_state_update.test_values import BACKENDS, NAMES, step_problem

GOOD = {"batch": 2, "channels": 6, "states": 3}
CASES = {
    "state list": ({"state": [1.0]}, TypeError, "selective_state_update: state must be a tensor, got list"),
    "state int": (
        {"state": torch.ones(2, 6, 3).int()},
        TypeError,
        "state must be float32, bfloat16, float16 or float64",
    ),
    "state dim": ({"state": torch.ones(6, 3)}, ValueError, r"state must have shape \(B, D, N\), got \(6, 3\)"),
    "no channel": ({"state": torch.ones(2, 0, 3)}, ValueError, "state must have at least one channel, got shape"),
    "no state": ({"state": torch.ones(2, 6, 0)}, ValueError, r"state must have 1 to 256 states, got shape \(2, 6, 0\)"),
    "states": ({"state": torch.ones(2, 6, 257)}, ValueError, r"state must have 1 to 256 states, got shape"),
    "expanded": (
        {"state": torch.ones(2, 1, 3).expand(-1, 6, -1)},
        ValueError,
        r"selective_state_update: state is updated in place and must not be expanded, got strides \(3, 0, 1\)",
    ),
    "x list": ({"x": [1.0]}, TypeError, "selective_state_update: x must be a tensor, got list"),
    "x": ({"x": torch.ones(2, 5)}, ValueError, r"selective_state_update: x must have shape \(2, 6\), got \(2, 5\)"),
    "dt": ({"dt": torch.ones(2, 6, 1)}, ValueError, r"dt must have shape \(2, 6\) like x, got \(2, 6, 1\)"),
    "A": ({"A": torch.ones(3, 6)}, ValueError, r"selective_state_update: A must have shape \(6, 3\), got \(3, 6\)"),
    "A complex": ({"A": torch.ones(6, 3).cfloat()}, TypeError, "A must be float32, bfloat16, float16 or float64, got"),
    "B dim": ({"B": torch.ones(3)}, ValueError, r"B must have shape \(B, N\) or \(B, G, N\), got \(3,\)"),
    "B": ({"B": torch.ones(6, 3)}, ValueError, r"selective_state_update: B must have shape \(2, 3\), got \(6, 3\)"),
    "groups": (
        {"C": torch.ones(2, 4, 3)},
        ValueError,
        r"C must have a number of groups that divides the 6 channels, got shape \(2, 4, 3\)",
    ),
    "grouped": ({"C": torch.ones(2, 2, 4)}, ValueError, r"C must have shape \(2, 2, 3\), got \(2, 2, 4\)"),
    "B and C": (
        {"B": torch.ones(2, 2, 3), "C": torch.ones(2, 3, 3)},
        ValueError,
        "selective_state_update: B and C must have as many groups, got 2 and 3",
    ),
    "D": ({"D": torch.ones(7)}, ValueError, r"selective_state_update: D must have shape \(6,\), got \(7,\)"),
    "z": ({"z": torch.ones(1, 6)}, ValueError, r"z must have shape \(2, 6\) like x, got \(1, 6\)"),
    "bias": ({"dt_bias": torch.ones(6, 1)}, ValueError, r"dt_bias must have shape \(6,\), got \(6, 1\)"),
    "bias list": ({"dt_bias": [1.0]}, TypeError, "selective_state_update: dt_bias must be a tensor, got list"),
    "device": (
        {"x": torch.ones(2, 6, device="meta")},
        ValueError,
        "x must be on cpu like the first argument, got meta",
    ),
    "backend": (
        {"backend": "fast"},
        ValueError,
        "selective_state_update: backend must be one of auto, cuda, triton, cpu, reference",
    ),
    "cuda": ({"backend": "cuda"}, ValueError, 'selective_state_update: backend="cuda" needs tensors on a GPU'),
}


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", CASES)
def test_error(case, backend, grad):
    changes, error, text = CASES[case]
    problem = step_problem(**GOOD)
    problem = {n: v.requires_grad_(grad and n != "state") for n, v in problem.items()}
    before = problem["state"].clone()
    with pytest.raises(error, match=text):
        bdam_fast.selective_state_update(**{"backend": backend, **problem, **changes})
    assert torch.equal(problem["state"], before)


RAW = {
    "state": ({0: torch.ones(6)}, r"selective_state_update: state must have shape \(B, D, N\), got \(6,\)"),
    "states": ({0: torch.ones(2, 6, 300)}, "needs D >= 1 and 1 <= N <= 256, got D = 6, N = 300"),
    "expanded": ({0: torch.ones(2, 6, 1).expand(-1, -1, 3)}, r"must not be expanded, got strides \(6, 1, 0\)"),
    "dtype": ({1: torch.ones(2, 6).int()}, "selective_state_update: x must be float32, bfloat16, float16 or float64"),
    "dt": ({2: torch.ones(2, 5)}, r"selective_state_update: dt must have shape \(2, 6\), got \(2, 5\)"),
    "A": ({3: torch.ones(6)}, r"selective_state_update: A must have shape \(6, 3\), got \(6,\)"),
    "dim": ({4: torch.ones(3)}, "selective_state_update: B must have 2 or 3 dimensions, got 1"),
    "groups": ({5: torch.ones(2, 4, 3)}, "selective_state_update: C has 4 groups, which must divide the 6 channels"),
    "mixed": ({4: torch.ones(2, 2, 3), 5: torch.ones(2, 3, 3)}, "B and C must have as many groups, got 2 and 3"),
    "z": ({7: torch.ones(2, 7)}, r"selective_state_update: z must have shape \(2, 6\), got \(2, 7\)"),
    "bias": ({8: torch.ones(1)}, r"selective_state_update: dt_bias must have shape \(6,\), got \(1,\)"),
}


@pytest.mark.parametrize("case", RAW)
def test_raw_operator_checks_what_it_touches(case):
    args = [step_problem(**GOOD)[n] for n in NAMES] + [True]
    before = args[0].clone()
    state = args[0]
    for place, value in RAW[case][0].items():
        args[place] = value
    with pytest.raises(RuntimeError, match=RAW[case][1]):
        op._raw()(*args)
    assert torch.equal(state, before)


@pytest.mark.parametrize("place", range(1, 9))
def test_raw_operator_does_not_mix_real_and_meta_tensors(place):
    args = [step_problem(**GOOD)[n] for n in NAMES] + [True]
    args[place] = args[place].to("meta")
    with pytest.raises(ValueError, match="selective_state_update: all tensors must be on cpu like the first argument"):
        op._raw()(*args)
