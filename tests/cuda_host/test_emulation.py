"""The emulation of CUDA on the CPU: what it computes, and that it finds what a GPU would get wrong."""

import math
import os
import subprocess
import sys

import pytest
import torch

from tests.support import ROOT
from tests.support.cuda_host import broken, build

NUMBERS = [float(i) for i in range(256)]
ORDERS = ["forward", "reverse", "random", "random:7"]


@pytest.fixture(scope="module")
def probe():
    """`probe(name, values, count, n)`: what a kernel of probe.cu writes."""
    path = str(build.probe_library())
    return lambda name, values=NUMBERS, count=256, n=256: broken.run(path, name, values, count, n)


def in_a_process(name, **environment):
    """A run of a kernel that may stop its process."""
    command = [sys.executable, "-m", "tests.support.cuda_host.broken", str(build.probe_library()), name]
    env = {**os.environ, **environment}
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)


def sanitized(name):
    return build.run_sanitized("-m", "tests.support.cuda_host.broken", str(build.probe_library(sanitize=True)), name)


@pytest.mark.parametrize("order", ORDERS)
def test_barrier_and_shared_memory(probe, order, monkeypatch):
    monkeypatch.setenv("BDAM_HOST_ORDER", order)
    assert probe("reverse_block") == [float(i // 64 * 64 + 63 - i % 64) for i in range(256)]


@pytest.mark.parametrize("order", ORDERS)
def test_a_missing_barrier_shows(probe, order, monkeypatch):
    """As NaN from the other half of the block: shared memory is NaN before each block."""
    monkeypatch.setenv("BDAM_HOST_ORDER", order)
    got = probe("no_barrier")
    assert 0 < sum(math.isnan(v) for v in got) < 256


@pytest.mark.parametrize("name", ["divergent_barrier", "two_barriers"])
def test_divergent_barriers_are_a_deadlock(name):
    run = in_a_process(name)
    assert run.returncode == -6, run
    assert f"host_cuda: {name}: deadlock: thread 0 waits at" in run.stderr


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("past_the_shared_end", "past_the_shared_end: writes past its 256 bytes of dynamic shared memory"),
        ("misaligned", "misaligned: a vector of 16 bytes at an address that is no multiple of it"),
    ],
)
def test_bad_addresses_stop_the_process(name, text):
    run = in_a_process(name)
    assert run.returncode == -6 and text in run.stderr, run


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("past_the_end", "probe_kernels.cuh"),
        ("past_the_shared_end", "heap-buffer-overflow"),
        ("divergent_barrier", "deadlock"),
    ],
)
def test_sanitizer_finds_it(name, text):
    run = sanitized(name)
    assert run.returncode != 0 and text in run.stderr, run


def test_sanitizer_is_silent_about_a_right_kernel():
    for name in ("reverse_block", "copy_async"):
        run = sanitized(name)
        assert run.returncode == 0 and run.stderr == "", run


@pytest.mark.parametrize("order", ORDERS)
def test_shuffles(probe, order, monkeypatch):
    monkeypatch.setenv("BDAM_HOST_ORDER", order)
    lanes = range(32)
    expected = [[max(i - 3, i % 3 if i < 3 else 0), i + 3 if i < 29 else i, i ^ 5, 7] for i in lanes]
    assert probe("shuffles", count=128) == [float(v) for row in expected for v in row]
    assert probe("half_warp_sums", count=32) == [float(sum(range(16)))] * 16 + [float(sum(range(16, 32)))] * 16


@pytest.mark.parametrize(("name", "dtype"), [("bf16", torch.bfloat16), ("half", torch.float16)])
def test_conversions_round_like_torch(probe, name, dtype):
    bits = torch.randint(-(2**31), 2**31, (20000,)).int().view(torch.float32)
    small = torch.randn(20000) * 10.0 ** torch.randint(-8, 6, (20000,))
    ties = (torch.arange(-2000, 2000) + 0.5) * 2.0 ** torch.randint(-26, 8, (4000,))
    edges = torch.tensor([0.0, -0.0, math.inf, -math.inf, math.nan, 65504.0, 65519.99, 65520.0, -65536.0, 2**-14, 3e-8])
    values = torch.cat([bits, small, ties, edges])
    got = torch.tensor(probe(name, values.tolist(), len(values), len(values)))
    expected = values.to(dtype).float()
    assert torch.equal(got.nan_to_num(123.0), expected.nan_to_num(123.0))
    assert torch.equal(got.signbit()[~got.isnan()], expected.signbit()[~got.isnan()])


def test_softplus_and_sigmoid(probe):
    x = torch.cat([torch.linspace(-30, 40, 1401), torch.tensor([-1e4, 1e4, -math.inf, math.inf, math.nan, 20.0])])
    got = torch.tensor(probe("functions", x.tolist(), 3 * len(x), len(x))).view(3, -1)
    exact = x.double().requires_grad_()
    value = torch.nn.functional.softplus(exact)
    value.sum().backward()
    torch.testing.assert_close(got[0].double(), value.detach(), rtol=3e-7, atol=1.2e-7, equal_nan=True)
    torch.testing.assert_close(got[1].double(), exact.grad, rtol=3e-6, atol=1e-38, equal_nan=True)
    torch.testing.assert_close(got[2].double(), exact.detach().sigmoid(), rtol=3e-6, atol=1e-37, equal_nan=True)


@pytest.mark.parametrize("order", ORDERS)
def test_tensor_core_product(probe, order, monkeypatch):
    monkeypatch.setenv("BDAM_HOST_ORDER", order)
    a, b = torch.randint(-9, 9, (16, 8)).float(), torch.randint(-9, 9, (8, 8)).float()
    got = probe("matrix_product", torch.cat([a.flatten(), b.flatten()]).tolist(), 128)
    assert torch.equal(torch.tensor(got).view(16, 8), a @ b)


def test_an_asynchronous_copy_is_there_after_the_wait_only(probe):
    assert probe("copy_async", count=64) == [float(4 * (63 - i)) for i in range(64)]
    assert all(math.isnan(v) for v in probe("no_wait", count=64))


def test_launches_that_a_gpu_refuses_raise(probe):
    with pytest.raises(RuntimeError, match="CUDA kernel two_barriers: invalid configuration argument"):
        probe("empty_grid")
    with pytest.raises(RuntimeError, match=r"CUDA kernel \(reverse_block<true>\): invalid argument"):
        probe("much_shared", n=228 << 10)
    assert not math.isnan(probe("much_shared", n=227 << 10)[0])


def test_unknown_order_stops():
    run = in_a_process("reverse_block", BDAM_HOST_ORDER="backwards")
    assert "BDAM_HOST_ORDER must be forward, reverse or random, got backwards" in run.stderr
