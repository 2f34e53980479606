"""selective_state_update: one step against the float64 reference and against the scan, and what it writes."""

import pytest
import torch

import bdam_fast
from tests.support.operators import BACKENDS, same_bits
from tests.support.operators.updates import check_step, odd_step_problem, run_step, step_problem

pytestmark = pytest.mark.usefixtures("kernels")
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("states", [1, 2, 3, 4, 8, 12, 16, 17, 24, 32, 64, 256])
@pytest.mark.parametrize("state", ["bdn", "bnd", "strided"])
def test_states_and_memory_orders(isa, states, state):
    for channels in (1, 19, 131):
        check_step(step_problem(2, channels, states, state=state))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("order", ["rows", "strided"])
def test_dtypes(isa, dtype, order):
    for states in (5, 16):
        for softplus in (False, True):
            check_step(step_problem(2, 35, states, dtype=dtype, order=order), dt_softplus=softplus)


@pytest.mark.parametrize("state", DTYPES, ids=str)
@pytest.mark.parametrize("x", DTYPES, ids=str)
def test_state_of_another_dtype(isa, x, state):
    """The output comes from the state before it is rounded."""
    problem = step_problem(2, 19, 16, dtype=x)
    problem["state"] = problem["state"].to(state)
    out, after = check_step(problem)
    assert (out.dtype, after.dtype) == (x, state)


def test_parameters_of_other_dtypes_and_strides():
    problem = odd_step_problem()
    check_step(problem)
    check_step(problem | {"A": -torch.rand(18, 16).bfloat16()})


@pytest.mark.parametrize("groups", [1, 2, 3, 18])
def test_groups(isa, groups):
    check_step(step_problem(2, 18, 4, groups=groups))
    problem = step_problem(2, 18, 4, groups=groups)
    check_step(problem | {"B": problem["B"][:, 0]})
    check_step(step_problem(1, 600, 16, groups=2))


@pytest.mark.parametrize("absent", [("D",), ("z",), ("dt_bias",), ("D", "z", "dt_bias")], ids=str)
def test_optional_arguments(isa, absent):
    check_step(step_problem(2, 18, 16, absent=absent))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("groups", [0, 3])
def test_steps_are_the_scan(backend, groups):
    batch, channels, states, length = 2, 18, 16, 9
    steps = [step_problem(batch, channels, states, groups=groups) for _ in range(length)]
    shared = {n: steps[0][n] for n in ("A", "D", "dt_bias")}
    state = steps[0]["state"].clone()
    outs = [
        bdam_fast.selective_state_update(**{**s, **shared, "state": state}, dt_softplus=True, backend=backend)
        for s in steps
    ]
    u, delta, B, C, z = (torch.stack([s[n] for s in steps], -1) for n in ("x", "dt", "B", "C", "z"))
    expected, last = bdam_fast.selective_scan(
        *(u, delta, shared["A"], B, C, shared["D"], z, shared["dt_bias"], True, True),
        initial_state=steps[0]["state"],
        backend=backend,
    )
    torch.testing.assert_close(torch.stack(outs, -1), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(state, last, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_by_hand(backend):
    state = torch.tensor([[[4.0]]])
    out = bdam_fast.selective_state_update(
        *(state, torch.tensor([[2.0]]), torch.tensor([[0.5]]), torch.tensor([[-1.0]])),
        *(torch.tensor([[3.0]]), torch.tensor([[2.0]]), torch.tensor([10.0])),
        backend=backend,
    )
    h = torch.exp(torch.tensor(-0.5)) * 4 + 0.5 * 3 * 2
    torch.testing.assert_close(state, h.view(1, 1, 1))
    torch.testing.assert_close(out, (2 * h + 10 * 2).view(1, 1))


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_batch(backend):
    out, state = run_step(step_problem(0, 5, 4), backend=backend)
    assert (out.shape, state.shape) == ((0, 5), (0, 5, 4))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 1e4, -1e4])
@pytest.mark.parametrize("where", ["state", "x", "dt", "z", "A", "D", "dt_bias"])
def test_extreme_values_stay_in_their_channel(isa, where, bad):
    for states in (5, 16):
        problem = step_problem(2, 37, states)
        broken = {n: v.clone() for n, v in problem.items()}
        broken[where][(slice(None),) * (where in ("state", "x", "dt", "z")) + (18,)] = bad
        others = torch.arange(37) != 18
        for clean, got in zip(run_step(problem), run_step(broken), strict=True):
            assert same_bits(clean[:, others], got[:, others])
        expected = run_step(broken, backend="reference")
        torch.testing.assert_close(run_step(broken), expected, equal_nan=True, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("state", ["bdn", "bnd"])
def test_nan_with_any_payload(isa, state):
    value = torch.tensor([0x7F800001], dtype=torch.int32).view(torch.float32)
    for states in (8, 16):
        for where in ("state", "A", "dt"):
            problem = step_problem(1, 5, states, state=state)
            problem[where] = problem[where].clone(memory_format=torch.preserve_format)
            problem[where].select(-1 if where == "dt" else -2, 2).fill_(value.item())
            out, _ = run_step(problem)
            assert out[0, 2].isnan() and out[0, [0, 1, 3, 4]].isfinite().all()


def test_out_has_the_memory_order_of_x():
    problem = step_problem(3, 5, 4)
    problem["x"] = torch.randn(5, 3).T
    assert run_step(problem)[0].stride() == (1, 3)
