"""FLOP formulas against the reference implementations' own arithmetic, counted operation by operation."""

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import bdam_fast
from bdam_fast import _native
from bdam_fast.flops import register_flop_formulas
from tests.support.operators.selective_scan import scan_problem

pytestmark = pytest.mark.skipif(not _native.available(), reason="the compiled extension is not built")
aten = torch.ops.aten
ELEMENTWISE = {aten.add, aten.sub, aten.mul, aten.div, aten.exp, aten.softplus, aten.silu, aten.square}


class Arithmetic(TorchDispatchMode):
    """Counts one for each element that an elementwise operation makes or a sum reads."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func.overloadpacket in ELEMENTWISE:
            self.count += out.numel()
        elif func.overloadpacket is aten.sum:
            self.count += args[0].numel()
        return out


def counted(call) -> int:
    register_flop_formulas()
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def arithmetic(call) -> int:
    with torch.no_grad(), Arithmetic() as mode:
        call()
    return mode.count


@pytest.mark.parametrize("absent", [(), ("D",), ("z",), ("delta_bias",), ("D", "z", "delta_bias")])
@pytest.mark.parametrize("softplus", [False, True])
def test_scan_counts_what_its_reference_computes(absent, softplus):
    problem = scan_problem(2, 6, 9, 4, absent=absent)
    run = {"delta_softplus": softplus}
    expected = arithmetic(lambda: bdam_fast.selective_scan(**problem, **run, backend="reference"))
    assert counted(lambda: bdam_fast.selective_scan(**problem, **run, backend="cpu")) == expected > 0


@pytest.mark.parametrize("activation", [None, "silu"])
@pytest.mark.parametrize("width", [1, 4])
def test_convolution_counts_what_its_reference_computes(activation, width):
    x, weight, bias = torch.randn(2, 6, 9), torch.randn(6, width), torch.randn(6)
    expected = arithmetic(lambda: bdam_fast.causal_conv1d(x, weight, bias, activation, backend="reference"))
    assert counted(lambda: bdam_fast.causal_conv1d(x, weight, bias, activation, backend="cpu")) == expected > 0


@pytest.mark.parametrize("softplus", [False, True])
def test_updates_count_what_their_references_compute(softplus):
    B, D, N, W = 2, 6, 4, 3
    step = (
        torch.zeros(B, D, N),
        *(torch.randn(*s) for s in ((B, D), (B, D), (D, N), (B, N), (B, N), (D,), (B, D), (D,))),
    )
    expected = arithmetic(lambda: bdam_fast.selective_state_update(*step, softplus, backend="reference"))
    with torch.no_grad():
        assert counted(lambda: bdam_fast.selective_state_update(*step, softplus, backend="cpu")) == expected > 0
    conv = torch.randn(B, D, 2), torch.zeros(B, D, W - 1), torch.randn(D, W), torch.randn(D), "silu"
    expected = arithmetic(lambda: bdam_fast.causal_conv1d_update(*conv, backend="reference"))
    with torch.no_grad():
        assert counted(lambda: bdam_fast.causal_conv1d_update(*conv, backend="cpu")) == expected > 0


def test_backward_of_scan_and_convolution_by_hand():
    B, D, L, N, W = 2, 6, 9, 4, 3
    problem = scan_problem(B, D, L, N)
    leaves = [value.detach().requires_grad_() for value in problem.values()]
    problem = dict(zip(problem, leaves, strict=True))
    out = bdam_fast.selective_scan(**problem, delta_softplus=True, backend="cpu")
    forward = B * D * L * (7 * N + 1 + 1 + 1 + 2 + 2)
    gradient = B * D * L * ((2 + 3 + 2 + 2 + 1 + 1 + 2 + 2) * N + 3 + 2 + 1 + 4 + 4)
    assert counted(lambda: torch.autograd.grad(out.sum(), leaves)) == forward + gradient
    x, weight, bias = (torch.randn(*s).requires_grad_() for s in ((B, D, L), (D, W), (D,)))
    out = bdam_fast.causal_conv1d(x, weight, bias, "silu", backend="cpu")
    assert counted(lambda: torch.autograd.grad(out.sum(), (x, weight, bias))) == B * D * L * (2 * W + 2 + 4 * W + 1)


@pytest.mark.parametrize(("samples", "width_x", "width_y"), [(8, 20, 24), (40, 5, 6)])
def test_linear_hsic_counts_the_products_of_the_cheaper_form(samples, width_x, width_y):
    x, y = torch.randn(samples, width_x).requires_grad_(), torch.randn(samples, width_y).requires_grad_()
    x_c, y_c = (t.detach() - t.detach().mean(0) for t in (x, y))
    forms = [lambda: x_c.T @ y_c, lambda: (x_c @ x_c.T, y_c @ y_c.T)]
    assert counted(lambda: bdam_fast.hsic(x, y, backend="cpu")) == min(counted(form) for form in forms)
    value = bdam_fast.hsic(x, y, backend="cpu")
    m = x_c.T @ y_c
    by_features = counted(lambda: (y_c @ m.T, x_c @ m))
    by_samples = counted(lambda: (y_c @ y_c.T) @ x_c) / 2 + counted(lambda: (x_c @ x_c.T) @ y_c) / 2
    cheaper = by_features if samples > width_x else by_samples
    assert counted(lambda: torch.autograd.grad(value, (x, y))) == cheaper


def test_gaussian_hsic_by_hand():
    x, y = torch.randn(7, 3).requires_grad_(), torch.randn(7, 5).requires_grad_()
    value = bdam_fast.hsic(x, y, kernel="rbf", backend="cpu")
    forward = 7 * 7 * (3 * (3 + 5) + 6)
    assert counted(lambda: bdam_fast.hsic(x, y, kernel="rbf", backend="cpu")) == forward
    assert counted(lambda: torch.autograd.grad(value, (x, y))) == forward + 7 * 7 * 3 * (3 + 5)


def test_registering_twice_is_free_and_padding_counts():
    register_flop_formulas()
    register_flop_formulas()
    problem = scan_problem(2, 6, 9, 4)
    padded = torch.full((2, 9), -1, dtype=torch.int32)
    assert counted(lambda: bdam_fast.selective_scan(**problem, seq_idx=padded, backend="cpu")) == counted(
        lambda: bdam_fast.selective_scan(**problem, backend="cpu")
    )
    assert counted(lambda: bdam_fast.selective_scan(**problem, backend="cpu")) % math.prod(problem["u"].shape) == 0


def test_without_the_extension_registering_is_an_error(monkeypatch):
    monkeypatch.setattr(_native, "_attempt", lambda: (None, "gone"))
    with pytest.raises(RuntimeError, match="compiled extension is not available"):
        register_flop_formulas()
