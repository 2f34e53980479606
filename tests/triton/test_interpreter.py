"""The Triton kernels under Triton's interpreter: each file of tests/triton/interpreter in a process of its own."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import ROOT

FOLDER = Path(__file__).resolve().parent / "interpreter"
FILES = sorted(path.name for path in FOLDER.glob("test_*.py"))

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")


@pytest.mark.parametrize("name", FILES)
def test_interpreter_suite(name):
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", str(FOLDER / name)]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert run.returncode == 0 and " passed" in run.stdout, run.stdout[-6000:] + run.stderr[-2000:]


def test_this_process_compiles():
    """Other tests of this process compile kernels, which an interpreter that leaked into it would make impossible."""
    assert os.environ.get("TRITON_INTERPRET", "0") == "0"
