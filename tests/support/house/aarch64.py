"""Lays out an aarch64 machine in a folder: Debian's Python and PyTorch, run by qemu, and the CPU library compiled for them.

`python -m tests.support.house.aarch64 FOLDER`, as root; downloads about 0.6 GB, once, and compiles where csrc/ has changed.
Then FOLDER/python is that Python, and FOLDER/checkout a copy of the package with its tests.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path

from tests.support.house import library
from tests.support.house.library import run

TOOLS = {
    "debootstrap": "debootstrap",
    "qemu-aarch64-static": "qemu-user-static",
    "aarch64-linux-gnu-g++": "g++-aarch64-linux-gnu",
}
# Debian 12 has Python 3.11. The oldest torch that is supported: wheels are built with it.
SUITE, PYTHON, TORCH = "bookworm", "3.11", "torch==2.11.0"
DEBIAN_PACKAGES = "python3,libgomp1,libstdc++6"
# What torch imports, and what the tests do.
PACKAGES = "filelock typing-extensions sympy networkx jinja2 fsspec numpy pytest pytest-timeout".split()
# PyTorch for aarch64 comes for CUDA only. Of CUDA's libraries it needs the names: each function answers "no device".
CUDA_SYMBOL = re.compile(r"(cu|nccl|nvshmem|__cuda)")
NO_DEVICE = 100


def lay_out_debian(root: Path) -> None:
    """Unpacks Debian's packages for arm64 below `root`; nothing of them is configured or run."""
    if (root / "usr/bin/python3").exists():
        return
    shutil.rmtree(root, ignore_errors=True)
    run("debootstrap", "--foreign", "--arch=arm64", "--variant=minbase", f"--include={DEBIAN_PACKAGES}", SUITE, root)
    for package in sorted((root / "var/cache/apt/archives").glob("*.deb")):
        run("dpkg-deb", "-x", package, root)


def install_packages(site: Path) -> None:
    """Installs torch without its dependencies, which are CUDA's libraries, and the pure packages beside it."""
    if (site / "pytest").exists():
        return
    pip = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--target", site]
    pip += ["--only-binary=:all:", "--python-version", PYTHON]
    pip += [word for tag in ("2_28", "2_27", "2_17") for word in ("--platform", f"manylinux_{tag}_aarch64")]
    run(*pip, "--no-deps", TORCH)
    run(*pip, *PACKAGES)


def symbols(libraries: list[Path], which: str) -> set[str]:
    """Names, with @VERSION where they have one, that the libraries define or leave undefined."""
    listed = run("aarch64-linux-gnu-nm", "-D", f"--{which}-only", *libraries)
    return {line.split()[-1] for line in listed.splitlines() if line.startswith(" ") or line[:1].isalnum()}


def stub_cuda(site: Path, root: Path, stubs: Path) -> None:
    """Makes one library in place of all of CUDA's that torch is linked to."""
    if stubs.exists():
        return
    libraries = sorted((site / "torch/lib").glob("*.so*"))
    defined = {name.partition("@")[0] for name in symbols(libraries, "defined")}
    versions: dict[str, list[str]] = {}
    for symbol in sorted(symbols(libraries, "undefined")):
        name, _, version = symbol.partition("@")
        if CUDA_SYMBOL.match(name) and name not in defined:
            versions.setdefault(version.lstrip("@"), []).append(name)
    stubs.mkdir()
    source, script, library = stubs / "stub.c", stubs / "stub.map", stubs / "stub.so"
    names = sorted({name for group in versions.values() for name in group})
    source.write_text("".join(f"long {name}(void) {{ return {NO_DEVICE}; }}\n" for name in names))
    script.write_text("".join(f"{v} {{ global: {'; '.join(group)}; }};\n" for v, group in versions.items() if v))
    flags = ("-w", "-fno-builtin", "-shared", "-fPIC", f"-Wl,--version-script={script}")
    run("aarch64-linux-gnu-gcc", *flags, source, "-o", library)
    present = {p.name for p in [*libraries, *root.rglob("*.so*")]}
    needed = run("aarch64-linux-gnu-readelf", "-d", *libraries)
    for name in set(re.findall(r"\(NEEDED\).*\[(.*)\]", needed)) - present:
        (stubs / name).symlink_to(library.name)


def compile_library(torch: Path, target: Path) -> None:
    """Compiles bdam_fast._C with the flags of setup.py, unless it is newer than all of its sources."""
    if target.exists() and target.stat().st_mtime > max(p.stat().st_mtime for p in library.inputs()):
        return
    flags = [*library.flags(torch), "-shared", "-s"]
    run("aarch64-linux-gnu-g++", *flags, *library.sources(), "-o", target, f"-L{torch / 'lib'}", "-lc10", "-ltorch_cpu")


def main() -> None:
    """Does all of it, in the folder that is the only argument."""
    folder = Path(sys.argv[1]).resolve()
    missing = [package for tool, package in TOOLS.items() if shutil.which(tool) is None]
    if missing:
        sys.exit(f"make arm needs {', '.join(TOOLS)}: apt-get install {' '.join(missing)}")
    if os.geteuid() != 0 and not (folder / "root/usr/bin/python3").exists():
        sys.exit("make arm needs to be root, the first time: debootstrap is")
    root, site, stubs, built = (folder / name for name in ("root", "site", "stubs", "_C.abi3.so"))
    folder.mkdir(exist_ok=True)
    lay_out_debian(root)
    install_packages(site)
    stub_cuda(site, root, stubs)
    compile_library(site / "torch", built)
    library.copy_checkout(folder / "checkout", built)
    emulator = f"qemu-aarch64-static -L {root} -E LD_LIBRARY_PATH={stubs} -E PYTHONPATH={site}"
    script = folder / "python"
    script.write_text(f'#!/bin/sh\nexec {emulator} {root}/usr/bin/python{PYTHON} "$@"\n')
    script.chmod(0o755)


if __name__ == "__main__":
    main()
