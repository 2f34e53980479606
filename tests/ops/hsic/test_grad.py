"""hsic and PyTorch's machinery: autograd, registration, compilation, autocast, and what must raise."""

import pytest
import torch
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

import bdam_fast
from bdam_fast.ops.hsic import op
from tests.support.operators import BACKENDS, same_bits
from tests.support.operators.hsic import KINDS, pair, run_hsic

pytestmark = pytest.mark.usefixtures("kernels")


def raw_arguments(x, y, kernel="linear", estimator="biased"):
    """The raw forward operator's arguments, with widths for the Gaussian kernel."""
    gaussian = kernel == "rbf"
    widths = (torch.full(x.shape[:1], 1.3, dtype=torch.float32), None) if gaussian else (None, None)
    return (x, y, *widths, gaussian, estimator == "unbiased")


def leaves(*tensors):
    """The same tensors as autograd leaves."""
    return [t.detach().requires_grad_() for t in tensors]


@pytest.mark.parametrize(("kernel", "estimator"), KINDS)
@pytest.mark.parametrize("sizes", [(5, 3, 4), (9, 2, 3)], ids=str)
def test_gradcheck(kernel, estimator, sizes):
    x, y = leaves(*pair(*sizes, batch=(2,), dtype=torch.float64))
    sigma = None if kernel == "linear" else 0.9

    def value(x, y):
        return bdam_fast.hsic(x, y, kernel=kernel, estimator=estimator, sigma_x=sigma, sigma_y=sigma, backend="cpu")

    assert torch.autograd.gradcheck(value, (x, y))


@pytest.mark.parametrize("backend", BACKENDS)
def test_median_width_is_a_constant_in_the_gradient(backend):
    x, y = pair(9, 3, 4)
    sigma = [float(torch.nn.functional.pdist(t).square().median().div(2).sqrt()) for t in (x, y)]
    expected = run_hsic(x, y, kernel="rbf", sigma_x=sigma[0], sigma_y=sigma[1], backend=backend)
    got = run_hsic(x, y, kernel="rbf", backend=backend)
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, rtol=1e-4, atol=1e-6)


def test_reference_has_second_derivatives():
    x, y = leaves(*pair(5, 2, 3, dtype=torch.float64))
    for kernel, estimator in KINDS:
        sigma = None if kernel == "linear" else 0.9

        def value(x, y, kernel=kernel, estimator=estimator, sigma=sigma):
            return bdam_fast.hsic(
                x, y, kernel=kernel, estimator=estimator, sigma_x=sigma, sigma_y=sigma, backend="reference"
            )

        assert torch.autograd.gradgradcheck(value, (x, y))


@pytest.mark.parametrize(("kernel", "estimator"), KINDS)
@pytest.mark.parametrize("sizes", [(6, 20, 30), (40, 3, 18)], ids=str)
def test_opcheck(kernel, estimator, sizes):
    x, y = pair(*sizes, batch=(2,))
    raw = op.OPERATOR.raw()
    args = raw_arguments(x, y, kernel, estimator)
    value, saved = raw(*args)
    assert set(torch.library.opcheck(raw, (*leaves(x, y), *args[2:])).values()) == {"SUCCESS"}
    backward = torch.ops.bdam_fast.hsic_backward.default
    passed = torch.library.opcheck(backward, (torch.randn_like(value), x, y, saved, *args[4:]))
    assert set(passed.values()) == {"SUCCESS"}


def test_only_wanted_gradients_are_returned():
    x, y = pair(8, 5, 6)
    full = run_hsic(x, y, backend="cpu")
    for i, name in enumerate(("dx", "dy")):
        own = [t.detach().requires_grad_(k == i) for k, t in enumerate((x, y))]
        (bdam_fast.hsic(*own, backend="cpu") * 0.5).backward()
        assert own[1 - i].grad is None
        assert same_bits(own[i].grad, full[name])


def test_raw_operator_has_the_same_gradient():
    x, y = pair(8, 5, 6, batch=(3,))
    own, public = leaves(x, y), leaves(x, y)
    value, saved = op.OPERATOR.raw()(*raw_arguments(*own, "rbf"))
    assert not saved.requires_grad
    value.sum().backward()
    bdam_fast.hsic(*public, kernel="rbf", sigma_x=1.3, backend="cpu").sum().backward()
    assert all(same_bits(a.grad, b.grad) for a, b in zip(own, public, strict=True))


def test_one_tensor_twice_and_an_expanded_gradient():
    x = pair(8, 5, 6)[0].requires_grad_()
    grads = [
        torch.autograd.grad(bdam_fast.hsic(x.expand(3, 8, 5), x.expand(3, 8, 5), backend=b).sum(), x)[0]
        for b in BACKENDS
    ]
    torch.testing.assert_close(*grads)


def test_activation_checkpointing():
    x, y = leaves(*pair(8, 5, 6))

    def value(x):
        return bdam_fast.hsic(x, y, kernel="rbf", backend="cpu")

    again = torch.autograd.grad(checkpoint(value, x, use_reentrant=False), x)[0]
    assert torch.equal(torch.autograd.grad(value(x), x)[0], again)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kernel", ["linear", "rbf"])
def test_compile_fullgraph(backend, kernel):
    """One graph, forward and backward, with and without gradients; the second size makes N dynamic."""
    torch._dynamo.reset()
    sigma = torch.tensor(0.9) if kernel == "rbf" else None

    def value(x, y):
        return bdam_fast.hsic(x, y, kernel=kernel, sigma_x=sigma, backend=backend) * 2

    compiled = torch.compile(value, fullgraph=True, backend="aot_eager")
    for samples in (8, 12, 40):
        x, y = leaves(*pair(samples, 9, 20))
        results = []
        for function in (value, compiled):
            result = function(x, y)
            with torch.no_grad():
                results.append([result, *torch.autograd.grad(result, (x, y)), function(x, y)])
        for eager, graph in zip(*results, strict=True):
            torch.testing.assert_close(graph, eager, rtol=1e-6, atol=1e-6)


def test_export():
    class Criterion(torch.nn.Module):
        def forward(self, x, y):
            return bdam_fast.hsic(x, y, kernel="rbf", sigma_x=0.9, backend="cpu")

    samples = torch.export.Dim("samples", min=4, max=512)
    program = torch.export.export(Criterion(), pair(20, 5, 6), dynamic_shapes=({0: samples}, {0: samples}))
    assert "bdam_fast.hsic_forward" in program.graph_module.code
    again = pair(33, 5, 6)
    assert torch.equal(program.module()(*again), Criterion()(*again))


@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast_changes_nothing(backend):
    x, y = leaves(*pair(20, 5, 6))
    plain = bdam_fast.hsic(x, y, backend=backend)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = bdam_fast.hsic(x, y, backend=backend)
    assert same_bits(cast, plain)
    assert all(
        same_bits(*g) for g in zip(torch.autograd.grad(cast, (x, y)), torch.autograd.grad(plain, (x, y)), strict=True)
    )


def test_double_backward_raises():
    x, y = leaves(*pair(8, 5, 6))
    grad = torch.autograd.grad(bdam_fast.hsic(x, y, backend="cpu"), x, create_graph=True)[0]
    with pytest.raises(RuntimeError, match="hsic: double backward is not implemented by the kernels; use backend"):
        grad.sum().backward()


@pytest.mark.parametrize("call", ["public", "raw", "no_grad", "backward"])
def test_forward_mode_raises(call):
    x, y = pair(8, 5, 6, batch=(1,))
    value, saved = op.OPERATOR.raw()(*raw_arguments(x, y))
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(y, torch.ones_like(y) * torch.arange(8)[:, None])
        with pytest.raises(RuntimeError, match="hsic: forward-mode differentiation needs backend"):
            if call == "public":
                bdam_fast.hsic(x, dual, backend="cpu")
            elif call == "no_grad":
                with torch.no_grad():
                    bdam_fast.hsic(x, dual, backend="cpu")
            elif call == "raw":
                op.OPERATOR.raw()(*raw_arguments(x, dual))
            else:
                torch.ops.bdam_fast.hsic_backward(value, x, dual, saved, False, False)
        tangent = forward_ad.unpack_dual(bdam_fast.hsic(x, dual, backend="reference")).tangent
    assert tangent.abs().sum() > 0


@pytest.mark.parametrize("transform", ["vmap", "grad", "jvp", "jacrev"])
@pytest.mark.parametrize("raw", [False, True])
def test_functorch_is_right_or_raises(transform, raw):
    x, y = pair(8, 5, 6, batch=(1,))

    def value(x, backend="cpu"):
        if raw and backend == "cpu":
            return op.OPERATOR.raw()(*raw_arguments(x, y))[0]
        return bdam_fast.hsic(x, y, backend=backend)

    calls = {
        "vmap": lambda f: torch.func.vmap(f)(torch.stack([x, 2 * x])),
        "grad": lambda f: torch.func.grad(lambda a: f(a).sum())(x),
        "jvp": lambda f: torch.func.jvp(f, (x,), (x,))[1],
        "jacrev": lambda f: torch.func.jacrev(f)(x),
    }
    if raw and transform == "vmap":  # the dispatcher's own loop over the batch
        torch.testing.assert_close(calls["vmap"](value), torch.stack([value(x), value(2 * x)]))
    else:
        with pytest.raises(RuntimeError, match=r"hsic: torch.func transforms need backend|forward-mode"):
            calls[transform](value)
    assert calls[transform](lambda a: value(a, "reference")).isfinite().all()
