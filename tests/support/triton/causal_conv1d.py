"""Ahead-of-time compile cases of causal_conv1d's Triton kernels: (name, kernel, signature, constexprs, attributes)."""

from typing import Any

from bdam_fast.ops.causal_conv1d.triton_kernels import backward_kernel, forward_kernel

PARAMETERS = {
    "weight_ptr": "*fp32",
    "bias_ptr": "*fp32",
    "initial_ptr": "*fp32",
    "dfinal_ptr": "*fp32",
    "final_ptr": "*fp32",
}


def case(
    name: str, kernel: Any, dtype: str, absent: tuple[str, ...], order: str, width: int, **flags: bool
) -> tuple[Any, ...]:
    """`absent` pointers are None; in the order given, one stride of every tensor is 1 and known at compile time."""
    big = ("x_ptr", "out_ptr", "dout_ptr", "dx_ptr")
    others = {"partial_ptr": "*fp32", "dinitial_ptr": "*fp32", "plan_ptr": "*i32"}
    adjacent = "_d" if order == "bld" else "_l"
    tile = 512 if kernel is backward_kernel and (width > 4 or "plan_ptr" not in absent) else 1024
    blocks = {"BLOCK_L": tile // 64, "BLOCK_D": 64} if order == "bld" else {"BLOCK_L": 128, "BLOCK_D": tile // 128}
    constexprs: dict[str, Any] = {"WIDTH": width, "SILU": True, "REVERSE": False, **blocks, **flags}
    constexprs |= {n: None for n in absent}
    constexprs |= {n: 1 for n in kernel.arg_names if n.endswith(adjacent) and n not in ("span",)}
    signature, attrs = {}, {}
    for i, argument in enumerate(kernel.arg_names):
        if argument in constexprs:
            signature[argument] = "constexpr"
        elif argument.endswith("_ptr"):
            signature[argument] = f"*{dtype}" if argument in big else (PARAMETERS | others)[argument]
        else:
            signature[argument] = "i32"
        if signature[argument] != "constexpr" and argument != "chunks" and (argument != "L" or order == "bdl"):
            attrs[(i,)] = [["tt.divisibility", 16]]
    return name, kernel, signature, constexprs, attrs


ALL: tuple[str, ...] = ("plan_ptr",)
PLAIN = ("plan_ptr", "initial_ptr", "final_ptr", "dinitial_ptr", "dfinal_ptr")


def absent_of(kernel: Any, names: tuple[str, ...]) -> tuple[str, ...]:
    """The pointers among `names` that the kernel has."""
    return tuple(n for n in names if n in kernel.arg_names)


CASES = [
    case(f"{which}-{label}-{dtype}-{order}-{width}", kernel, dtype, absent_of(kernel, absent), order, width, **flags)
    for which, kernel in (("forward", forward_kernel), ("backward", backward_kernel))
    for label, dtype, absent, order, width, flags in (
        ("plain", "bf16", PLAIN, "bld", 4, {}),
        ("plain", "fp32", PLAIN, "bdl", 4, {}),
        ("states", "fp16", ALL, "bld", 8, {"REVERSE": True}),
        ("packed", "bf16", (), "bld", 4, {}),
        ("packed", "fp32", (), "bdl", 3, {"SILU": False}),
        ("states", "bf16", (*ALL, "bias_ptr"), "bdl", 1, {"REVERSE": True}),
    )
]
