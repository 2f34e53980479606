"""What every further backend must keep when it is called through the public functions; run for each on its own."""

import torch

import bdam_fast
from tests.support.operators import assert_close, leaves, run_scan, scan_problem

SCAN = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias", "initial_state")


def raw_arguments(op: str) -> tuple:
    """Arguments of a raw forward operator that all require a gradient."""
    if op == "hsic":
        return (*(torch.randn(2, 6, 3, requires_grad=True) for _ in range(2)), None, None, True, False)
    if op == "causal_conv1d":
        tensors = [torch.randn(s, requires_grad=True) for s in ((2, 3, 5), (3, 4), (3,), (2, 3, 3))]
        return (*tensors, None, True, False, True)
    problem = leaves(scan_problem(1, 3, 5, 2))
    return (*(problem[name] for name in SCAN), None, True, False, True, True)


def check_registration(op, backend: str) -> None:
    """PyTorch's own checks of an operator: schema, autograd, fake tensors, tracing."""
    passed = torch.library.opcheck(op.OPERATOR.raw(backend), raw_arguments(op.OP))
    assert set(passed.values()) == {"SUCCESS"}


def check_gradients(backend: str) -> None:
    """The public scan against the float64 reference, and that this backend computed it."""
    problem = scan_problem(2, 5, 9, 4)
    bdam_fast.reset_call_counts()
    got = run_scan(leaves(problem), backend=backend)
    exact = run_scan(leaves(problem, torch.float64), backend="reference")
    for name, value in got.items():
        assert_close(name, value, exact[name])
    counts = bdam_fast.call_counts()
    assert counts[f"selective_scan.{backend}.forward"] == counts[f"selective_scan.{backend}.backward"] == 1


def check_tracing(backend: str) -> None:
    """One graph for several lengths, with the eager results and gradients."""

    def model(x, weight, A, B):
        y = bdam_fast.causal_conv1d(x, weight, activation="silu", backend=backend)
        return bdam_fast.selective_scan(y, y, A, B, B, delta_softplus=True, backend=backend)

    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="aot_eager")
    weight, A = torch.randn(3, 4), -torch.ones(3, 2)
    for length in (5, 7):
        x, B = torch.randn(2, 3, length, requires_grad=True), torch.randn(2, 2, length)
        (expected,) = torch.autograd.grad(model(x, weight, A, B).sum(), x)
        (got,) = torch.autograd.grad(compiled(x, weight, A, B).sum(), x)
        torch.testing.assert_close(got, expected)


def check_updates(backend: str) -> None:
    """The updates write the same states and results with and without a gradient."""
    A, B = -torch.ones(3, 2), torch.randn(2, 2)
    weight, x = torch.randn(3, 4), torch.randn(2, 3)
    results = []
    for needs_grad in (False, True):
        state, window = torch.zeros(2, 3, 2), torch.zeros(2, 3, 3)
        step = x.clone().requires_grad_(needs_grad)
        y = bdam_fast.causal_conv1d_update(step, window, weight, backend=backend)
        out = bdam_fast.selective_state_update(state, y, y, A, B, B, backend=backend)
        assert out.requires_grad == needs_grad
        results.append([value.detach() for value in (out, state, window)])
    for plain, recorded in zip(*results, strict=True):
        torch.testing.assert_close(plain, recorded)
    assert results[0][1].abs().sum() > 0 and results[0][2].abs().sum() > 0
