"""GPUs that the CUDA library is built for, and others, on which auto takes Triton."""

from types import SimpleNamespace

import pytest
import torch

from bdam_fast import __main__ as report
from bdam_fast import _backend, _native
from tests.package.test_backend import CUDA, report_lines
from tests.support.labelled import pretend_card


@pytest.fixture
def no_card_is_known():
    """The capabilities of cards are asked again, before and after."""
    _backend._capability_of.cache_clear()
    yield
    _backend._capability_of.cache_clear()


@pytest.fixture
def library_for_90(no_card_is_known, monkeypatch):
    """A CUDA library built for 9.0 alone, and two cards: the first is one of it, the second an A100."""
    library = SimpleNamespace(architectures=lambda: "9.0", call_counts=dict, __file__="bdam_fast/_C_cuda.so")
    monkeypatch.setattr(_native, "_attempt_cuda", lambda: (library, ""))
    monkeypatch.setattr(_native, "triton_available", lambda: True)
    monkeypatch.setattr(torch.version, "hip", None)
    pretend_card(monkeypatch, count=2)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: [(9, 0), (8, 0)][index])
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)


def test_auto_takes_triton_on_a_card_that_the_library_is_not_built_for(library_for_90):
    first, second = torch.device("cuda", 0), torch.device("cuda", 1)
    assert _backend.resolve("selective_scan", "auto", first) == "cuda"
    assert (
        _backend.resolve("selective_scan", "auto", second)
        == _backend.resolve("causal_conv1d", "auto", CUDA)
        == "triton"
    )
    with pytest.raises(
        RuntimeError, match=r"^selective_scan: the CUDA kernels are built for 9.0, and this GPU is 8.0; build"
    ):
        _backend.resolve("selective_scan", "cuda", second)
    text = report.describe()
    assert "CUDA kernels: bdam_fast/_C_cuda.so\n  compute capabilities: 9.0\n" in text
    others = ", ".join(_native.CUDA_OPERATORS)
    assert report_lines(text, "cuda:0")["cuda"][0] == f"{others}: auto takes it"
    lines = report_lines(text, "cuda:1")
    assert lines["triton"] == ["all operators: auto takes it"] and "built for 9.0, and this GPU is 8.0" in str(
        lines["cuda"]
    )


@pytest.mark.parametrize(
    ("built", "runs", "fails"),
    [
        ("9.0", ["9.0"], ["8.9", "10.0", "12.0"]),
        ("8.0", ["8.0", "8.6", "8.9"], ["7.5", "9.0"]),
        ("8.6", ["8.6", "8.9"], ["8.0"]),
        ("9.0a", ["9.0"], ["10.0"]),
        ("10.0f", ["10.0", "10.3"], ["12.0"]),
        ("10.0a+PTX", ["10.0"], ["10.3", "12.0"]),
        ("8.0,8.6,8.9,9.0,10.0,12.0+PTX", ["8.0", "8.9", "9.0", "10.3", "12.1", "13.0"], ["7.5", "11.0"]),
        ("", ["7.5", "12.0"], []),
    ],
)
def test_which_cards_a_library_runs_on(built, runs, fails):
    assert [c for c in [*runs, *fails] if _backend._holds(built, c)] == runs
