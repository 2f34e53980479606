"""The public functions with backend="cuda", on the CPU: the emulated kernels in the place of the extension's."""

import pytest

from bdam_fast import _backend, _native, _operators
from bdam_fast.ops.causal_conv1d import op as conv
from bdam_fast.ops.causal_conv1d_update import op as conv_update
from bdam_fast.ops.selective_scan import op as scan
from bdam_fast.ops.selective_state_update import op as update
from tests.support import contract
from tests.support.cuda_host import build, emulated

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
    contract.check_registration(op, "cuda")


def test_gradients():
    contract.check_gradients("cuda")


def test_tracing():
    contract.check_tracing("cuda")


def test_updates():
    contract.check_updates("cuda")
