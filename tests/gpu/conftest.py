"""Fixtures of the GPU tests: backends that must be there, poisoned memory, memory for the largest cases, shares of the tests."""

import fcntl
import os
import tempfile
from pathlib import Path

import pytest
import torch

from bdam_fast import _native
from tests.support.operators import poison_allocations

# `make gpu` sets this: a backend that is absent is then an error and no reason to skip.
REQUIRED = os.environ.get("BDAM_FAST_GPU_TESTS") == "required"
# `make gpu` runs each share of the tests, "1/4" to "4/4", in a process of its own: Triton compiles on one core.
SHARE = os.environ.get("BDAM_FAST_GPU_SHARE", "1/1")


def pytest_collection_modifyitems(config, items):
    """Leaves this process its share of the tests."""
    number, shares = map(int, SHARE.split("/"))
    if shares > 1:
        mine = items[number - 1 :: shares]
        config.hook.pytest_deselected(items=[item for item in items if item not in set(mine)])
        items[:] = mine


@pytest.fixture(autouse=True)
def backend_is_there(request):
    """Skips a test where its backend is not installed."""
    backend = getattr(request.node, "callspec", None) and request.node.callspec.params.get("backend")
    if not backend:
        return
    if REQUIRED and backend == "cuda":
        _native.cuda_extension()
    if backend == "cuda" and not _native.cuda_available():
        pytest.skip(f"the CUDA kernels are not built: {_native._attempt_cuda()[1]}")
    if backend == "triton" and not _native.triton_available():
        assert not REQUIRED, "triton is not installed"
        pytest.skip("triton is not installed")


@pytest.fixture
def poisoned(monkeypatch):
    """Results and workspaces are NaN before a kernel runs, those that Python allocates and those of the extensions."""
    poison_allocations(monkeypatch)
    modules = _native._loaded()
    for module in modules:
        module.set_poison(True)
    yield
    for module in modules:
        module.set_poison(False)


@pytest.fixture
def memory():
    """`memory(gib)` skips a test where less is free. One process at a time: `make gpu` runs several."""

    def needs(gib: float) -> None:
        torch.cuda.empty_cache()
        free = torch.cuda.mem_get_info()[0] / 2**30
        if free < gib:
            pytest.skip(f"needs {gib} GiB of free GPU memory, there are {free:.0f}")

    with (Path(tempfile.gettempdir()) / "bdam_fast_gpu_memory.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield needs
        torch.cuda.empty_cache()
