"""The emulated CUDA kernels as a backend of the public functions."""

import pytest

from bdam_fast import _backend, _native, _operators
from tests.support.cuda_host import build, emulated


@pytest.fixture
def emulated_backend(monkeypatch):
    """backend="cuda" takes CPU tensors and runs the emulated kernels, each result NaN before; returns their module."""
    module = emulated.module()
    for operator in _operators.OPERATORS.values():
        monkeypatch.setattr(operator, "_loaded", {})
    monkeypatch.setitem(_operators.NAMESPACES, "cuda", build.NAMESPACE)
    monkeypatch.setattr(_native, "_attempt_cuda", lambda: (module, ""))
    monkeypatch.setattr(_backend, "runs_on", lambda backend, device: True)
    module.set_poison(True)
    yield module
    module.set_poison(False)
