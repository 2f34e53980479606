"""The public functions with backend="triton", under the interpreter."""

import pytest

from tests.support.operators import contract
from tests.support.operators.kernels import KERNELS


class TestPublic(contract.PublicTests):
    backend = "triton"


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)
def test_registration(kernel):
    contract.check_registration(kernel, "triton")
