"""The public functions with backend="triton", under the interpreter."""

import pytest

from bdam_fast.ops.causal_conv1d import op as conv
from bdam_fast.ops.hsic import op as hsic
from bdam_fast.ops.selective_scan import op as scan
from tests.support.operators import contract


@pytest.mark.parametrize("op", [scan, conv, hsic], ids=lambda op: op.OP)
def test_registration(op):
    contract.check_registration(op, "triton")


def test_gradients():
    contract.check_gradients("triton")


def test_tracing():
    contract.check_tracing("triton")


def test_updates():
    contract.check_updates("triton")
