"""The public functions with backend="triton", under the interpreter."""

import public_backend
import pytest

from bdam_fast.ops.causal_conv1d import op as conv
from bdam_fast.ops.hsic import op as hsic
from bdam_fast.ops.selective_scan import op as scan


@pytest.mark.parametrize("op", [scan, conv, hsic], ids=lambda op: op.OP)
def test_registration(op):
    public_backend.check_registration(op, "triton")


def test_gradients():
    public_backend.check_gradients("triton")


def test_tracing():
    public_backend.check_tracing("triton")


def test_updates():
    public_backend.check_updates("triton")
