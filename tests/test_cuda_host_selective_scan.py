"""selective_scan's CUDA kernels, run on the CPU by the emulation, against the float64 reference."""

from typing import Any

import pytest
import torch
from cuda_host import emulated
from helpers import assert_close, leaves, packed_index, run_scan, same_bits, scan_problem
from torch import Tensor

NAMES = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias", "initial_state")


@pytest.fixture(autouse=True)
def poisoned():
    """Every result and workspace is NaN before a kernel runs; shared memory always is."""
    module = emulated.module()
    module.set_poison(True)
    yield module
    module.set_poison(False)


def run_emulated(
    problem: dict[str, Tensor],
    *,
    seed: int = 1,
    delta_softplus: bool = True,
    return_last_state: bool = True,
    reverse: bool = False,
    seq_idx: Tensor | None = None,
) -> dict[str, Tensor]:
    """What `run_scan` gives, from the emulated raw operators."""
    ops = torch.ops.bdam_fast_emulated
    tensors = [*(problem.get(name) for name in NAMES), seq_idx]
    out, last, saved = ops.selective_scan_forward(*tensors, delta_softplus, reverse, return_last_state, True)
    plain, _, nothing = ops.selective_scan_forward(*tensors, delta_softplus, reverse, return_last_state, False)
    assert same_bits(out, plain) and nothing.numel() == 0
    results = {"out": out, "last": last} if return_last_state else {"out": out}
    generator = torch.Generator().manual_seed(seed)
    upstream = [torch.randn(r.shape, generator=generator, dtype=torch.float64).to(r.dtype) for r in results.values()]
    dlast = upstream[1] if return_last_state else None
    grads = ops.selective_scan_backward(upstream[0], dlast, *tensors, saved, delta_softplus, reverse)
    for name, grad in zip(NAMES, grads, strict=True):
        if name in problem:
            assert grad.stride() == torch.empty_like(problem[name]).stride(), name
            results[f"d{name}"] = grad
    return results


def check(problem: dict[str, Tensor], **kwargs: Any) -> dict[str, Tensor]:
    """The emulated kernels against the reference in float64 and in the problem's own dtype."""
    exact = run_scan(leaves(problem, torch.float64), backend="reference", **kwargs)
    same = run_scan(leaves(problem), backend="reference", **kwargs)
    got = run_emulated(problem, **kwargs)
    assert set(got) == set(exact)
    for name, value in got.items():
        assert value.dtype == same[name].dtype, f"{name}: {value.dtype}, expected {same[name].dtype}"
        assert_close(name, value, exact[name], same[name])
    return got


@pytest.mark.parametrize("order", ["bld", "bdl", "strided"])
@pytest.mark.parametrize("length", [0, 1, 2, 7, 8, 9, 31, 32, 33, 65, 77])
def test_lengths(length, order):
    check(scan_problem(1, 8, length, 16, order=order))
