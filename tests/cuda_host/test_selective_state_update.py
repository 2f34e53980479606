"""selective_state_update's CUDA kernel, run on the CPU by the emulation, against the float64 reference."""

from functools import partial

import pytest
import torch

from tests.support.operators.updates import SELECTIVE_STATE_UPDATE, step_problem

pytestmark = pytest.mark.usefixtures("emulated_backend")
check, run = (partial(f, backend="cuda") for f in (SELECTIVE_STATE_UPDATE.check, SELECTIVE_STATE_UPDATE.run))


@pytest.mark.parametrize("states", [1, 3, 16, 17, 256])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_states_and_dtypes(dtype, states):
    check(step_problem(2, 21, states, dtype=dtype, groups=3))
    # Without softplus a negative step times A would overflow at 256 states.
    problem = step_problem(1, 8, states, dtype=dtype, absent=("dt_bias",))
    check(problem | {"dt": problem["dt"].abs()}, dt_softplus=False)


@pytest.mark.parametrize("absent", [("D",), ("z",), ("dt_bias",), ("D", "z", "dt_bias")], ids=str)
def test_optional_arguments(absent):
    check(step_problem(2, 21, 16, absent=absent))


def test_an_empty_batch():
    assert run(step_problem(0, 21, 16))[0].shape == (0, 21)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_every_argument_may_have_its_own_dtype(dtype):
    tensors = step_problem(2, 21, 16, dtype=torch.bfloat16)
    tensors["state"] = torch.randn(2, 16, 21).to(dtype).transpose(1, 2)
    tensors["dt"] = tensors["dt"].float()
    tensors["A"] = tensors["A"].double()
    check(tensors)


def test_out_has_the_memory_order_of_x():
    tensors = step_problem(2, 21, 16) | {name: torch.randn(21, 2).T for name in ("x", "dt")}
    check(tensors)
    assert run(tensors)[0].stride() == (1, 2)
