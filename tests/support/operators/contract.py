"""Promises that every further backend keeps when called through the public functions; run for each on its own."""

import torch

import bdam_fast
from bdam_fast import compat
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

    def test_padding_slots(self):
        """States chosen by index: padding writes nothing and gives zero, like single updates for the others."""
        x, weight, pool = torch.randn(3, 3), torch.randn(3, 4), torch.randn(5, 3, 3)
        rows, expected = torch.tensor([4, -1, 0], dtype=torch.int32), pool.clone()
        singles = [expected[row : row + 1] for row in (4, 0)]
        outs = [
            bdam_fast.causal_conv1d_update(x[i : i + 1], state, weight, backend=self.backend)
            for i, state in zip((0, 2), singles, strict=True)
        ]
        out = compat.causal_conv1d_update(x, pool, weight, conv_state_indices=rows, backend=self.backend)
        torch.testing.assert_close(out, torch.cat([outs[0], torch.zeros_like(x[:1]), outs[1]]))
        torch.testing.assert_close(pool, expected)
        states, A, B = torch.randn(5, 3, 2), -torch.ones(3, 2), torch.randn(3, 2)
        before = states.clone()
        y = compat.selective_state_update(states, x, x, A, B, B, state_batch_indices=rows, backend=self.backend)
        changed = (states != before).flatten(1).any(1)
        assert changed.tolist() == [True, False, False, False, True] and y[1].abs().sum() == 0

    def test_A_at_the_end_of_float32(self):
        """A step of dt = 0 leaves the state alone."""
        u, A, B = torch.randn(2, 3, 5), torch.full((3, 2), -3.4e38), torch.randn(2, 2, 5)
        state = torch.randn(2, 3, 2)
        options = {"initial_state": state, "return_last_state": True, "backend": self.backend}
        out, last = bdam_fast.selective_scan(u, torch.zeros_like(u), A, B, B, **options)
        assert out.isfinite().all()
        torch.testing.assert_close(last, state)
        kept = state.clone()
        bdam_fast.selective_state_update(kept, u[..., 0], 0 * u[..., 0], A, B[..., 0], B[..., 0], backend=self.backend)
        torch.testing.assert_close(kept, state)

    def test_gradients_of_gradients(self):
        """The reference's, since there is no kernel for them."""
        u, A, B = torch.randn(2, 3, 5), -torch.rand(3, 2), torch.randn(2, 2, 5)
        results = []
        for backend in (self.backend, "reference"):
            own = u.clone().requires_grad_()
            out = bdam_fast.selective_scan(own, own, A, B, B, delta_softplus=True, backend=backend)
            (grad,) = torch.autograd.grad(out.square().sum(), own, create_graph=True)
            results.append(torch.autograd.grad(grad.square().sum(), own)[0])
        torch.testing.assert_close(*results, rtol=1e-3, atol=1e-3)
