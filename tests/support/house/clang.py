"""Compiles the CPU library with Clang: for this machine (Linux on x86-64), where it is linked and can be tested, and for macOS.

`python -m tests.support.house.clang FOLDER [PART …]`; FOLDER/checkout is then a copy of the package with that library, and the
tests. With PARTs, folders of csrc/, the others are left out of it. Clang is that of the package ziglang, which brings macOS's
headers. The library is linked by the machine's own compiler against its C++ library, which is that of torch. What macOS would
load is linked too, with all symbols of other libraries left open: nothing here runs it.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from tests.support import ROOT
from tests.support.house import library

PACKAGE = "ziglang==0.17.1"
CLANG = (sys.executable, "-m", "ziglang", "c++")
# Zig compiles traps for undefined behaviour into what is not told otherwise.
COMMON = ("-Wall", "-Werror", "-fno-sanitize=undefined")
TORCH = Path(torch.__file__).parent
# As in pyproject.toml, [tool.cibuildwheel.macos].
MACOS = "aarch64-macos.11.0"
MACOS_LINK = ("-shared", "-nostdlib", "-nostdlib++", "-Wl,-undefined,dynamic_lookup")


def machine_flags() -> list[str]:
    """Flags for this processor family, and for the machine's own C++ headers: objects of others could not meet torch's."""
    shown = subprocess.run(["c++", "-xc++", "-E", "-v", os.devnull], capture_output=True, text=True, check=True).stderr
    listed = shown.partition("search starts here:\n#include <...> search starts here:\n")[2].partition("End of search")[
        0
    ]
    folders = [line.strip() for line in listed.splitlines() if "/lib/gcc/" not in line]
    target = f"{platform.machine()}-linux-gnu.{platform.libc_ver()[1]}"
    return ["-target", target, "-nostdinc++", *(word for folder in folders for word in ("-isystem", folder))]


def compile_all(folder: Path, sources: list[Path], *flags: str) -> list[Path]:
    """Objects of the sources, as many at a time as MAX_JOBS says or there are cores. A warning is an error.

    Raises:
        subprocess.CalledProcessError: the compiler refuses a file; it has said why.
    """
    folder.mkdir(parents=True, exist_ok=True)
    words = [*CLANG, *flags, *library.flags(TORCH), *COMMON]
    environment = os.environ | {"ZIG_GLOBAL_CACHE_DIR": str(folder.parent / "cache")}

    def compiled(source: Path) -> Path:
        target = folder / ("-".join(source.relative_to(ROOT / "csrc").with_suffix("").parts) + ".o")
        library.run(*words, "-c", source, "-o", target, env=environment)
        return target

    with ThreadPoolExecutor(int(os.environ.get("MAX_JOBS", os.cpu_count() or 1))) as pool:
        return list(pool.map(compiled, sources))


def main() -> None:
    """Does both, in the folder that is the first argument."""
    folder, parts = Path(sys.argv[1]).resolve(), sys.argv[2:]
    if importlib.util.find_spec("ziglang") is None:
        sys.exit(f"make clang needs Clang: pip install {PACKAGE}")
    sources = [
        p for p in library.sources() if not parts or p.relative_to(ROOT / "csrc").parts[0] in (*parts, "module.cpp")
    ]
    objects = compile_all(folder / "linux", sources, *machine_flags())
    built = folder / "_C.abi3.so"
    library.run("c++", "-shared", "-s", *objects, "-o", built, f"-L{TORCH / 'lib'}", "-lc10", "-ltorch_cpu")
    library.copy_checkout(folder / "checkout", built)
    print(f"{built}: {built.stat().st_size / 1e6:.2f} MB, {len(sources)} sources")
    objects = compile_all(folder / "macos", sources, "-target", MACOS)
    linked = folder / "macos/_C.abi3.so"
    library.run(*CLANG, "-target", MACOS, *MACOS_LINK, *objects, "-o", linked)
    print(f"{linked}: {linked.stat().st_size / 1e6:.2f} MB, for {MACOS}, not run")


if __name__ == "__main__":
    main()
