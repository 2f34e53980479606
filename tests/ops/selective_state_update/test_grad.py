"""selective_state_update: its gradient against finite differences; tests/ops/test_updates.py has what both updates share."""

import pytest
import torch

from tests.support.operators import BACKENDS, leaves
from tests.support.operators.updates import SELECTIVE_STATE_UPDATE, step_problem

pytestmark = pytest.mark.usefixtures("kernels")


@pytest.mark.parametrize("groups", [0, 2])
@pytest.mark.parametrize("backend", BACKENDS)
def test_gradcheck(groups, backend):
    problem = step_problem(2, 4, 3, dtype=torch.float64, groups=groups)

    def call(*tensors):
        return SELECTIVE_STATE_UPDATE.follow(backend, 2, **dict(zip(problem, tensors, strict=True)))

    assert torch.autograd.gradcheck(call, list(leaves(problem).values()))
