"""What the Triton kernels share. Imported only when a Triton kernel is first needed.

Under Triton's interpreter (TRITON_INTERPRET=1 before the first import of triton) kernels run on the CPU, on CPU tensors.
"""

from contextlib import AbstractContextManager, nullcontext

import torch
import triton
import triton.language as tl
from torch import Tensor

INTERPRET = triton.knobs.runtime.interpret
LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
_INTERPRET = tl.constexpr(INTERPRET)


@triton.jit
def rounded(x, dtype: tl.constexpr):
    """float32 x as `dtype`, rounded to nearest; the interpreter of Triton truncates to bfloat16, so there it is done by hand."""
    if _INTERPRET and dtype == tl.bfloat16:
        bits = x.to(tl.int32, bitcast=True)
        bits += 0x7FFF + ((bits >> 16) & 1)
        even = (bits & -65536).to(tl.float32, bitcast=True)
        return tl.where(x == x, even, x).to(tl.bfloat16)
    return x.to(dtype)


@triton.jit
def softplus(x):
    """log(1 + e^x), linear above 20; below -7 the series of log1p keeps the relative accuracy."""
    e = tl.exp2(tl.minimum(x, 30.0) * LOG2E)
    series = e * (1.0 - 0.5 * e)
    return tl.where(x > 20.0, x, tl.where(x < -7.0, series, LN2 * tl.log2(1.0 + e)))


@triton.jit
def sigmoid(x):
    """1 / (1 + e^-x)."""
    return 1.0 / (1.0 + tl.exp2(-x * LOG2E))


def parameter(value: Tensor | None) -> Tensor | None:
    """A small tensor (A, D, a bias, weights) as a kernel reads it: float32, contiguous."""
    return None if value is None else value.to(torch.float32).contiguous()


def on_device(t: Tensor) -> AbstractContextManager:
    """A context in which kernels are launched on the device of `t`."""
    return torch.cuda.device(t.device) if t.is_cuda else nullcontext()
