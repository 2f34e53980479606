"""The public functions with backend="cuda", on the CPU: the emulated kernels in the place of the extension's."""

import pytest

from bdam_fast.ops.causal_conv1d import op as conv
from bdam_fast.ops.selective_scan import op as scan
from tests.support.operators import contract
from tests.support.operators.wrong_arguments import EVERY, check_refused

pytestmark = pytest.mark.usefixtures("emulated_backend")


@pytest.mark.parametrize("op", [scan, conv], ids=lambda op: op.OP)
def test_registration(op):
    contract.check_registration(op, "cuda")


def test_gradients():
    contract.check_gradients("cuda")


def test_tracing():
    contract.check_tracing("cuda")


def test_updates():
    contract.check_updates("cuda")


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize(("op", "case"), [case.values for case in EVERY if case.values[0] != "hsic"])
def test_wrong_arguments(op, case, grad):
    check_refused(op, case, "cuda", grad)
