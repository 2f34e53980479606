"""Ahead-of-time compile cases of hsic's Triton kernels: calls, and their budgets on sm_90.

The small kernels' tile of 128 is left out: it takes 10 to 20 s to compile.
"""

from typing import Any

import torch

from bdam_fast import _tuning
from bdam_fast.ops.hsic import triton_impl
from tests.support.operators.hsic import pair
from tests.support.triton.launches import Case


def hsic(
    samples: int, *, gaussian: bool, unbiased: bool = False, sigma: bool = False, features: int = 16, **kwargs: Any
) -> None:
    """A forward and a backward of 64 and 48 features; `sigma`: the widths are given; `features`: as a card's table says."""
    x, y = pair(samples, 64, 48, **{"batch": (2,), **kwargs})
    given = torch.ones(x.shape[0]) if sigma else None
    with _tuning.fixed({"hsic.features": features}):
        value, saved = triton_impl.forward(x, y, given, given, gaussian, unbiased)
        triton_impl.backward(value, x, y, saved.zero_(), gaussian, unbiased)


def case(name: str, samples: int, dtype: torch.dtype, slow: bool = False, **kwargs: Any) -> Case:
    budget = dict.fromkeys(("small_gram_kernel", "small_forward_kernel", "small_backward_kernel"), (255, 0))
    if samples > triton_impl.SMALL:
        budget = {"norms_kernel": (255, 0), "sums_kernel": (255, 0), "gradient_kernel": (255, 48)}
    elif kwargs.get("features", 16) > 16:
        budget["small_backward_kernel"] = (255, 24)
    elif samples > 64:
        budget |= {"small_forward_kernel": (128, 64), "small_backward_kernel": (128, 120)}
    elif samples == 32:
        budget["small_backward_kernel"] = (168, 8)
    label = f"hsic-{name}-{samples}-{str(dtype).removeprefix('torch.')}"
    return Case(label, lambda: hsic(samples, dtype=dtype, **kwargs), budget, slow=slow)


BF16, FP32 = torch.bfloat16, torch.float32
CASES = [
    case("linear", 16, BF16, gaussian=False),
    case("linear-unbiased", 20, FP32, gaussian=False, unbiased=True),
    case("gaussian-unbiased", 32, torch.float16, gaussian=True, unbiased=True, sigma=True),
    case("gaussian", 50, FP32, gaussian=True),
    case("gaussian-32-features", 50, FP32, gaussian=True, features=32),
    case("gaussian-64-features", 64, FP32, gaussian=True, features=64),
    case("gaussian", 100, FP32, slow=True, gaussian=True),
    case("gaussian", 200, FP32, gaussian=True),
    case("gaussian-unbiased", 200, BF16, gaussian=True, unbiased=True),
]
