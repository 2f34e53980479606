"""Every Triton kernel through Triton's binder, compiler and launcher, without a GPU: tests/support/triton/launch_all.py."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import ROOT

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed"),
    pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler"),
]
SOURCE = ROOT / "tests/support/triton/stub_driver.c"


def kernels() -> set[str]:
    """Names of the kernels in the sources; the other functions are parts of them."""
    sources = (ROOT / "bdam_fast/ops").glob("*/triton_kernels*.py")
    return {name for path in sources for name in re.findall(r"def (\w+_kernel|scan_\w+ward)\(", path.read_text())}


def test_every_kernel_is_bound_compiled_and_launched(tmp_path: Path) -> None:
    subprocess.run(["cc", "-shared", "-fPIC", "-o", tmp_path / "libcuda.so.1", SOURCE], check=True)
    (tmp_path / "libcuda.so").symlink_to("libcuda.so.1")
    launches = tmp_path / "launches"
    stub = {
        "TRITON_LIBCUDA_PATH": str(tmp_path),
        "STUB_LAUNCHES": str(launches),
        "TRITON_CACHE_DIR": str(tmp_path / "cache"),
    }
    paths = {"LD_LIBRARY_PATH": str(tmp_path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.support.triton.launch_all"]
    run = subprocess.run(command, cwd=ROOT, env=os.environ | stub | paths, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-4000:]
    names = {line.split()[0] for line in launches.read_text().splitlines()}
    assert len(names) > 10 and names == kernels(), run.stdout
