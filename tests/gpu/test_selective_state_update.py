"""selective_state_update on a GPU, CUDA C++ and Triton, against float64 on the same device."""

import pytest
import torch

import bdam_fast
from tests.support.gpu import DEVICE, GPU, HALVES, ONLY_GPU, backends, on_device, small
from tests.support.gpu_updates import UpdateTests
from tests.support.operators import same_bits
from tests.support.operators.updates import SELECTIVE_STATE_UPDATE, check_step, step_problem

pytestmark = pytest.mark.usefixtures("poisoned")


class TestUpdate(UpdateTests):
    update = SELECTIVE_STATE_UPDATE


@small
@backends
@pytest.mark.parametrize("states", [1, 2, 3, 8, 16, 17, 64, 256] if GPU else [1, 16, 17])
@pytest.mark.parametrize("state", ["bdn", "bnd", "strided"])
def test_states_and_memory_orders(state, states, backend):
    for channels in (1, 19, 131):
        check_step(on_device(step_problem(2, channels, states, state=state)), backend)


@backends
@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("order", ["rows", "strided"])
def test_dtypes(order, dtype, backend):
    for kept in HALVES:
        problem = step_problem(3, 35, 16, dtype=dtype, order=order)
        problem["state"] = problem["state"].to(kept)
        check_step(on_device(problem), backend)
        # Without softplus dt has both signs; e^(dt A) must stay near 1 for a comparison to mean anything.
        check_step(
            on_device(problem | {"dt": 0.05 * problem["dt"], "dt_bias": problem["dt_bias"] * 0}),
            backend,
            dt_softplus=False,
        )


@small
@backends
@pytest.mark.parametrize("groups", [0, 1, 2, 18])
@pytest.mark.parametrize("absent", [(), ("D",), ("z",), ("dt_bias",), ("D", "z", "dt_bias")], ids=str)
def test_groups_and_optional_arguments(absent, groups, backend):
    check_step(on_device(step_problem(2, 18, 16, groups=groups, absent=absent)), backend)


@backends
def test_a_token_at_a_time_is_the_whole_sequence(backend):
    """As a model decodes: convolution and scan of 6 steps, then both updates for 3 more."""
    x, weight = torch.randn(2, 20, 9, device=DEVICE), torch.randn(20, 4, device=DEVICE)
    A, B = -torch.rand(20, 16, device=DEVICE), torch.randn(2, 16, 9, device=DEVICE)

    def both(x, B, **states):
        u, window = bdam_fast.causal_conv1d(
            *(x, weight, None, "silu"), initial_states=states.get("window"), return_final_states=True, backend=backend
        )
        scan = (u, u, A, B, B)
        return bdam_fast.selective_scan(
            *scan, delta_softplus=True, return_last_state=True, initial_state=states.get("h"), backend=backend
        ), window

    (expected, last), _ = both(x, B)
    (_, h), window = both(x[..., :6], B[..., :6])
    for t in range(6, 9):
        u = bdam_fast.causal_conv1d_update(x[..., t].contiguous(), window, weight, None, "silu", backend=backend)
        projection = B[..., t].contiguous()
        y = bdam_fast.selective_state_update(h, u, u, A, projection, projection, dt_softplus=True, backend=backend)
        torch.testing.assert_close(y, expected[..., t], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(h, last, rtol=1e-4, atol=1e-4)


@ONLY_GPU
@backends
def test_state_of_more_than_2_to_the_31_elements(backend, memory):
    memory(40)
    batch, channels, states = 8200, 16384, 16
    state = torch.full((batch, channels, states), 0.5, device=DEVICE, dtype=torch.bfloat16)
    assert state.numel() > 2**31
    x = torch.randn(batch, channels, device=DEVICE, dtype=torch.bfloat16)
    A, B = -torch.rand(channels, states, device=DEVICE), torch.randn(batch, states, device=DEVICE, dtype=x.dtype)
    single = state[-1:].clone()
    out = bdam_fast.selective_state_update(state, x, x, A, B, B, dt_softplus=True, backend=backend)
    one = bdam_fast.selective_state_update(single, x[-1:], x[-1:], A, B[-1:], B[-1:], dt_softplus=True, backend=backend)
    assert same_bits(out[-1:], one) and same_bits(state[-1:], single)
    del state
