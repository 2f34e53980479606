"""Fixtures of the GPU tests: backends that must be there, poisoned memory, memory for the largest cases, shares of the tests."""

import fcntl
import json
import os
import tempfile
from pathlib import Path

import pytest
import torch

from bdam_fast import _native
from bench.gpu.processes import COSTS
from tests.support.operators import poison_allocations
from tests.support.triton.sample import function_of, sampled, shared

# `make gpu` sets this: a backend that is absent is then an error and no reason to skip.
REQUIRED = os.environ.get("BDAM_FAST_GPU_TESTS") == "required"
# `make gpu` runs each share of the tests, "1/4" to "4/4", in a process of its own: Triton compiles on one core.
SHARE = os.environ.get("BDAM_FAST_GPU_SHARE", "1/1")
# `make gpu` sets this for Triton, which would compile for an hour: of each test, runs with every value of every parameter.
SAMPLE = os.environ.get("BDAM_FAST_GPU_SAMPLE") == "1"
# `make gpu` reads here which tests there were and which of them passed; bench/gpu/outcomes.py says in which lines.
OUTCOMES = os.environ.get("BDAM_FAST_GPU_OUTCOMES")


def note(**line):
    """Appends a line to the outcomes, at once: the process may be stopped at any time."""
    if OUTCOMES:
        with Path(OUTCOMES).open("a") as file:
            file.write(json.dumps(line) + "\n")


def begun():
    """Tests that an earlier process with the same outcomes has begun: one of them took the device with it."""
    lines = Path(OUTCOMES).read_text().splitlines() if OUTCOMES and Path(OUTCOMES).exists() else []
    return {entry["test"] for entry in map(json.loads, lines) if "passed" in entry}


def device_responds():
    """False once a kernel has gone astray: every further call of this process then fails."""
    try:
        torch.cuda.synchronize()
    except (RuntimeError, AssertionError):
        return False
    return True


def pytest_collection_finish(session):
    """Notes the tests of this process with their parameters."""
    for item in session.items:
        parameters = item.callspec.params if hasattr(item, "callspec") else {}
        note(test=item.nodeid, parameters={name: str(value) for name, value in parameters.items()})


def pytest_runtest_logstart(nodeid):
    """Notes a test that begins, which has not passed until it has."""
    note(test=nodeid, passed=False)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Notes a test that passed or was skipped; ends the process where the GPU no longer answers it."""
    report = yield
    if (report.when == "call" and report.passed) or report.skipped:
        note(test=item.nodeid, passed=True)
    if report.failed and call.excinfo is not None and "CUDA error" in str(call.excinfo.value) and not device_responds():
        item.session.shouldstop = "the device no longer responds to this process"
    return report


def pytest_collection_modifyitems(config, items):
    """Leaves this process its share of the tests."""
    number, shares = map(int, SHARE.split("/"))
    mine = sampled(items) if SAMPLE else items
    if SAMPLE and mine:
        weights = COSTS["tests"][mine[0].path.stem.removeprefix("test_")].get("seconds", {}) if shares > 1 else {}
        mine = [mine[at] for at in shared([function_of(item.nodeid) for item in mine], weights, number, shares)]
    else:
        mine = mine[number - 1 :: shares]
    done = begun()
    mine = [item for item in mine if item.nodeid not in done]
    if len(mine) < len(items):
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
