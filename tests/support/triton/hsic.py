"""Ahead-of-time compile cases of hsic's Triton kernels: (name, kernel, signature, constexprs, attributes).

A case has no number of warps, so that four are compiled: not the 8 and 16 with which tiles of 64 and 128 are launched.
The small kernels' tile of 128 is left out, since four warps do not hold it and take 10 to 20 s to compile.
"""

from typing import Any

from bdam_fast.ops.hsic.triton_impl import BLOCK, BLOCK_K, RADIX
from bdam_fast.ops.hsic.triton_kernels import small_backward_kernel, small_forward_kernel
from bdam_fast.ops.hsic.triton_kernels_tiles import count_kernel, gradient_kernel, norms_kernel, sums_kernel

INPUTS = ("x_ptr", "y_ptr", "dx_ptr", "dy_ptr")
FLOATS = ("scale", "cross", "product", "half_cross")
INTEGERS = ("prefix_ptr", "counts_ptr")


def case(name: str, kernel: Any, dtype: str, absent: tuple[str, ...] = (), **flags: Any) -> tuple[Any, ...]:
    """Features are adjacent; sizes are not taken to be multiples of 16, pointers and strides are."""
    flags = {"BLOCK": BLOCK, "BLOCK_K": BLOCK_K, **flags}
    constexprs: dict[str, Any] = {n: v for n, v in flags.items() if n in kernel.arg_names}
    constexprs |= {n: None for n in absent}
    constexprs |= {n: 1 for n in kernel.arg_names if n.endswith("_d")}
    signature, attrs = {}, {}
    for i, argument in enumerate(kernel.arg_names):
        if argument in constexprs:
            signature[argument] = "constexpr"
        elif argument.endswith("_ptr"):
            signature[argument] = "*i32" if argument in INTEGERS else f"*{dtype if argument in INPUTS else 'fp32'}"
        else:
            signature[argument] = "fp32" if argument in FLOATS else "i32"
        if argument not in constexprs and argument.endswith(("_ptr", "_n", "_b")):
            attrs[(i,)] = [["tt.divisibility", 16]]
    return name, kernel, signature, constexprs, attrs


SIGMAS = ("sigma_x_ptr", "sigma_y_ptr")
CASES = [
    case(
        f"hsic-{which}-{label}-{block}-{dtype}",
        kernel,
        dtype,
        absent if which == "forward" else (),
        BLOCK=block,
        **flags,
    )
    for which, kernel in (("forward", small_forward_kernel), ("backward", small_backward_kernel))
    for label, dtype, block, absent, flags in (
        ("linear", "bf16", 16, SIGMAS, {"GAUSSIAN": False, "UNBIASED": False}),
        ("linear", "fp32", 32, SIGMAS, {"GAUSSIAN": False, "UNBIASED": True}),
        ("gaussian", "fp16", 32, (), {"GAUSSIAN": True, "UNBIASED": True}),
        ("gaussian", "fp32", 64, SIGMAS, {"GAUSSIAN": True, "UNBIASED": False}),
    )
]
CASES += [case(f"hsic-count-{bins}", count_kernel, "fp32", LOW=low, BINS=bins) for low, bins in RADIX[:2]]
CASES += [
    case("hsic-norms", norms_kernel, "fp32"),
    case("hsic-sums", sums_kernel, "fp32", UNBIASED=False),
    case("hsic-sums-unbiased", sums_kernel, "fp32", UNBIASED=True),
    case("hsic-gradient", gradient_kernel, "fp32", UNBIASED=False),
    case("hsic-gradient-unbiased", gradient_kernel, "fp32", UNBIASED=True),
]
