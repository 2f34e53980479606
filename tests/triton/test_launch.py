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
    return {name for path in sources for name in re.findall(r"def (\w+_kernel|scan_\w+)\(", path.read_text())}


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
    names = [line.split()[0] for line in launches.read_text().splitlines()]
    assert len(set(names)) > 10 and set(names) == kernels(), run.stdout
    compiled = {name: int(times) for name, times in re.findall(r"^compiled (\w+) (\d+)$", run.stdout, re.MULTILINE)}
    assert set(compiled) == kernels()
    # Five lengths and batches: one variant of the scan, two of the convolution, whose steps are adjacent here.
    found = [names.count(name) for name in ("scan_forward", "forward_kernel", "scan_backward", "backward_kernel")]
    assert found == [5] * 4
    found = [compiled[name] for name in ("scan_forward", "forward_kernel", "scan_backward", "backward_kernel")]
    assert found == [1, 2, 1, 2]
    # The longest of them is cut in chunks.
    assert [(names.count(name), compiled[name]) for name in ("scan_chunks", "scan_gradient_chunks")] == [(1, 1)] * 2
    # 17 and 32 samples are one variant, linear or Gaussian, and so are 130 and 200.
    assert compiled["small_forward_kernel"] == 2 and compiled["sums_kernel"] == compiled["gradient_kernel"] == 1
