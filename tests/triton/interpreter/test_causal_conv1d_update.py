"""The Triton kernel of causal_conv1d_update under Triton's interpreter, against the reference in float64."""

from functools import partial

import pytest
import torch

from tests.support.operators import same_bits
from tests.support.operators.updates import CAUSAL_CONV1D_UPDATE, run_update, update_problem

pytestmark = pytest.mark.usefixtures("poison")
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
check = partial(CAUSAL_CONV1D_UPDATE.check, backend="triton")


@pytest.mark.parametrize("width", range(1, 9))
@pytest.mark.parametrize("order", ["bdl", "bld", "strided"])
def test_widths_entries_and_lengths(width, order):
    for entries in (width - 1, width, width + 9):
        for length in (0, 1, 3):
            activation = "silu" if length > 0 else None
            check(update_problem(2, 9, length, width, entries, order=order), activation=activation)


@pytest.mark.parametrize("channels", [1, 2, 33, 129, 300])
def test_channels(channels):
    check(update_problem(2, channels))
    check(update_problem(2, channels, 2, absent=("bias",)))


@pytest.mark.parametrize("state", DTYPES, ids=str)
@pytest.mark.parametrize("x", DTYPES[:3], ids=str)
def test_dtypes(x, state):
    problem = update_problem(2, 9, 2, dtype=x)
    kept = problem["conv_state"].double().mul(1.1).to(state)
    check(problem | {"conv_state": kept, "weight": problem["weight"].to(state)})


def test_long_states_and_many_steps():
    for length in (1, 5, 8, 30, 70):
        check(update_problem(1, 3, length, 3, 40))
    check(update_problem(1, 3, 33, 1, 0))


def test_parameters_of_other_strides_and_empty_batches():
    problem = update_problem(2, 6)
    check(problem | {"weight": torch.randn(4, 12)[:, ::2].T})
    check(problem | {"x": torch.randn(2, 1).expand(-1, 6), "bias": torch.randn(1).expand(6)})
    assert run_update(update_problem(0, 6), backend="triton")[0].shape == (0, 6)
    out, state = run_update(problem | {"x": torch.randn(2, 6, 0)}, backend="triton")
    assert out.shape == (2, 6, 0) and same_bits(state, problem["conv_state"])


@pytest.mark.parametrize("order", ["bdl", "bld"])
def test_out_has_the_memory_order_of_x(order):
    problem = update_problem(2, 9, 3, order=order)
    assert run_update(problem, backend="triton")[0].stride() == problem["x"].stride()
