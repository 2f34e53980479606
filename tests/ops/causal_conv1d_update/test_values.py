"""causal_conv1d_update: steps against the float64 reference and against the convolution, and what they write."""

import pytest
import torch

import bdam_fast
from tests.support.operators import BACKENDS, same_bits
from tests.support.operators.updates import CAUSAL_CONV1D_UPDATE, check_update, run_update, update_problem

pytestmark = pytest.mark.usefixtures("kernels")
NAMES = CAUSAL_CONV1D_UPDATE.names
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("width", range(1, 9))
@pytest.mark.parametrize("order", ["bdl", "bld", "strided"])
def test_widths_entries_and_memory_orders(isa, width, order):
    for entries in (width - 1, width, width + 3):
        for length in (0, 1, 2, 5):
            check_update(update_problem(2, 19, length, width, entries, order=order))


@pytest.mark.parametrize("channels", [1, 3, 4, 8, 16, 17, 33, 255, 257, 600])
def test_channels(isa, channels):
    for activation in (None, "swish"):
        check_update(update_problem(2, channels), activation=activation)
    check_update(update_problem(2, channels, absent=("bias",)))


@pytest.mark.parametrize("length", [0, 1, 3, 4, 31, 32, 33, 70])
@pytest.mark.parametrize("order", ["bdl", "bld"])
def test_lengths(isa, length, order):
    check_update(update_problem(2, 21, length, order=order))
    check_update(update_problem(2, 21, length, 3, 40, order=order))


@pytest.mark.parametrize("state", DTYPES, ids=str)
@pytest.mark.parametrize("x", DTYPES, ids=str)
def test_dtypes(isa, x, state):
    for entries in (3, 4):
        problem = update_problem(2, 35, dtype=x, entries=entries)
        problem["conv_state"] = problem["conv_state"].to(state)
        check_update(problem)


def test_parameters_of_other_dtypes_and_strides(isa):
    problem = update_problem(2, 18)
    check_update(problem | {"weight": torch.randn(4, 36).double()[:, ::2].T, "bias": torch.randn(36).half()[::2]})
    check_update(problem | {"weight": torch.randn(18, 4).bfloat16(), "bias": torch.randn(1).expand(18)})
    check_update(problem | {"x": torch.randn(2, 1).expand(-1, 18)})


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("entries", [3, 4, 7])
@pytest.mark.parametrize("cuts", [(1,) * 6, (2, 1, 3), (6,)], ids=str)
def test_steps_are_the_convolution(backend, entries, cuts):
    problem = update_problem(2, 18, 6, entries=entries)
    state = problem["conv_state"].clone()
    outs = [
        bdam_fast.causal_conv1d_update(x, state, problem["weight"], problem["bias"], "silu", backend=backend)
        for x in problem["x"].split(cuts, 2)
    ]
    expected, final = bdam_fast.causal_conv1d(
        *(problem[n] for n in ("x", "weight", "bias")),
        "silu",
        initial_states=problem["conv_state"][:, :, entries - 3 :],
        return_final_states=True,
        backend=backend,
    )
    torch.testing.assert_close(torch.cat(outs, 2), expected)
    assert torch.equal(state[:, :, entries - 3 :], final)
    assert torch.equal(state, torch.cat([problem["conv_state"], problem["x"]], 2)[:, :, -entries:])


@pytest.mark.parametrize("backend", BACKENDS)
def test_by_hand(backend):
    state = torch.tensor([[[7.0, 3.0]]])
    out = bdam_fast.causal_conv1d_update(
        torch.tensor([[1.0]]), state, torch.tensor([[10.0, 1.0]]), torch.tensor([0.5]), backend=backend
    )
    assert (out.tolist(), state.tolist()) == ([[31.5]], [[[3.0, 1.0]]])


@pytest.mark.parametrize("backend", BACKENDS)
def test_empty(backend):
    out, state = run_update(update_problem(0, 5), backend=backend)
    assert (out.shape, state.shape) == ((0, 5), (0, 5, 4))
    problem = update_problem(2, 5, 1)
    problem["x"] = problem["x"][:, :, :0]
    out, state = run_update(problem, backend=backend)
    assert out.shape == (2, 5, 0) and torch.equal(state, problem["conv_state"])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 1e4, -1e4])
@pytest.mark.parametrize("where", NAMES)
def test_extreme_values_stay_in_their_channel(isa, where, bad):
    problem = update_problem(2, 37)
    broken = {n: v.clone() for n, v in problem.items()}
    broken[where][(slice(None),) * (where in ("x", "conv_state")) + (18,)] = bad
    others = torch.arange(37) != 18
    for clean, got in zip(run_update(problem), run_update(broken), strict=True):
        assert same_bits(clean[:, others], got[:, others])
    torch.testing.assert_close(run_update(broken), run_update(broken, backend="reference"), equal_nan=True)


@pytest.mark.parametrize("order", ["bdl", "bld"])
def test_out_has_the_memory_order_of_x(order):
    problem = update_problem(3, 5, 6, order=order)
    assert run_update(problem)[0].stride() == problem["x"].stride()
