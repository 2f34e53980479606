"""Launches every Triton kernel through Triton's binder, compiler and launcher, on the driver of stub_driver.c: nothing runs.

`python -m tests.support.triton.launch_all` with TRITON_LIBCUDA_PATH and STUB_LAUNCHES set: in a process of its own, which
takes the stub for a GPU. Tensors lie on the CPU. Operators of sequences are launched at several lengths and batches, hsic
with several numbers of samples; one line a kernel says how often it was compiled.
"""

from collections import Counter
from typing import Any

import torch
import triton
from torch import Tensor
from triton.runtime import driver

from bdam_fast.ops.causal_conv1d import triton_impl as conv
from bdam_fast.ops.causal_conv1d_update import triton_impl as conv_update
from bdam_fast.ops.hsic import triton_impl as hsic
from bdam_fast.ops.selective_scan import triton_impl as scan
from bdam_fast.ops.selective_state_update import triton_impl as state_update
from tests.support.operators.selective_scan import scan_problem
from tests.support.triton.selective_scan import SCAN


def take_the_stub_for_a_gpu() -> None:
    """Makes Triton's driver the active one, with the answers that it has from PyTorch on a GPU."""
    available, torch.cuda.is_available = torch.cuda.is_available, lambda: True
    torch.cuda.get_device_capability = lambda device=None: (9, 0)
    torch.cuda.current_device = lambda: 0
    active = driver.active
    active.get_current_device = lambda: 0
    active.get_current_stream = lambda device=0: 0
    active.get_device_capability = lambda device=0: (9, 0)
    print("triton", triton.__version__, active.get_current_target())
    torch.cuda.is_available = available


def count_compilations() -> Counter[str]:
    """A count, from now on, of the compilations of each kernel."""
    compiled: Counter[str] = Counter()
    triton.knobs.runtime.jit_post_compile_hook = lambda *, fn, **_: compiled.update([fn.name.rpartition(".")[2]])
    return compiled


def launch_scan(batch: int, length: int) -> None:
    """A forward with saved states and a backward, of packed sequences."""
    problem = scan_problem(batch, 32, length, 16)
    tensors: list[Any] = [problem.get(name) for name in SCAN] + [torch.zeros(batch, length, dtype=torch.int32)]
    out, state, saved = scan.forward(*tensors, True, False, True, True)
    scan.backward(torch.empty_like(out), torch.empty_like(state), *tensors, saved.zero_(), True, False)


def launch_convolution(x: Tensor, width: int) -> None:
    """A forward and a backward."""
    batch, channels, _ = x.shape
    weight, bias, start = torch.randn(channels, width), torch.randn(channels), torch.randn(batch, channels, width - 1)
    _, last = conv.forward(x, weight, bias, start, None, True, False, True)
    conv.backward(torch.empty_like(x), last, x, weight, bias, start, None, True, False)


def launch_hsic(samples: int, gaussian: bool) -> None:
    """A forward, with the median heuristic, and a backward."""
    x, y = torch.randn(2, samples, 20), torch.randn(2, samples, 23)
    value, saved = hsic.forward(x, y, None, None, gaussian, True)
    hsic.backward(value, x, y, saved.zero_(), gaussian, True)


def launch_updates() -> None:
    """One step of each."""
    conv_update.update(torch.randn(2, 64, 3), torch.randn(2, 64, 3), torch.randn(64, 4), None, True)
    streams = torch.randn(2, 128, 16), torch.randn(2, 128), torch.randn(2, 128), torch.randn(128, 16)
    state_update.update(*streams, torch.randn(2, 16), torch.randn(2, 16), None, None, None, True)


SIZES = ((2, 77), (1, 192), (3, 193), (2, 197), (1, 2048))

if __name__ == "__main__":
    take_the_stub_for_a_gpu()
    compiled = count_compilations()
    for batch, length in SIZES:
        launch_scan(batch, length)
        # Steps adjacent: aligned, and not.
        launch_convolution(torch.randn(batch, 36, length), 7)
    for samples in (17, 32, 130, 200):
        for gaussian in (False, True):
            launch_hsic(samples, gaussian)
    launch_updates()
    for name, times in sorted(compiled.items()):
        print("compiled", name, times)
