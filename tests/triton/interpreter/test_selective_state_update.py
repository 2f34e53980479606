"""selective_state_update in Triton, interpreted: one step against the float64 reference, and what it writes."""

from functools import partial

import pytest
import torch

from tests.support.operators import same_bits
from tests.support.operators.updates import SELECTIVE_STATE_UPDATE, odd_step_problem, step_problem

pytestmark = pytest.mark.usefixtures("poison")
check, run = (partial(f, backend="triton") for f in (SELECTIVE_STATE_UPDATE.check, SELECTIVE_STATE_UPDATE.run))


@pytest.mark.parametrize("states", [1, 2, 3, 8, 16, 17, 64, 256])
@pytest.mark.parametrize("state", ["bdn", "bnd", "strided"])
def test_states_and_memory_orders(states, state):
    for channels in (1, 19, 67):
        check(step_problem(2, channels, states, state=state))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("order", ["rows", "strided"])
@pytest.mark.parametrize("softplus", [False, True])
def test_dtypes(dtype, order, softplus):
    check(step_problem(2, 35, 5, dtype=dtype, order=order), dt_softplus=softplus)


@pytest.mark.parametrize("state", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("x", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_state_of_another_dtype(x, state):
    """The output comes from the state before it is rounded."""
    problem = step_problem(2, 19, 16, dtype=x)
    problem["state"] = problem["state"].to(state)
    out, after = check(problem)
    assert (out.dtype, after.dtype) == (x, state)


def test_parameters_of_other_dtypes_and_strides():
    problem = odd_step_problem()
    check(problem)


@pytest.mark.parametrize("groups", [1, 2, 3, 18])
def test_groups(groups):
    problem = step_problem(2, 18, 4, groups=groups)
    check(problem)
    check(problem | {"B": problem["B"][:, 0]})
    check(problem | {"C": problem["C"][:, 0]})


@pytest.mark.parametrize("absent", [("D",), ("z",), ("dt_bias",), ("D", "z", "dt_bias")], ids=str)
def test_optional_arguments(absent):
    check(step_problem(2, 18, 16, absent=absent))


def test_no_batch():
    out, state = run(step_problem(0, 5, 4))
    assert (out.shape, state.shape) == ((0, 5), (0, 5, 4))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 1e4, -1e4])
@pytest.mark.parametrize("where", ["state", "x", "dt", "z", "A", "D", "dt_bias"])
def test_extreme_values_stay_in_their_channel(where, bad):
    problem = step_problem(2, 37, 5)
    broken = {n: v.clone() for n, v in problem.items()}
    broken[where][(slice(None),) * (where in ("state", "x", "dt", "z")) + (18,)] = bad
    others = torch.arange(37) != 18
    got = run(broken)
    for clean, value in zip(run(problem), got, strict=True):
        assert same_bits(clean[:, others], value[:, others])
    expected = SELECTIVE_STATE_UPDATE.run(broken, backend="reference")
    torch.testing.assert_close(got, expected, equal_nan=True, rtol=1e-5, atol=1e-5)


def test_writes_nothing_but_the_state():
    whole = torch.randn(4, 2 * 19, 40)
    view = whole[1:3, 1::2, 3:19]
    problem = step_problem(2, 19, 16)
    problem["state"] = view
    before = whole.clone()
    expected = run(problem)[1]
    SELECTIVE_STATE_UPDATE.public(**problem, backend="triton")
    assert torch.equal(view, expected)
    view.copy_(before[1:3, 1::2, 3:19])
    assert torch.equal(whole, before)


def test_out_has_the_memory_order_of_x():
    problem = step_problem(3, 5, 4)
    problem["x"] = torch.randn(5, 3).T
    assert run(problem)[0].stride() == (1, 3)


def test_same_bits_at_every_call():
    problem = step_problem(2, 70, 16)
    assert all(same_bits(a, b) for a, b in zip(run(problem), run(problem), strict=True))
