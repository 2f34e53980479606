"""GPUs that the CUDA library is built for, and others, on which auto takes Triton."""

import importlib
from types import SimpleNamespace

import pytest
import torch

import bdam_fast
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


@pytest.fixture
def installed_library(monkeypatch):
    """A library of bdam-fast-cuda beside the package, of the version that the test gives it, under a CUDA build of torch."""
    library = SimpleNamespace(version=lambda: bdam_fast.__version__)
    load = importlib.import_module
    monkeypatch.setattr(_native, "_attempt_cuda", _native._attempt_cuda.__wrapped__)
    monkeypatch.setattr(_native, "cuda_library", lambda: "site/bdam_fast/_C_cuda.abi3.so")
    monkeypatch.setattr(
        importlib, "import_module", lambda name, *of: library if name == "._C_cuda" else load(name, *of)
    )
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    return library


def test_the_library_of_the_same_version_is_taken(installed_library):
    assert _native._attempt_cuda() == (installed_library, "")


def test_the_library_of_another_version_is_not_taken(installed_library):
    installed_library.version = lambda: "0.0.9"
    ours = bdam_fast.__version__
    expected = f"they are those of version 0.0.9, and bdam_fast is of {ours}: `pip install bdam-fast-cuda=={ours}`"
    assert _native._attempt_cuda() == (None, expected)
    assert f"CUDA kernels: site/bdam_fast/_C_cuda.abi3.so is not used: {expected}\n" in report.describe()


def test_the_library_is_not_loaded_into_a_torch_without_cuda(installed_library, monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", None)
    assert _native._attempt_cuda()[0] is None
    assert (
        f"_C_cuda.abi3.so is not used: torch {torch.__version__} is not a CUDA build; "
        "install one, or uninstall bdam-fast-cuda\n"
    ) in report.describe()


def test_without_a_library_the_report_says_nothing_of_it(installed_library, monkeypatch):
    monkeypatch.setattr(_native, "_attempt_cuda", lambda: (None, "No module named 'bdam_fast._C_cuda'"))
    monkeypatch.setattr(_native, "cuda_library", str)
    assert "CUDA kernels: " not in report.describe()


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
