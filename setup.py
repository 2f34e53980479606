"""Builds bdam_fast._C (CPU kernels and every schema) and, where it can, bdam_fast._C_cuda, from csrc/ by file suffix.

BDAM_FAST_CUDA=only builds the distribution bdam-fast-cuda instead, which adds _C_cuda to the bdam-fast of its version.
"""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

try:
    import torch
except ImportError:  # pip's isolated build hides the environment's packages: build against the torch that will run
    sys.path.append(sysconfig.get_paths()["purelib"])
    try:
        import torch
    except ImportError:
        sys.exit("bdam_fast: torch is not installed here; run `pip install torch` first, then install bdam_fast again")

from setuptools import Distribution, setup
from torch.utils import cpp_extension

ROOT = Path(__file__).resolve().parent
# The stable ABI of torch 2.11: one binary loads in every torch from 2.11 on, and in every Python from 3.10 on.
TORCH_TARGET = "-DTORCH_TARGET_VERSION=0x020b000000000000"
# What is built where no card is in the machine and none is asked for; newer cards run the PTX of the last.
ARCHITECTURES = ("8.0", "8.6", "8.9", "9.0", "10.0", "12.0")
# -Wno-maybe-uninitialized is GCC's alone, and Clang warns of what it does not know.
CXX = [
    "-O3",
    "-std=c++17",
    "-fvisibility=hidden",
    "-Wno-psabi",
    "-Wno-unknown-warning-option",
    "-Wno-maybe-uninitialized",
]
CXX += [TORCH_TARGET]
# Where the operators are registered below torch.ops.
(NAMESPACE,) = re.findall(r'^NAMESPACE = "(\w+)"$', (ROOT / "bdam_fast/_namespace.py").read_text(), re.M)
CXX += [f"-DBDAM_OPS={NAMESPACE}"]
(VERSION,) = re.findall(r'^__version__ = "([\w.]+)"$', (ROOT / "bdam_fast/__init__.py").read_text(), re.M)
# Checks carry the name of their file: without these a library would hold the folders of the machine that built it, and two
# builds of one commit would differ.
CXX += [f"-ffile-prefix-map={ROOT}=.", f"-ffile-prefix-map={Path(torch.__file__).parent}=torch"]


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
    """BDAM_FAST_CUDA=0 never, =1 or =only always (an error when impossible), else when nvcc and a CUDA torch are both there."""
    asked = os.environ.get("BDAM_FAST_CUDA", "auto")
    if asked not in ("0", "1", "auto", "only"):
        sys.exit(f"bdam_fast: BDAM_FAST_CUDA must be 0, 1, only or auto, got {asked!r}")
    missing = []
    if torch.version.cuda is None:
        missing.append(f"torch {torch.__version__} is a CPU build (install a CUDA build of torch)")
    elif cpp_extension.CUDA_HOME is None:
        missing.append("nvcc was not found (install the CUDA toolkit or set CUDA_HOME)")
    if asked in ("1", "only") and missing:
        sys.exit(f"bdam_fast: BDAM_FAST_CUDA={asked}, but " + "; ".join(missing))
    return asked != "0" and not missing


def cuda_toolkit() -> Path:
    """The toolkit's folder as its compiler knows it: an nvcc on the PATH may be a script outside of it."""
    nvcc = Path(cpp_extension.CUDA_HOME) / "bin" / "nvcc"
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "empty.cu")
        source.touch()
        run = subprocess.run([nvcc, "--dryrun", source], capture_output=True, text=True)
    top = re.search(r"^#\$ TOP=(.*)$", run.stderr, re.M)
    if run.returncode or top is None:
        sys.exit(
            f"bdam_fast: {nvcc} does not work ({run.stderr.strip() or 'it prints nothing'}); set CUDA_HOME to a toolkit"
        )
    return Path(top[1]).resolve()


class Unsupported(Exception):
    """An architecture that the kernels cannot be compiled for."""


def cuda_architectures(toolkit: Path) -> str:
    """The value of TORCH_CUDA_ARCH_LIST: the user's, else those of the cards in this machine, else ARCHITECTURES.

    Raises Unsupported below 8.0: the kernels copy asynchronously and multiply in TF32, which older cards cannot.
    """
    asked = os.environ.get("TORCH_CUDA_ARCH_LIST", "").replace(";", " ").split()
    cards = [torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())]
    known = subprocess.run([toolkit / "bin/nvcc", "--list-gpu-arch"], capture_output=True, text=True).stdout.split()
    default = [a for a in ARCHITECTURES if f"compute_{a.replace('.', '')}" in known]
    chosen = asked or sorted({f"{major}.{minor}" for major, minor in cards}) or [*default[:-1], f"{default[-1]}+PTX"]
    for name in chosen:
        number = re.fullmatch(r"(\d+)\.\d+[af]?(\+PTX)?", name)
        if number is None:
            sys.exit(f"bdam_fast: TORCH_CUDA_ARCH_LIST holds {name!r}, expected numbers such as 9.0 or 9.0+PTX")
        if int(number[1]) < 8:
            where = "TORCH_CUDA_ARCH_LIST has" if asked else "a card of this machine has"
            raise Unsupported(f"the CUDA kernels need compute capability 8.0 or newer, {where} {name}")
    return ";".join(chosen)


def code_flags(architectures: str) -> list[str]:
    """Flags of nvcc for the size of the library: code is compressed, and has line numbers, which profilers and
    compute-sanitizer show, where it is for one architecture. They are two thirds of it."""
    return ["-Xfatbin=-compress-all", *([] if ";" in architectures else ["-lineinfo"])]


def cuda_extensions(include: list[str]) -> list:
    """bdam_fast._C_cuda for the architectures that `cuda_architectures` names; nothing where it is neither asked for nor
    of use."""
    if not wants_cuda():
        return []
    toolkit = cuda_toolkit()
    try:
        architectures = os.environ["TORCH_CUDA_ARCH_LIST"] = cuda_architectures(toolkit)
    except Unsupported as error:
        if os.environ.get("BDAM_FAST_CUDA") in ("1", "only") or "TORCH_CUDA_ARCH_LIST" in os.environ:
            sys.exit(f"bdam_fast: {error}; set BDAM_FAST_CUDA=0 to build without them")
        print(f"bdam_fast: built without CUDA kernels: {error}", file=sys.stderr)
        return []
    stated = [f"-DBDAM_VERSION={VERSION}", f"-DBDAM_CUDA_ARCHITECTURES={architectures.replace(';', ',')}"]
    library = cpp_extension.CUDAExtension(
        "bdam_fast._C_cuda",
        [*sources(".cu", ".cpp", cuda=True), "csrc/common/runtime.cpp"],
        include_dirs=include,
        library_dirs=[str(p) for p in (toolkit / "lib64", toolkit / "targets/x86_64-linux/lib") if p.is_dir()],
        depends=[*sources(".h"), *sources(".h", ".cuh", cuda=True)],
        py_limited_api=True,
        extra_compile_args={
            "cxx": [*CXX, "-DUSE_CUDA", *stated],
            "nvcc": ["-O3", "-std=c++17", TORCH_TARGET, "-DUSE_CUDA", *code_flags(architectures)],
        },
    )
    return [library]


def extensions() -> list:
    """The extension modules to build on this machine."""
    include = [str(ROOT / "csrc")]
    if cuda_only():
        return cuda_extensions(include) if building() else []
    cpu = cpp_extension.CppExtension(
        "bdam_fast._C",
        sources(".cpp"),
        include_dirs=include,
        depends=sources(".h", ".inl"),
        py_limited_api=True,
        extra_compile_args={"cxx": CXX},
        extra_link_args=["-s"] if sys.platform.startswith("linux") else [],
    )
    return [cpu, *(cuda_extensions(include) if building() else [])]


def cuda_only() -> bool:
    """True if the CUDA library is to be a distribution of its own."""
    return os.environ.get("BDAM_FAST_CUDA") == "only"


class CudaDistribution(Distribution):
    """The distribution bdam-fast-cuda: the CUDA library alone, in the folder of the package, for that version of it."""

    def parse_config_files(self, *arguments: object, **options: object) -> None:
        """Reads pyproject.toml, then changes what differs."""
        super().parse_config_files(*arguments, **options)
        self.metadata.name = "bdam-fast-cuda"
        self.metadata.description = "The CUDA C++ kernels of bdam-fast"
        self.packages, self.package_data = [], {}
        for place in (self, self.metadata):
            place.install_requires, place.extras_require = [f"bdam-fast=={VERSION}"], {}

    def has_ext_modules(self) -> bool:
        """True where a metadata query has built nothing too: the name of the wheel is that of a platform."""
        return True


def building() -> bool:
    """True if this run compiles anything (an sdist or a metadata query does not)."""
    return any(a.startswith(("build", "bdist", "install", "develop", "editable")) for a in sys.argv[1:])


if __name__ == "__main__":
    if building():
        require_compiler()
    setup(
        ext_modules=extensions(),
        cmdclass={"build_ext": cpp_extension.BuildExtension},
        options={"bdist_wheel": {"py_limited_api": "cp310"}},
        distclass=CudaDistribution if cuda_only() else Distribution,
    )
