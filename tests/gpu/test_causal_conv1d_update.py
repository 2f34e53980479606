"""causal_conv1d_update on a GPU, CUDA C++ and Triton, against float64 on the same device."""

import pytest

from tests.support.gpu import HALVES, backends, on_device, small
from tests.support.gpu_updates import UpdateTests
from tests.support.operators.updates import CAUSAL_CONV1D_UPDATE, check_update, update_problem

pytestmark = pytest.mark.usefixtures("poisoned")


class TestUpdate(UpdateTests):
    update = CAUSAL_CONV1D_UPDATE


@small
@backends
@pytest.mark.parametrize("width", range(1, 9))
@pytest.mark.parametrize("order", ["bdl", "bld", "strided"])
def test_widths_entries_and_memory_orders(order, width, backend):
    for entries in (width - 1, width, width + 3):
        for length in (0, 1, 5):
            check_update(on_device(update_problem(2, 19, length, width, entries, order=order)), backend)


@backends
@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("channels", [1, 37, 64, 600])
def test_dtypes_and_channels(channels, dtype, backend):
    for absent in ((), ("bias",)):
        for activation in (None, "silu"):
            problem = update_problem(2, channels, 3, dtype=dtype, absent=absent)
            check_update(on_device(problem), backend, activation=activation)
