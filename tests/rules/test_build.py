"""Promises of setup.py: errors of one sentence, an sdist that builds, a wheel with the package and nothing else."""

import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

import pytest
import torch

import bdam_fast
from bdam_fast import _native
from tests.support import ROOT
from tests.support.house import clang


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of everything that is committed, without what was built."""
    ignore = shutil.ignore_patterns(".*", "data", "runs", "build", "dist", "*.egg-info", "__pycache__", "*.so")
    return Path(shutil.copytree(ROOT, tmp_path / "checkout", ignore=ignore))


def setup_py(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {k: v for k, v in os.environ.items() if k not in ("CXX", "CC", "BDAM_FAST_CUDA")} | environment
    command = [sys.executable, "setup.py", "-q", *arguments]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)


def test_no_compiler_is_one_sentence_with_the_remedy(checkout, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    run = setup_py(checkout, "build_ext", PATH=str(empty))
    assert run.returncode != 0
    assert "no C++ compiler found" in run.stderr and "apt-get install g++" in run.stderr
    assert "Traceback" not in run.stderr


@pytest.mark.skipif(torch.version.cuda is not None, reason="asks what happens with a CPU build of torch")
@pytest.mark.parametrize("asked", ["1", "only"])
def test_asking_for_cuda_without_cuda_says_what_is_missing(checkout, asked):
    run = setup_py(checkout, "build_ext", BDAM_FAST_CUDA=asked)
    assert run.returncode != 0
    assert f"BDAM_FAST_CUDA={asked}, but torch" in run.stderr and "is a CPU build" in run.stderr


def test_the_cuda_distribution_adds_to_the_package_of_its_version(checkout):
    """Its metadata; what it holds is the library, which needs a compiler for GPUs: `make cuda-check`."""
    assert setup_py(checkout, "egg_info", BDAM_FAST_CUDA="only").returncode == 0
    text = (checkout / "bdam_fast_cuda.egg-info/PKG-INFO").read_text()
    needed = re.findall(r"^Requires-Dist: (.*)$", text, re.M)
    assert re.findall(r"^Name: (.*)$", text, re.M) == ["bdam-fast-cuda"] and "Provides-Extra" not in text
    assert needed == [f"bdam-fast=={bdam_fast.__version__}"]
    packages = (checkout / "bdam_fast_cuda.egg-info/top_level.txt").read_text().split()
    assert packages == [], "files of the package belong to bdam-fast"
    assert f'\ncuda = ["bdam-fast-cuda=={bdam_fast.__version__}"]\n' in (ROOT / "pyproject.toml").read_text()


def test_unknown_value_of_the_cuda_switch(checkout):
    run = setup_py(checkout, "build_ext", BDAM_FAST_CUDA="yes")
    assert run.returncode != 0
    assert "BDAM_FAST_CUDA must be 0, 1, only or auto, got 'yes'" in run.stderr


def test_source_distribution_holds_what_a_build_needs_and_no_pipeline(checkout):
    run = setup_py(checkout, "sdist")
    assert run.returncode == 0, run.stderr
    (archive,) = (checkout / "dist").glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
    needed = {str(p.relative_to(ROOT)) for p in (ROOT / "csrc").rglob("*") if p.is_file()}
    needed |= {str(p.relative_to(ROOT)) for p in (ROOT / "bdam_fast").rglob("*.py")}
    assert needed <= names and {"setup.py", "pyproject.toml", "LICENSE"} <= names
    assert [name for name in names if name.split("/")[0] in ("training", "tests", "bench")] == []


def test_wheels_are_built_with_the_oldest_torch_that_is_supported():
    """A library built with a newer one might ask for what the oldest has not; setup.py names it as the target of the ABI."""
    text = (ROOT / "pyproject.toml").read_text()
    (oldest,) = re.findall(r'^dependencies = \["torch>=([\d.]+)"\]$', text, re.M)
    wheels = text.split("[tool.cibuildwheel]")[1].split("[tool.uv]")[0]
    wheels += (ROOT / ".github/cuda-wheel.toml").read_text()
    assert re.findall(r"torch==([\d.]+)", wheels) == [oldest + ".0"] * 3
    major, minor = map(int, oldest.split("."))
    assert f"TORCH_TARGET_VERSION=0x{major:02x}{minor:02x}000000000000" in (ROOT / "setup.py").read_text()
    # Names of its headers that 2.11 lacks; `make arm` compiles against it.
    newer = [p for p in (ROOT / "csrc").rglob("*") if p.is_file() and "STABLE_TORCH_ERROR_CODE_CHECK" in p.read_text()]
    assert newer == []


@pytest.mark.skipif(importlib.util.find_spec("cibuildwheel") is None, reason="needs `pip install cibuildwheel`")
@pytest.mark.parametrize(
    ("config", "platform", "architectures", "identifiers"),
    [
        ("pyproject.toml", "linux", "x86_64,aarch64", ["cp310-manylinux_x86_64", "cp310-manylinux_aarch64"]),
        ("pyproject.toml", "macos", "arm64", ["cp310-macosx_arm64"]),
        (".github/cuda-wheel.toml", "linux", "x86_64", ["cp310-manylinux_x86_64"]),
    ],
)
def test_cibuildwheel_takes_its_configuration(config, platform, architectures, identifiers):
    """It refuses unknown options and names what it would build; containers build it."""
    pinned = set(re.findall(r"cibuildwheel@v([\d.]+)", (ROOT / ".github/workflows/wheels.yml").read_text()))
    assert pinned == {importlib.metadata.version("cibuildwheel")}
    command = [sys.executable, "-m", "cibuildwheel", "--print-build-identifiers", "--platform", platform]
    command += ["--archs", architectures, "--config-file", "{package}/" + config]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("CIBW_")}
    found = subprocess.run([*command, ROOT], env=environment, capture_output=True, text=True)
    assert found.returncode == 0 and found.stdout.split() == identifiers, found.stderr


def test_the_library_does_not_name_the_folders_of_the_build():
    """Two folders, one compilation each, with the flags of setup.py: equal bytes, though checks carry their file's name."""
    code = "import runpy; print(*runpy.run_path('setup.py')['CXX'])"
    source = "#include <cstdio>\nint main() { std::puts(__FILE__); }\n"
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as two:
        built = []
        for folder in map(Path, (one, two)):
            shutil.copy(ROOT / "setup.py", folder)
            (folder / "bdam_fast").mkdir()
            for name in ("__init__.py", "_namespace.py"):
                shutil.copy(ROOT / "bdam_fast" / name, folder / "bdam_fast")
            (folder / "check.cpp").write_text(source)
            flags = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True)
            words = [w for w in flags.stdout.split() if not w.startswith("-DTORCH")]
            subprocess.run(
                ["c++", *words, "-c", folder / "check.cpp", "-o", folder / "check.o"], cwd=folder, check=True
            )
            built.append((folder / "check.o").read_bytes())
    assert built[0] == built[1] and b"./check.cpp" in built[0]


def test_the_check_of_a_wheel():
    """It is run by `make wheel` and the workflow on what they have built."""
    command = [sys.executable, ROOT / "tests/support/house/wheel_check.py"]
    found = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert found.returncode == 0 and "error " in found.stdout, found.stderr


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("qemu-x86_64-static") is None, reason="needs qemu-user-static")
@pytest.mark.parametrize("processor, isa", [("Haswell", "avx2"), ("Nehalem", "baseline")])
def test_older_processors_run_what_they_have(processor, isa):
    """The emulator stops at an instruction that the processor lacks, wherever the compiler put it."""
    emulated = ["qemu-x86_64-static", "-cpu", processor, sys.executable]
    # Its OpenBLAS, which numpy loads, takes the emulated Nehalem for a newer processor.
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OPENBLAS_CORETYPE": "Nehalem"}
    code = "from bdam_fast import _native; print(_native.extension().isa())"
    found = subprocess.run([*emulated, "-c", code], env=environment, capture_output=True, text=True)
    assert found.stdout.split() == [isa], found.stderr
    subprocess.run([*emulated, ROOT / "tests/support/house/wheel_check.py"], env=environment, check=True)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("ziglang") is None, reason="needs `pip install ziglang`: Clang")
def test_clang_compiles_for_every_instruction_set_and_for_macos(tmp_path):
    """The elementary functions, without warnings; `make clang` does it with all of the library."""
    command = [sys.executable, "-m", "tests.support.house.clang", tmp_path, "common"]
    subprocess.run(command, cwd=ROOT, check=True)
    code = "import torch; from bdam_fast import _C; x = torch.linspace(-60, 60, 999)\n"
    code += "for isa in _C.available_isas():\n    _C.set_isa(isa)\n"
    code += "    torch.testing.assert_close(torch.ops.bdam_fast.elementary(x, 0), torch.exp2(x))\n    print(isa)"
    run = [sys.executable, "-c", code]
    found = subprocess.run(run, cwd=tmp_path / "checkout", capture_output=True, text=True, check=True)
    assert found.stdout.split() == _native.extension().available_isas()
    assert (tmp_path / "macos/_C.abi3.so").read_bytes()[:4] == bytes.fromhex("cffaedfe")  # a 64-bit Mach-O file


def test_make_clang_says_what_it_needs(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["clang", str(tmp_path / "clang")])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match=rf"make clang needs Clang: pip install {clang.PACKAGE}"):
        clang.main()
    assert clang.PACKAGE in (ROOT / "Makefile").read_text() and not (tmp_path / "clang").exists()


def test_make_arm_says_what_it_needs(tmp_path):
    command = [sys.executable, "-m", "tests.support.house.aarch64", tmp_path / "arm"]
    found = subprocess.run(command, cwd=ROOT, env=os.environ | {"PATH": ""}, capture_output=True, text=True)
    assert found.returncode != 0 and found.stderr.strip() == (
        "make arm needs debootstrap, qemu-aarch64-static, aarch64-linux-gnu-g++: "
        "apt-get install debootstrap qemu-user-static g++-aarch64-linux-gnu"
    )
    assert not (tmp_path / "arm").exists()


@pytest.mark.slow
@pytest.mark.parametrize("source", ["checkout", "sdist"])
def test_wheel_holds_the_package_only_and_imports_elsewhere(checkout, tmp_path, source):
    target = checkout
    if source == "sdist":
        assert setup_py(checkout, "sdist").returncode == 0
        (target,) = (checkout / "dist").glob("*.tar.gz")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    wheels = tmp_path / "wheels"
    # Build isolation on: setup.py has to find the environment's torch from inside pip's empty environment.
    subprocess.run([*pip, "wheel", "-q", "--no-deps", "-w", wheels, target], check=True)
    (wheel,) = wheels.glob("bdam_fast-*-cp310-abi3-*.whl")
    top = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {name for name in top if not name.endswith(".dist-info")} == {"bdam_fast"}
    site = tmp_path / "site"
    subprocess.run([*pip, "install", "-q", "--no-deps", "--no-index", "--target", site, wheel], check=True)
    code = "import bdam_fast, torch; x = torch.ones(1, 2, 3); print(bdam_fast.__file__); "
    code += "print(bdam_fast.causal_conv1d(x, torch.ones(2, 4), backend='cpu').sum().item())"
    run = [sys.executable, "-c", code]
    env = {**os.environ, "PYTHONPATH": str(site)}
    out = subprocess.run(run, cwd=tmp_path, env=env, capture_output=True, text=True, check=True).stdout.split()
    assert out[0].startswith(str(site)) and float(out[1]) == 12.0
