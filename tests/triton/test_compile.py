"""The Triton kernels compiled ahead of time, with no GPU: that they compile, and what they use of sm_90.

The cases stand in tests/support/triton/<op>.py, a list CASES each: calls (`launches.Case`), of which every launch is
compiled as it would run. The default suite compiles all but the slow ones for sm_90 and the main ones for the other targets
too.
"""

import importlib.util

import pytest

if importlib.util.find_spec("triton") is None:
    pytest.skip("triton is not installed", allow_module_level=True)

import triton

from tests.support.triton import causal_conv1d, causal_conv1d_update, hsic, selective_scan, selective_state_update
from tests.support.triton.launches import TARGETS, Case, compile_call, whole_count

# What a kernel uses is the compiler's choice: budgets are of this version, others have to compile the kernels only.
BUDGETED = triton.__version__.startswith("3.7.")
OPERATORS = (selective_scan, selective_state_update, causal_conv1d, causal_conv1d_update, hsic)
CASES: list[Case] = [case for operator in OPERATORS for case in operator.CASES]


def parameters():
    for case in CASES:
        for target in TARGETS:
            slow = case.slow or (target != "sm_90" and not case.main)
            marks = [pytest.mark.slow] if slow else []
            yield pytest.param(case, target, id=f"{case.name}-{target}", marks=marks)


@pytest.mark.parametrize(("case", "target"), list(parameters()))
def test_compiles_within_its_budget(case, target, monkeypatch):
    compiled = compile_call(case.call, TARGETS[target], monkeypatch)
    assert {c.kernel for c in compiled} >= set(case.budget)
    for result in compiled:
        assert result.binary[:4] == b"\x7fELF", result.kernel
        if target == "sm_90" and result.kernel in case.budget and BUDGETED:
            used = (result.registers, result.local)
            assert all(a <= b for a, b in zip(used, case.budget[result.kernel], strict=True)), (
                f"{result.kernel}: {used}"
            )
            if result.kernel in case.whole:
                assert whole_count(result.binary) <= case.whole[result.kernel], result.kernel
