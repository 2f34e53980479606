"""causal_conv1d_update: its gradient against finite differences; tests/ops/test_updates.py has what both updates share."""

import pytest
import torch

from tests.support.operators import BACKENDS, leaves
from tests.support.operators.updates import CAUSAL_CONV1D_UPDATE, update_problem

pytestmark = pytest.mark.usefixtures("kernels")


@pytest.mark.parametrize(("length", "entries"), [(0, 3), (0, 4), (2, 3), (6, 4)])
@pytest.mark.parametrize("backend", BACKENDS)
def test_gradcheck(length, entries, backend):
    problem = update_problem(2, 3, length, entries=entries, dtype=torch.float64)

    def call(*tensors):
        return CAUSAL_CONV1D_UPDATE.follow(backend, 2, **dict(zip(problem, tensors, strict=True)))

    assert torch.autograd.gradcheck(call, list(leaves(problem).values()))
