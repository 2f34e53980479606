"""The public functions with backend="cuda", on the CPU: the emulated kernels in the place of the extension's."""

import pytest

from tests.support.operators import contract
from tests.support.operators.kernels import CONV, SCAN
from tests.support.operators.wrong_arguments import EVERY, check_refused

pytestmark = pytest.mark.usefixtures("emulated_backend")


class TestPublic(contract.PublicTests):
    backend = "cuda"


@pytest.mark.parametrize("kernel", [SCAN, CONV], ids=lambda kernel: kernel.name)
def test_registration(kernel):
    contract.check_registration(kernel, "cuda")


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize(("op", "case"), [case.values for case in EVERY if case.values[0] != "hsic"])
def test_wrong_arguments(op, case, grad):
    check_refused(op, case, "cuda", grad)
