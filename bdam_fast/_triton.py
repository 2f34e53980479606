"""Parts that the Triton kernels share. Imported only when a Triton kernel is first needed.

Under Triton's interpreter (TRITON_INTERPRET=1 before the first import of triton) kernels run on the CPU, on CPU tensors.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

import torch
import triton
import triton.language as tl
from torch import Tensor

T = TypeVar("T", Tensor, Tensor | None)
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
    """log(1 + e^x) = max(x, 0) + log1p(e^-|x|), which in float32 is linear above 20.

    log1p(e) = 2 artanh(s) with s = e / (2 + e) <= 1/3, by its series to s^15 (1e-8 relative): a logarithm of 1 + e would
    lose what small steps are made of (6e-6 of a step of 0.01, more with the hardware's logarithm).
    """
    e = tl.exp2(-tl.abs(x) * LOG2E)
    s = e / (2.0 + e)
    q = s * s
    series = 1.0 / 11 + q * (1.0 / 13 + q * (1.0 / 15))
    series = 1.0 / 5 + q * (1.0 / 7 + q * (1.0 / 9 + q * series))
    return tl.maximum(x, 0.0) + 2.0 * s * (1.0 + q * (1.0 / 3 + q * series))


@triton.jit
def sigmoid(x):
    """1 / (1 + e^-x)."""
    return 1.0 / (1.0 + tl.exp2(-x * LOG2E))


def parameter(value: T) -> T:
    """A small tensor (A, D, a bias, weights) as a kernel reads it: float32, contiguous."""
    return None if value is None else value.to(torch.float32).contiguous()


def unit_of(*tensors: Tensor) -> int:
    """16 if all strides of the tensors are multiples of it, those of 1 after the first dimension aside; else 1.

    Kernels take lengths and the strides that change with the length or the batch as multiples of a unit. Triton specialises
    none of them, so that it compiles once for each unit and not for each length, and the unit tells the compiler what it
    must know for wide accesses.
    """
    aligned = (s % 16 == 0 or (s == 1 and i > 0) for t in tensors for i, s in enumerate(t.stride()))
    return 16 if all(aligned) else 1


def on_device(t: Tensor) -> AbstractContextManager:
    """A context in which kernels are launched on the device of `t`."""
    return torch.cuda.device(t.device) if t.is_cuda else nullcontext()
