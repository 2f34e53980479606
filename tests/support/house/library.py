"""The CPU library as compilers other than this machine's build it, with the flags of setup.py, and a checkout to test it in."""

from __future__ import annotations

import runpy
import shutil
import subprocess
import sysconfig
from pathlib import Path

from tests.support import ROOT


def run(*command: object, **options: object) -> str:
    """Standard output of a command that must succeed."""
    done = subprocess.run([str(c) for c in command], check=True, stdout=subprocess.PIPE, text=True, **options)  # type: ignore[call-overload]
    return done.stdout


def inputs() -> list[Path]:
    """All files that the library is made from: csrc/ without CUDA's, setup.py, and the name of the operators' namespace."""
    found = [p for p in (ROOT / "csrc").rglob("*") if p.is_file() and "cuda" not in p.parts]
    return [*found, ROOT / "setup.py", ROOT / "bdam_fast/_namespace.py"]


def sources() -> list[Path]:
    """The files to be compiled."""
    return sorted(p for p in inputs() if p.suffix == ".cpp" and p.stem != "module_cuda")


def flags(torch: Path) -> list[str]:
    """Flags that setup.py and setuptools give a compiler, with the headers of the torch in a folder."""
    found = [*runpy.run_path(str(ROOT / "setup.py"))["CXX"], "-fPIC", "-DNDEBUG"]
    found += ["-DTORCH_API_INCLUDE_EXTENSION_H", "-DPy_LIMITED_API=0x030A0000", "-DTORCH_EXTENSION_NAME=_C"]
    found += [f"-I{ROOT / 'csrc'}"]
    headers = (sysconfig.get_paths()["include"], torch / "include", torch / "include/torch/csrc/api/include")
    return found + [word for folder in headers for word in ("-isystem", str(folder))]


def copy_checkout(checkout: Path, library: Path) -> None:
    """Copies the package with `library` in it, and the tests."""
    shutil.rmtree(checkout, ignore_errors=True)
    ignore = shutil.ignore_patterns("*.so", "__pycache__")
    for name in ("bdam_fast", "tests"):
        shutil.copytree(ROOT / name, checkout / name, ignore=ignore)
    shutil.copy(ROOT / "pyproject.toml", checkout)
    shutil.copy(library, checkout / "bdam_fast/_C.abi3.so")
