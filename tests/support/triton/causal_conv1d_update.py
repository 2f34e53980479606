"""Ahead-of-time compile cases of causal_conv1d_update's Triton kernel: (name, kernel, signature, constexprs, attributes)."""

from typing import Any

from bdam_fast.ops.causal_conv1d_update.triton_kernels import update_kernel


def update_case(dtype: str, order: str, width: int, bias: bool) -> tuple[Any, ...]:
    """One step; the state's entries are adjacent, or its channels."""
    name = f"conv-update-{dtype}-{order}-{width}"
    constexprs: dict[str, Any] = {
        "WIDTH": width,
        "SILU": True,
        "BLOCK_S": 4,
        "BLOCK_D": 128,
        "L": 1,
        "x_d": 1,
        "out_d": 1,
    }
    constexprs |= {"state_d" if order == "bld" else "state_s": 1} | ({} if bias else {"bias_ptr": None})
    types = {
        "x_ptr": f"*{dtype}",
        "out_ptr": f"*{dtype}",
        "state_ptr": "*fp32",
        "weight_ptr": "*fp32",
        "bias_ptr": "*fp32",
    }
    signature = {n: "constexpr" if n in constexprs else types.get(n, "i32") for n in update_kernel.arg_names}
    aligned = [i for i, (n, kind) in enumerate(signature.items()) if kind != "constexpr" and n not in ("S", "state_s")]
    return name, update_kernel, signature, constexprs, {(i,): [["tt.divisibility", 16]] for i in aligned}


CASES = [
    update_case("bf16", "bdl", 4, True),
    update_case("fp32", "bld", 4, False),
    update_case("fp16", "bdl", 8, True),
]
