"""Builds the CUDA sources with g++, for the CPU: `include/` stands in for the CUDA toolkit.

The library registers the raw operators a second time, as `bdam_fast_emulated::…` with the dispatch key CPU, and is a
Python module like `bdam_fast._C_cuda` (call counts, poison). Objects are cached under `build/cuda_host` by the hash of
all that goes into them; several processes may build at once.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from torch.utils.cpp_extension import include_paths, library_paths

from tests.support import ROOT

HERE = Path(__file__).resolve().parent
CACHE = ROOT / "build" / "cuda_host"
NAMESPACE = "bdam_fast_emulated"
SANITIZED = "BDAM_HOST_SANITIZED"  # environment variable of a process that has the sanitizer's runtime: the family

# No strict aliasing: nvcc makes no use of it either.
FLAGS = ["-std=c++17", "-fPIC", "-fvisibility=hidden", "-fno-strict-aliasing"]
FLAGS += ["-Wall", "-Wextra", "-Wno-unknown-pragmas", "-DBDAM_CUDA_HOST", "-DTORCH_TARGET_VERSION=0x020b000000000000"]
FLAGS += [f"-DBDAM_OPS={NAMESPACE}", "-DBDAM_KEY=CPU"]
# -O1 compiles in 0.6 of -O2's time; a test spends most of its time in the reference either way.
PLAIN = ["-O1"]
# All checks of `undefined` at -O1 take six times as long to compile as these at -O0.
CHECKS = "address,alignment,bounds,shift,signed-integer-overflow"
SANITIZE = [f"-fsanitize={CHECKS}", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer", "-g1", "-O0"]


def cuda_sources(op: str = "", suffixes: Sequence[str] = (".cu", ".cpp")) -> list[Path]:
    """The CUDA sources of an operator, or of all of them."""
    found = sorted((ROOT / "csrc" / op).rglob("*"))
    return [p for p in found if p.suffix in suffixes and "cuda" in p.relative_to(ROOT / "csrc").parts]


def library(sanitize: str = "") -> Path:
    """The shared library of every file below a folder `cuda` of csrc/, built if it is not there yet.

    Args:
        sanitize: a folder of csrc/ to be built with the sanitizers, alone: that takes much longer.
    """
    sources = [*cuda_sources(sanitize), ROOT / "csrc/module_cuda.cpp", ROOT / "csrc/common/runtime.cpp"]
    torch_libraries = [f"-L{folder}" for folder in library_paths()] + ["-ltorch_cpu"]
    return _link("_C_cuda", sources, bool(sanitize), torch_libraries)


def probe_library(sanitize: bool = False) -> Path:
    """The shared library of probe.cu: small kernels, some of them broken on purpose. It needs no torch."""
    return _link("probe", [HERE / "probe.cu"], sanitize)


def run_sanitized(*command: str, family: str = "") -> subprocess.CompletedProcess[str]:
    """Runs `python COMMAND...` in a process that can load sanitized libraries and takes that of `family`.

    Build them before: the compiler would be slowed down by the sanitizer's runtime, which is loaded into every process.
    """
    runtime = subprocess.run(
        [_compiler(), "-print-file-name=libasan.so"], capture_output=True, text=True, check=True
    ).stdout.strip()
    # Python leaks by design; an allocator of its own would hide where its memory ends.
    settings = {"LD_PRELOAD": runtime, "ASAN_OPTIONS": "detect_leaks=0", "PYTHONMALLOC": "malloc", SANITIZED: family}
    env = {**os.environ, **settings, "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *command], cwd=ROOT, env=env, capture_output=True, text=True)


def _compiler() -> str:
    return os.environ.get("CXX", "g++").split()[0]


def _link(name: str, sources: list[Path], sanitize: bool, libraries: Sequence[str] = ()) -> Path:
    flags = FLAGS + (SANITIZE if sanitize else PLAIN)
    with _lock():
        objects = [_object(source, flags) for source in sources]
        arguments = ["-shared", *(SANITIZE if sanitize else []), *map(str, objects), *libraries]
        target = CACHE / f"{name}-{digest([a.encode() for a in arguments])}.so"
        if not target.exists():
            _compile(arguments, target)
    return target


def _object(source: Path, flags: list[str]) -> Path:
    include = [HERE / "include", ROOT / "csrc", *include_paths(), sysconfig.get_paths()["include"]]
    arguments = [*flags, *(f"-I{p}" for p in include[:2]), *(f"-isystem{p}" for p in include[2:])]
    headers = [p for folder in (ROOT / "csrc", HERE) for p in sorted(folder.rglob("*"))]
    texts = [p.read_bytes() for p in [source, *headers] if p == source or p.suffix in (".h", ".cuh")]
    key = digest([*texts, *(a.encode() for a in arguments), _compiler().encode()])
    target = CACHE / f"{'-'.join(source.relative_to(source.parents[2]).with_suffix('').parts)}-{key}.o"
    if not target.exists():
        _compile([*arguments, "-c", "-x", "c++", str(source)], target)
    return target


def _compile(arguments: list[str], target: Path) -> None:
    """Runs the compiler; the result appears under its name only when it is complete."""
    if shutil.which(_compiler()) is None:
        raise RuntimeError(f"no C++ compiler found (tried {_compiler()}); install g++ or point CXX at yours")
    with tempfile.TemporaryDirectory(dir=CACHE) as folder:
        output = Path(folder) / target.name
        run = subprocess.run([_compiler(), *arguments, "-o", str(output)], capture_output=True, text=True)
        if run.returncode != 0 or "warning:" in run.stderr:
            raise RuntimeError(f"{_compiler()} {' '.join(arguments)}\n{run.stderr}")
        output.replace(target)


def digest(parts: list[bytes]) -> str:
    """A name for a list of texts."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()[:16]


@contextmanager
def _lock() -> Iterator[None]:
    CACHE.mkdir(parents=True, exist_ok=True)
    with open(CACHE / "lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
