"""hsic against the textbook formula in float64, hand-computed values, and PyTorch's machinery."""

import pytest
import torch
from helpers import TOLERANCE, assert_close, leaves, same_bits
from torch.autograd import forward_ad

import bdam_fast
from bdam_fast.ops.hsic import op

pytestmark = pytest.mark.usefixtures("kernels")
KINDS = [(k, e) for k in ("linear", "rbf") for e in ("biased", "unbiased")]


def problem(samples=20, widths=(7, 5), batch=(), dtype=torch.float32):
    """Two dependent samples; the common offset must not matter."""
    x = torch.randn(*batch, samples, widths[0], dtype=torch.float64)
    y = torch.randn(*batch, samples, widths[1], dtype=torch.float64)
    y[..., 0] += x[..., 0]
    return {"x": (x + 1).to(dtype), "y": (y - 2).to(dtype)}


def run(tensors, **kwargs):
    """Value, and both gradients of a weighted sum over the batch."""
    value = bdam_fast.hsic(**tensors, **kwargs)
    upstream = torch.linspace(0.5, 1.5, value.numel()).reshape(value.shape).to(value.dtype)
    dx, dy = torch.autograd.grad(value, [tensors["x"], tensors["y"]], upstream)
    return {"value": value.detach(), "dx": dx, "dy": dy}


def check(tensors, **kwargs):
    """Kernel against the reference in float64 and in the problem's own dtype."""
    exact = run(leaves(tensors, torch.float64), backend="reference", **kwargs)
    same = run(leaves(tensors), backend="reference", **kwargs)
    got = run(leaves(tensors), backend="cpu", **kwargs)
    for name, value in got.items():
        assert value.dtype == same[name].dtype
        expected = exact[name]
        if kwargs.get("kernel") == "rbf" and expected.numel():
            # What cancels are sums of kernel values near 1, divided by (N - 1)^2; the difference may be 1000 times smaller.
            size = 1.0 if name == "value" else 1 / (tensors["x"].shape[-2] - 1) ** 2
            error, allowed = (value.double() - expected).abs().max().item(), TOLERANCE[value.dtype] * size
            allowed += 2 * (same[name].double() - expected).abs().max().item()
            assert error <= allowed, f"{name}: error {error:.2e}, allowed {allowed:.2e}"
        else:
            assert_close(name, value, expected, same[name])
    return got


def textbook(x, y, unbiased):
    """Linear HSIC as printed, float64."""
    n = len(x)
    k, m = x @ x.T, y @ y.T
    if not unbiased:
        h = torch.eye(n, dtype=x.dtype) - 1 / n
        return torch.trace(k @ h @ m @ h) / (n - 1) ** 2
    k, m = k.clone().fill_diagonal_(0), m.clone().fill_diagonal_(0)
    cross = k.sum() * m.sum() / ((n - 1) * (n - 2)) - 2 * (k.sum(0) @ m.sum(0)) / (n - 2)
    return (torch.trace(k @ m) + cross) / (n * (n - 3))


@pytest.mark.parametrize(("kernel", "estimator"), KINDS)
@pytest.mark.parametrize("samples", [4, 5, 15, 16, 17, 33, 64, 100])
def test_sample_counts(isa, samples, kernel, estimator):
    sigma = {} if kernel == "linear" else {"sigma_x": 2.0, "sigma_y": 1.5}
    check(problem(samples, (9, 6)), kernel=kernel, estimator=estimator, **sigma)


@pytest.mark.parametrize(("kernel", "estimator"), KINDS)
@pytest.mark.parametrize("widths", [(1, 1), (3, 40), (64, 64), (130, 17)])
def test_widths(kernel, estimator, widths):
    check(problem(24, widths), kernel=kernel, estimator=estimator)


@pytest.mark.parametrize(("kernel", "estimator"), KINDS)
@pytest.mark.parametrize("batch", [(0,), (3,), (2, 3)])
def test_batches(kernel, estimator, batch):
    got = check(problem(12, (6, 5), batch), kernel=kernel, estimator=estimator)
    assert got["value"].shape == batch


@pytest.mark.parametrize("kernel", ["linear", "rbf"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_dtypes(kernel, dtype):
    got = check(problem(20, dtype=dtype), kernel=kernel)
    assert got["value"].dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("unbiased", [False, True])
def test_agrees_with_the_printed_formula(backend, unbiased):
    p = problem(11, dtype=torch.float64)
    value = bdam_fast.hsic(**p, estimator="unbiased" if unbiased else "biased", backend=backend)
    torch.testing.assert_close(value, textbook(p["x"], p["y"], unbiased))


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_by_hand(backend):
    x = torch.tensor([[0.0], [2.0], [4.0]])
    # Centred x is (-2, 0, 2), x^T x = 8, so HSIC(x, x) = 64 / 2^2.
    assert bdam_fast.hsic(x, x, backend=backend).item() == pytest.approx(16.0)
    # Squared distances 4, 4, 16: the median is 4, sigma^2 is 2.
    k = torch.exp(-torch.tensor([[0.0, 4, 16], [4, 0, 4], [16, 4, 0]]) / 4).double()
    h = torch.eye(3, dtype=torch.float64) - 1 / 3
    expected = torch.trace(k @ h @ k @ h).item() / 4
    assert bdam_fast.hsic(x, x, kernel="rbf", backend=backend).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kernel", ["linear", "rbf"])
def test_a_constant_sample_is_independent_of_everything(kernel):
    p = problem(16)
    p["x"] = torch.ones_like(p["x"])
    assert abs(bdam_fast.hsic(**p, kernel=kernel, backend="cpu").item()) < 1e-10


def test_width_as_a_tensor_for_each_problem():
    p = problem(10, batch=(3,))
    widths = torch.tensor([0.5, 1.0, 2.0])
    together = bdam_fast.hsic(**p, kernel="rbf", sigma_x=widths, sigma_y=1.0, backend="cpu")
    for i, width in enumerate(widths.tolist()):
        alone = bdam_fast.hsic(p["x"][i], p["y"][i], kernel="rbf", sigma_x=width, sigma_y=1.0, backend="cpu")
        torch.testing.assert_close(together[i], alone)


@pytest.mark.parametrize(("kernel", "estimator"), KINDS)
def test_same_bits_at_any_number_of_threads(kernel, estimator):
    p = leaves(problem(150, (40, 33), (3,)))
    results = []
    for threads in (1, 2, 3, 1):
        torch.set_num_threads(threads)
        results.append(run(p, kernel=kernel, estimator=estimator, backend="cpu"))
    assert all(same_bits(results[0][name], r[name]) for r in results[1:] for name in r)


def test_strided_inputs():
    whole = torch.randn(40, 24)
    p = {"x": whole[::2, 1::3], "y": whole[1::2].T[:20, :20].T}
    check(p)


@pytest.mark.parametrize(("kernel", "estimator"), KINDS)
def test_gradcheck(kernel, estimator):
    p = leaves(problem(6, (3, 2), (2,), torch.float64))
    # The median is a constant in the gradient, so gradcheck needs given widths.
    options = {"kernel": kernel, "estimator": estimator, "backend": "cpu"}
    options |= {} if kernel == "linear" else {"sigma_x": 1.0, "sigma_y": 0.7}
    assert torch.autograd.gradcheck(lambda x, y: bdam_fast.hsic(x, y, **options), list(p.values()))


@pytest.mark.parametrize("gaussian", [False, True])
def test_opcheck(gaussian):
    p = leaves(problem(6, (3, 2), (2,)))
    args = (p["x"], p["y"], None, None, gaussian, False)
    assert set(torch.library.opcheck(op._raw(), args).values()) == {"SUCCESS"}


@pytest.mark.parametrize("kernel", ["linear", "rbf"])
def test_compiles_whole_with_gradients(kernel):
    p = leaves(problem(12, (6, 5), (2,)))
    compiled = torch.compile(bdam_fast.hsic, fullgraph=True, backend="aot_eager")
    results = [run_compiled(f, p, kernel) for f in (compiled, bdam_fast.hsic)]
    assert all(same_bits(a, b) for a, b in zip(*results, strict=True))


def run_compiled(function, p, kernel):
    """Value and gradients through `function`."""
    value = function(**p, kernel=kernel, backend="cpu")
    return [value.detach(), *torch.autograd.grad(value.sum(), list(p.values()))]


def test_what_is_not_supported_raises():
    p = leaves(problem(8))
    (grad,) = torch.autograd.grad(bdam_fast.hsic(**p, backend="cpu"), p["x"], create_graph=True)
    with pytest.raises(RuntimeError, match="hsic: double backward is not implemented"):
        torch.autograd.grad(grad.sum(), p["y"])
    with forward_ad.dual_level(), pytest.raises(RuntimeError, match="forward-mode differentiation needs"):
        bdam_fast.hsic(forward_ad.make_dual(p["x"].detach(), p["x"].detach()), p["y"].detach(), backend="cpu")
    with pytest.raises(RuntimeError, match="torch.func transforms need"):
        torch.func.vmap(lambda x: bdam_fast.hsic(x, x, backend="cpu"))(torch.randn(2, 8, 3))
    width = torch.ones(2, requires_grad=True)
    with pytest.raises(RuntimeError, match="hsic: a width is a constant and has no gradient"):
        torch.ops.bdam_fast.hsic_forward(torch.randn(2, 8, 3), torch.randn(2, 8, 3), width, None, True, False)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"x": 1.0}, TypeError, "hsic: x must be a"),
        ({"x": torch.ones(8)}, ValueError, r"hsic: x must have shape \(..., N, Dx\), got \(8,\)"),
        ({"x": torch.ones(8, 0)}, ValueError, r"hsic: x must have a feature, got shape \(8, 0\)"),
        ({"y": torch.ones(8, 5).double()}, TypeError, "hsic: y must be torch.float32 like x, got torch.float64"),
        ({"y": torch.ones(7, 5)}, ValueError, r"hsic: y must have shape \(8, Dy\) like x, got \(7, 5\)"),
        ({"kernel": "cosine"}, ValueError, "hsic: kernel must be one of linear, rbf, got 'cosine'"),
        ({"estimator": "best"}, ValueError, "hsic: estimator must be one of biased, unbiased, got 'best'"),
        (
            {"x": torch.ones(1, 2), "y": torch.ones(1, 2)},
            ValueError,
            "the biased estimator needs at least 2 samples, got 1",
        ),
        ({"sigma_x": 1.0}, ValueError, 'hsic: sigma_x is for kernel="rbf" only, got it with kernel="linear"'),
        ({"kernel": "rbf", "sigma_x": -1.0}, ValueError, "hsic: sigma_x must be positive and finite, got -1.0"),
        (
            {"kernel": "rbf", "sigma_x": torch.zeros(())},
            ValueError,
            "sigma_x must be positive and finite in every entry",
        ),
        ({"kernel": "rbf", "sigma_y": "1"}, TypeError, "hsic: sigma_y must be None, a number or a tensor, got str"),
        ({"kernel": "rbf", "sigma_y": torch.ones(2)}, ValueError, r"hsic: sigma_y must broadcast to \(\), got \(2,\)"),
        (
            {"kernel": "rbf", "sigma_y": torch.ones((), requires_grad=True)},
            ValueError,
            "hsic: sigma_y must not require a gradient",
        ),
    ],
)
def test_bad_arguments_are_named(backend, change, error, text):
    with pytest.raises(error, match=text):
        bdam_fast.hsic(**(problem(8) | change), backend=backend)
