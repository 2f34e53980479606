"""Fixtures of all tests: a fixed seed, one thread, and kernels that start from poisoned memory."""

import os
from collections.abc import Iterator
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

from bdam_fast import _native


@pytest.fixture(autouse=True)
def seed() -> None:
    """Every test draws the same numbers, alone or in any order."""
    torch.manual_seed(0)


@pytest.fixture
def kernels():
    """The extension, with every result and workspace NaN before a kernel runs; its settings are restored afterwards."""
    module = _native.extension()
    threads, isa = torch.get_num_threads(), module.isa()
    module.set_poison(True)
    yield module
    module.set_poison(False)
    module.set_isa(isa)
    torch.set_num_threads(threads)


@pytest.fixture(params=["baseline", "avx2", "avx512"])
def isa(request, kernels) -> str:
    """Each instruction set in turn."""
    if request.param not in kernels.available_isas():
        pytest.skip(f"this CPU or this build does not run {request.param}")
    kernels.set_isa(request.param)
    return request.param


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that take minutes begin first, so that a second process is not left waiting for them at the end."""
    first = ("triton", "cuda_host")
    items.sort(key=lambda item: item.path.parent.name not in first)


@pytest.fixture(scope="module")
def background() -> Iterator[Any]:
    """A server of the tests' own that stands in for a model, one for all tests of a file."""
    # Here: most tests need nothing of the pipeline.
    from tests.support.fake_provider import BackgroundServer

    made = BackgroundServer()
    yield made
    made.stop()


@pytest.fixture
def server(background: Any) -> Any:
    """The server of the file, behaving well again."""
    background.behaviour.__init__()
    return background
