"""Decisions of setup.py about the CUDA library: when to build it, for which architectures, against which toolkit."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch.utils import cpp_extension

import bdam_fast
from tests.support import ROOT

KNOWN = "compute_75 compute_80 compute_86 compute_89 compute_90 compute_100 compute_120"


@pytest.fixture
def setup(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """setup.py as a module, with a CUDA build of torch, no card, and an nvcc on the PATH that calls a toolkit elsewhere."""
    for name in ("BDAM_FAST_CUDA", "TORCH_CUDA_ARCH_LIST"):
        monkeypatch.delenv(name, raising=False)
    spec = importlib.util.spec_from_file_location("bdam_fast_setup", ROOT / "setup.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    toolkit = tmp_path / "toolkit"
    for folder in ("bin", "lib64"):
        (toolkit / folder).mkdir(parents=True)
    write_nvcc(toolkit / "bin/nvcc", f'echo "#$ TOP={toolkit}/bin/.." >&2; echo {KNOWN}')
    (tmp_path / "wrapper/bin").mkdir(parents=True)
    write_nvcc(tmp_path / "wrapper/bin/nvcc", f'exec {toolkit}/bin/nvcc "$@"')
    monkeypatch.setattr(cpp_extension, "CUDA_HOME", str(tmp_path / "wrapper"))
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(cpp_extension, "CUDAExtension", lambda name, sources, **options: (name, sources, options))
    return module


def write_nvcc(path: Path, line: str) -> None:
    path.write_text(f"#!/bin/sh\n{line}\n")
    path.chmod(0o755)


def with_cards(monkeypatch: pytest.MonkeyPatch, *capabilities: tuple[int, int]) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(capabilities))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda i: capabilities[i])


def test_without_a_card_the_library_is_built_for_every_architecture(setup, tmp_path):
    assert setup.cuda_architectures(tmp_path / "toolkit") == "8.0;8.6;8.9;9.0;10.0;12.0+PTX"


def test_an_older_compiler_builds_for_those_that_it_knows(setup, tmp_path):
    write_nvcc(tmp_path / "toolkit/bin/nvcc", "echo compute_80 compute_90")
    assert setup.cuda_architectures(tmp_path / "toolkit") == "8.0;9.0+PTX"


def test_cards_in_the_machine_and_the_user_s_list_are_taken(setup, tmp_path, monkeypatch):
    with_cards(monkeypatch, (9, 0), (8, 6), (9, 0))
    assert setup.cuda_architectures(tmp_path / "toolkit") == "8.6;9.0"
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.9 9.0a+PTX")
    assert setup.cuda_architectures(tmp_path / "toolkit") == "8.9;9.0a+PTX"


def test_the_linker_is_shown_the_toolkit_behind_a_script(setup, tmp_path):
    ((_, sources, options),) = setup.cuda_extensions([])
    assert options["library_dirs"] == [str(tmp_path / "toolkit/lib64")]
    assert "csrc/module_cuda.cpp" in sources and not [s for s in sources if "/cpu/" in s]


def test_code_is_compressed_and_has_line_numbers_for_one_architecture(setup, monkeypatch):
    for architectures, line_numbers in (("9.0", True), ("9.0+PTX", True), ("8.0 9.0", False), ("", False)):
        monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", architectures)
        ((_, _, options),) = setup.cuda_extensions([])
        flags = options["extra_compile_args"]["nvcc"]
        assert "-Xfatbin=-compress-all" in flags and ("-lineinfo" in flags) == line_numbers, architectures


def test_an_nvcc_that_does_not_work_is_one_sentence(setup, tmp_path):
    write_nvcc(tmp_path / "wrapper/bin/nvcc", "echo broken >&2; exit 1")
    with pytest.raises(SystemExit, match=r"wrapper/bin/nvcc does not work \(broken\); set CUDA_HOME to a toolkit"):
        setup.cuda_extensions([])


def test_a_card_that_is_too_old_leaves_the_cpu_build_alone(setup, monkeypatch, capsys):
    with_cards(monkeypatch, (7, 5))
    assert setup.cuda_extensions([]) == []
    assert capsys.readouterr().err == (
        "bdam_fast: built without CUDA kernels: the CUDA kernels need compute capability 8.0 or newer, "
        "a card of this machine has 7.5\n"
    )


@pytest.mark.parametrize("variable", [{"BDAM_FAST_CUDA": "1"}, {"TORCH_CUDA_ARCH_LIST": "7.5"}], ids=str)
def test_an_old_architecture_that_was_asked_for_is_an_error(setup, monkeypatch, variable):
    with_cards(monkeypatch, (7, 5))
    for name, value in variable.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit, match=r"need compute capability 8\.0 or newer, .* has 7\.5; set BDAM_FAST_CUDA=0"):
        setup.cuda_extensions([])


@pytest.mark.parametrize("name", ["Hopper", "90", "sm_90"])
def test_an_architecture_that_is_no_number_is_an_error(setup, monkeypatch, name):
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", name)
    with pytest.raises(SystemExit, match=f"TORCH_CUDA_ARCH_LIST holds '{name}', expected numbers such as 9.0"):
        setup.cuda_extensions([])


def test_the_library_alone_is_an_error_where_it_cannot_be_built(setup, monkeypatch):
    monkeypatch.setenv("BDAM_FAST_CUDA", "only")
    monkeypatch.setattr(setup, "building", lambda: True)
    ((name, _, options),) = setup.extensions()
    assert (
        name == "bdam_fast._C_cuda"
        and f"-DBDAM_VERSION={bdam_fast.__version__}" in options["extra_compile_args"]["cxx"]
    )
    monkeypatch.setattr(setup, "building", lambda: False)
    assert setup.extensions() == []
    monkeypatch.setattr(setup, "building", lambda: True)
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST")  # the first call has set it for nvcc
    with_cards(monkeypatch, (7, 5))
    with pytest.raises(SystemExit, match=r"has 7\.5; set BDAM_FAST_CUDA=0"):
        setup.extensions()


def test_without_nvcc(setup, monkeypatch):
    monkeypatch.setattr(cpp_extension, "CUDA_HOME", None)
    assert setup.cuda_extensions([]) == []
    monkeypatch.setenv("BDAM_FAST_CUDA", "1")
    with pytest.raises(SystemExit, match="BDAM_FAST_CUDA=1, but nvcc was not found"):
        setup.cuda_extensions([])


def test_switched_off(setup, monkeypatch):
    monkeypatch.setenv("BDAM_FAST_CUDA", "0")
    assert setup.cuda_extensions([]) == []
