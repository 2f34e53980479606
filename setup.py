"""Builds bdam_fast._C (CPU kernels and every schema) and, where it can, bdam_fast._C_cuda, from csrc/ by file suffix."""

import os
import shutil
import sys
import sysconfig
from pathlib import Path

try:
    import torch
except ImportError:  # pip's isolated build hides the environment's packages: build against the torch that will run
    sys.path.append(sysconfig.get_paths()["purelib"])
    try:
        import torch
    except ImportError:
        sys.exit("bdam_fast: torch is not installed here; run `pip install torch` first, then install bdam_fast again")

from setuptools import setup
from torch.utils import cpp_extension

ROOT = Path(__file__).resolve().parent
# The stable ABI of torch 2.11: one binary loads in every torch from 2.11 on, and in every Python from 3.10 on.
TORCH_TARGET = "-DTORCH_TARGET_VERSION=0x020b000000000000"
CXX = ["-O3", "-std=c++17", "-fvisibility=hidden", "-Wno-psabi", "-Wno-maybe-uninitialized", TORCH_TARGET]


def sources(*suffixes: str, cuda: bool = False) -> list[str]:
    """Files below csrc/ with one of `suffixes`, of the CUDA library or of the other; relative (setuptools refuses absolute
    paths)."""
    found = (p.relative_to(ROOT) for p in sorted((ROOT / "csrc").rglob("*")) if p.suffix in suffixes)
    return [str(p) for p in found if ("cuda" in p.parts or p.stem == "module_cuda") == cuda]


def require_compiler() -> None:
    """Stops with one sentence when there is no C++ compiler, before setuptools fails with thirty lines."""
    compiler = os.environ.get("CXX", "c++").split()[0]
    if shutil.which(compiler) is None and shutil.which("g++") is None:
        sys.exit(
            f"bdam_fast: no C++ compiler found (tried {compiler} and g++); install one "
            "(Debian, Ubuntu: apt-get install g++; macOS: xcode-select --install) or point CXX at yours"
        )


def wants_cuda() -> bool:
    """BDAM_FAST_CUDA=0 never, =1 always (an error when impossible), else when nvcc and a CUDA torch are both there."""
    asked = os.environ.get("BDAM_FAST_CUDA", "auto")
    if asked not in ("0", "1", "auto"):
        sys.exit(f"bdam_fast: BDAM_FAST_CUDA must be 0, 1 or auto, got {asked!r}")
    missing = []
    if torch.version.cuda is None:
        missing.append(f"torch {torch.__version__} is a CPU build (install a CUDA build of torch)")
    if cpp_extension.CUDA_HOME is None:
        missing.append("nvcc was not found (install the CUDA toolkit or set CUDA_HOME)")
    if not sources(".cu", cuda=True):
        missing.append("this version has no CUDA sources")
    if asked == "1" and missing:
        sys.exit("bdam_fast: BDAM_FAST_CUDA=1, but " + "; ".join(missing))
    return asked != "0" and not missing


def extensions() -> list:
    """The extension modules to build on this machine."""
    include = [str(ROOT / "csrc")]
    cpu = cpp_extension.CppExtension(
        "bdam_fast._C",
        sources(".cpp"),
        include_dirs=include,
        depends=sources(".h", ".inl"),
        py_limited_api=True,
        extra_compile_args={"cxx": CXX},
        extra_link_args=["-s"] if sys.platform.startswith("linux") else [],
    )
    if not wants_cuda():
        return [cpu]
    cuda = cpp_extension.CUDAExtension(
        "bdam_fast._C_cuda",
        [*sources(".cu", ".cpp", cuda=True), "csrc/common/runtime.cpp"],
        include_dirs=include,
        depends=[*sources(".h"), *sources(".h", ".cuh", cuda=True)],
        py_limited_api=True,
        extra_compile_args={
            "cxx": [*CXX, "-DUSE_CUDA"],
            "nvcc": ["-O3", "-std=c++17", TORCH_TARGET, "-DUSE_CUDA", "-lineinfo"],
        },
    )
    return [cpu, cuda]


def building() -> bool:
    """Whether this run compiles anything (an sdist or a metadata query does not)."""
    return any(a.startswith(("build", "bdist", "install", "develop", "editable")) for a in sys.argv[1:])


if __name__ == "__main__":
    if building():
        require_compiler()
    setup(
        ext_modules=extensions(),
        cmdclass={"build_ext": cpp_extension.BuildExtension},
        options={"bdist_wheel": {"py_limited_api": "cp310"}},
    )
