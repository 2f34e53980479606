"""The command that runs other packages' tests on compat, on a checkout made up for it."""

import subprocess
import sys

import pytest

from bench.harness.results import ROOT

TESTS = """
import pytest
import torch
from causal_conv1d.causal_conv1d_interface import causal_conv1d_fn, causal_conv1d_ref

@pytest.mark.parametrize("length", range(1, 11))
def test_conv(length):
    x = torch.randn(1, 8, length, device="cuda")
    weight = torch.randn(8, 3, device='cuda')
    assert torch.allclose(causal_conv1d_fn(x, weight), causal_conv1d_ref(x, weight), atol=1e-5)
    assert causal_conv1d_ref.__doc__ == "theirs"

@pytest.mark.parametrize("x", [1, 2, 3])
def test_one_fails(x):
    assert x != 2, "not two"

def test_left_out():
    pytest.skip("no")
"""
REFERENCE = '''
import nothing_that_exists
import torch.nn.functional as F

def causal_conv1d_ref(x, weight):
    """theirs"""
    return F.conv1d(x, weight[:, None], padding=2, groups=8)[..., : x.shape[2]]
'''


@pytest.fixture
def checkout(tmp_path):
    folder = tmp_path / "conv"
    files = {
        "tests/test_conv.py": TESTS,
        "tests/deep/test_other.py": "from mamba_ssm.ops.triton import ssd_combined",
        "causal_conv1d/causal_conv1d_interface.py": REFERENCE,
    }
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def run(*words):
    command = [sys.executable, "-m", "bench.ops.upstream_tests", *map(str, words)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_every_function_is_counted(checkout):
    done = run(checkout, "--at-most", 4)
    assert done.returncode == 1 and done.stderr == "", done.stderr
    assert done.stdout.splitlines() == [
        "conv/tests/deep/test_other.py",
        "  not run: ImportError: cannot import name 'ssd_combined' from 'mamba_ssm.ops.triton' (unknown location)",
        "conv/tests/test_conv.py",
        "  test_conv: 4 of 4 passed (a sample of 10)",
        "  test_one_fails: 2 of 3 passed",
        "    1 times: AssertionError: not two",
        "  test_left_out: 0 of 0 passed, 1 skipped",
    ]
    assert not (checkout / "tests/__pycache__").exists()


def test_a_choice_of_tests_and_a_folder_without_any(checkout):
    done = run(checkout, "-k", "test_conv and 3")
    assert done.returncode == 0 and "  test_conv: 1 of 1 passed\n" in done.stdout, done.stdout
    done = run(checkout / "causal_conv1d")
    assert (done.returncode, done.stdout) == (1, "")
    assert "has no tests/**/test_*.py, expected a checkout of causal-conv1d or mamba" in done.stderr
