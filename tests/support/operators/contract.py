"""Promises that every further backend keeps when called through the public functions; run for each on its own."""

import torch

import bdam_fast
from tests.support.operators import assert_close, leaves
from tests.support.operators.kernels import Kernel
from tests.support.operators.selective_scan import run_scan, scan_problem


def check_registration(kernel: Kernel, backend: str) -> None:
    """PyTorch's own checks of an operator: schema, autograd, fake tensors, tracing."""
    passed = torch.library.opcheck(kernel.raw(backend), kernel.raw_arguments(leaves(kernel.batched(5))))
    assert set(passed.values()) == {"SUCCESS"}


class PublicTests:
    """Tests of a backend, which a module of its own inherits."""

    backend: str

    def test_gradients(self):
        """The public scan against the float64 reference, and that this backend computed it."""
        problem = scan_problem(2, 5, 9, 4)
        bdam_fast.reset_call_counts()
        got = run_scan(leaves(problem), backend=self.backend)
        exact = run_scan(leaves(problem, torch.float64), backend="reference")
        for name, value in got.items():
            assert_close(name, value, exact[name])
        counts = bdam_fast.call_counts()
        assert [counts[f"selective_scan.{self.backend}.{way}"] for way in ("forward", "backward")] == [1, 1]

    def test_tracing(self):
        """One graph for several lengths, with the eager results and gradients."""

        def model(x, weight, A, B):
            y = bdam_fast.causal_conv1d(x, weight, activation="silu", backend=self.backend)
            return bdam_fast.selective_scan(y, y, A, B, B, delta_softplus=True, backend=self.backend)

        compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="aot_eager")
        weight, A = torch.randn(3, 4), -torch.ones(3, 2)
        for length in (5, 7):
            x, B = torch.randn(2, 3, length, requires_grad=True), torch.randn(2, 2, length)
            (expected,) = torch.autograd.grad(model(x, weight, A, B).sum(), x)
            (got,) = torch.autograd.grad(compiled(x, weight, A, B).sum(), x)
            torch.testing.assert_close(got, expected)

    def test_updates(self):
        """The updates write the same states and results with and without a gradient."""
        A, B = -torch.ones(3, 2), torch.randn(2, 2)
        weight, x = torch.randn(3, 4), torch.randn(2, 3)
        results = []
        for needs_grad in (False, True):
            state, window = torch.zeros(2, 3, 2), torch.zeros(2, 3, 3)
            step = x.clone().requires_grad_(needs_grad)
            y = bdam_fast.causal_conv1d_update(step, window, weight, backend=self.backend)
            out = bdam_fast.selective_state_update(state, y, y, A, B, B, backend=self.backend)
            assert out.requires_grad == needs_grad
            results.append([value.detach() for value in (out, state, window)])
        for plain, recorded in zip(*results, strict=True):
            torch.testing.assert_close(plain, recorded)
        assert results[0][1].abs().sum() > 0 and results[0][2].abs().sum() > 0
