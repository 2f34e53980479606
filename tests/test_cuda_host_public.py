"""The public functions with backend="cuda", on the CPU: the emulated kernels in the place of the extension's."""

import public_backend
import pytest
from cuda_host import build, emulated

from bdam_fast import _backend, _native, _operators
from bdam_fast.ops.causal_conv1d import causal_conv1d_update as conv_update
from bdam_fast.ops.causal_conv1d import op as conv
from bdam_fast.ops.selective_scan import op as scan
from bdam_fast.ops.selective_scan import selective_state_update as update

FAMILIES = (scan, update, conv, conv_update)


@pytest.fixture(autouse=True)
def emulated_backend(monkeypatch):
    """backend="cuda" takes CPU tensors and runs the emulated kernels."""
    module = emulated.module()
    for family in FAMILIES:
        family._raw.cache_clear()
    monkeypatch.setitem(_operators.NAMESPACES, "cuda", build.NAMESPACE)
    monkeypatch.setattr(_native, "_attempt_cuda", lambda: (module, ""))
    monkeypatch.setattr(_backend, "runs_on", lambda backend, device: True)
    yield
    for family in FAMILIES:
        family._raw.cache_clear()


@pytest.mark.parametrize("op", [scan, conv], ids=lambda op: op.OP)
def test_registration(op):
    public_backend.check_registration(op, "cuda")


def test_gradients():
    public_backend.check_gradients("cuda")


def test_tracing():
    public_backend.check_tracing("cuda")


def test_updates():
    public_backend.check_updates("cuda")
