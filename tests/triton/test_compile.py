"""The Triton kernels compiled ahead of time, with no GPU: that they compile, and what they use of sm_90.

The cases stand in tests/support/triton/<op>.py, a list CASES each: calls (`launches.Case`), of which every launch is
compiled as it would run, or explicit kernels (name, kernel, signature, constexprs, attributes). The default suite
compiles all but the slow ones for sm_90 and the main ones for the other targets too.
"""

import importlib.util

import pytest

if importlib.util.find_spec("triton") is None:
    pytest.skip("triton is not installed", allow_module_level=True)

import triton
from triton.compiler import ASTSource

from tests.support.triton import causal_conv1d, causal_conv1d_update, hsic, selective_scan, selective_state_update
from tests.support.triton.launches import TARGETS, Case, compile_call, read

# What a kernel uses is the compiler's choice: budgets are of this version, others have to compile the kernels only.
BUDGETED = triton.__version__.startswith("3.7.")
OPERATORS = (selective_scan, selective_state_update, causal_conv1d, causal_conv1d_update, hsic)
CASES = [case for operator in OPERATORS for case in operator.CASES]


def parameters():
    for case in CASES:
        named = isinstance(case, Case)
        for target in TARGETS:
            slow = (named and case.slow) or (target != "sm_90" and not (named and case.main))
            marks = [pytest.mark.slow] if slow else []
            yield pytest.param(case, target, id=f"{case.name if named else case[0]}-{target}", marks=marks)


@pytest.mark.parametrize(("case", "target"), list(parameters()))
def test_compiles_within_its_budget(case, target, monkeypatch):
    if isinstance(case, Case):
        compiled = compile_call(case.call, TARGETS[target], monkeypatch)
        budget = case.budget
        assert {c.kernel for c in compiled} >= set(budget)
    else:
        name, kernel, signature, constexprs, attributes = case
        source = ASTSource(kernel, signature, constexprs, attributes)
        compiled = [read(name, triton.compile(source, target=TARGETS[target]), TARGETS[target])]
        budget = {}
    assert compiled
    for result in compiled:
        assert result.binary[:4] == b"\x7fELF", result.kernel
        if target == "sm_90" and result.kernel in budget and BUDGETED:
            used = (result.registers, result.local)
            assert all(a <= b for a, b in zip(used, budget[result.kernel], strict=True)), f"{result.kernel}: {used}"
