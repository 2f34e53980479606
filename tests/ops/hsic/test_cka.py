"""cka: by its formula, its limits, batches, minibatches and gradients."""

import pytest
import torch

import bdam_fast
from tests.support.operators import BACKENDS, same_bits
from tests.support.operators.hsic import KINDS, pair

pytestmark = pytest.mark.usefixtures("kernels")


def written_out(x, y, kernel):
    """The biased CKA from centred kernel matrices."""
    matrices = []
    for t in (x, y):
        if kernel == "rbf":
            distances = torch.cdist(t, t).square()
            i, j = torch.triu_indices(len(t), len(t), 1)
            t = torch.exp(-distances / distances[i, j].median())
        else:
            t = t @ t.T
        H = torch.eye(len(t), dtype=t.dtype) - 1 / len(t)
        matrices.append(H @ t @ H)
    K, L = matrices
    return (K * L).sum() / (K.norm() * L.norm())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("widths", [(7, 7), (7, 30)])
@pytest.mark.parametrize("kernel", ["linear", "rbf"])
def test_written_out(kernel, widths, backend):
    x, y = pair(40, *widths, dtype=torch.float64)
    got = bdam_fast.cka(x, y, kernel=kernel, estimator="biased", backend=backend)
    torch.testing.assert_close(got, written_out(x, y, kernel))
    low = bdam_fast.cka(x.float(), y.float(), kernel=kernel, estimator="biased", backend=backend)
    torch.testing.assert_close(low.double(), got, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("kernel", "estimator"), KINDS)
def test_limits(kernel, estimator):
    options = {"kernel": kernel, "estimator": estimator}
    x = torch.randn(60, 20)
    torch.testing.assert_close(bdam_fast.cka(x, x, **options), torch.tensor(1.0))
    turned = 3 * x @ torch.linalg.qr(torch.randn(20, 20))[0] + 5
    torch.testing.assert_close(bdam_fast.cka(x, turned, **options), torch.tensor(1.0), rtol=1e-4, atol=1e-4)
    assert bdam_fast.cka(x, torch.ones(60, 20), **options) == 0
    wide = [bdam_fast.cka(torch.randn(30, 400), torch.randn(30, 400), **options) for _ in range(5)]
    mean = torch.stack(wide).mean()
    assert (mean > 0.8) if estimator == "biased" else (mean.abs() < 0.1)


LINEAR = [(backend, estimator) for backend in BACKENDS for estimator in ("biased", "unbiased")]


@pytest.mark.parametrize(("backend", "estimator"), LINEAR)
@pytest.mark.parametrize("widths", [(8, 8), (8, 3), (30, 90)])
def test_the_scale_of_the_features_does_not_matter(widths, backend, estimator):
    """Neither to the value nor, times the scale, to the gradient; powers of two change no bit."""
    x, y = (t.requires_grad_() for t in pair(20, *widths, batch=(2,)))

    def run(scale_x, scale_y, **options):
        value = bdam_fast.cka(scale_x * x, scale_y * y, estimator=estimator, backend=backend, **options)
        return value, *torch.autograd.grad(value.sum(), (x, y))

    for options in ({}, {"minibatches": True}):
        plain = run(1, 1, **options)
        for scales in ((1e9, 1e9), (5e-4, 1), (1e-4, 1e-4), (1e-15, 1e15), (1e-30, 1e30)):
            torch.testing.assert_close(run(*scales, **options), plain, rtol=1e-4, atol=1e-5)
        assert all(same_bits(*values) for values in zip(run(2.0**-40, 2.0**30, **options), plain, strict=True))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_scale_in_other_dtypes(dtype):
    x = (torch.randint(-128, 128, (20, 6)) / 64).to(dtype)  # with few digits, which small float16 numbers have
    tiny = {torch.float16: 2.0**-10, torch.bfloat16: 2.0**-90, torch.float64: 2.0**-900}[dtype]
    for y in (x[:, :3], x.flip(0)):
        assert same_bits(bdam_fast.cka(x * tiny, y), bdam_fast.cka(x, y))
    offset = x.clone()
    offset[:, 0] = 60000  # times the scale of the others it is beyond float16
    offset[:, 1:] /= 1024
    torch.testing.assert_close(bdam_fast.cka(offset, offset).float(), torch.tensor(1.0))


@pytest.mark.parametrize(("backend", "estimator"), LINEAR)
def test_one_scale_for_all_minibatches(backend, estimator):
    """The HSIC of minibatches are added as they are: a minibatch of small features counts little."""
    x, y = pair(20, 6, 6, batch=(2, 3), dtype=torch.float64)
    x = x * torch.tensor([1e-3, 1.0, 1e3])[:, None, None]
    each = [bdam_fast.hsic(a, b, estimator=estimator, backend=backend).mean(-1) for a, b in ((x, y), (x, x), (y, y))]
    got = bdam_fast.cka(x, y, estimator=estimator, minibatches=True, backend=backend)
    torch.testing.assert_close(got, each[0] / (each[1] * each[2]).sqrt())


@pytest.mark.parametrize(("backend", "estimator"), LINEAR)
def test_constant_broken_and_empty_problems(backend, estimator):
    options = {"estimator": estimator, "backend": backend}
    x = pair(20, 5, 5, batch=(4,))[0] * 1e-9
    x[1] = 1e-9
    x[2, 3, 1], x[3, 0, 0] = float("nan"), float("inf")
    got = bdam_fast.cka(x, x, **options)
    torch.testing.assert_close(got[:2], torch.tensor([1.0, 0.0]))
    assert got[2:].isnan().all() and bdam_fast.cka(x, x, minibatches=True, **options).isnan()
    assert bdam_fast.cka(x[:, :, :2], torch.full((4, 20, 3), 0.7), **options)[0] == 0
    for empty in (torch.zeros(0, 20, 5), torch.zeros(2, 0, 20, 5)):
        assert bdam_fast.cka(empty, empty, **options).shape == empty.shape[:-2]
        means = bdam_fast.cka(empty, empty, minibatches=True, **options)
        assert means.shape == empty.shape[:-3] and means.isnan().all()
    for shape in ((20, 0), (0, 5)):
        with pytest.raises(ValueError, match="hsic: (x must have a feature, got|the .* estimator needs at least)"):
            bdam_fast.cka(torch.zeros(shape), torch.zeros(shape), **options)


@pytest.mark.parametrize("batch", [(3,), (2, 3)])
@pytest.mark.parametrize("widths", [(5, 5), (5, 9)])
def test_batches_are_separate_problems(batch, widths):
    x, y = pair(12, *widths, batch=batch)
    got = bdam_fast.cka(x, y, sigma_x=torch.full(batch, 1.5), kernel="rbf")
    plain = bdam_fast.cka(x, y)
    assert got.shape == plain.shape == batch
    for i in range(plain.numel()):
        a, b = (t.reshape(-1, *t.shape[-2:])[i] for t in (x, y))
        torch.testing.assert_close(plain.flatten()[i], bdam_fast.cka(a, b))
        torch.testing.assert_close(got.flatten()[i], bdam_fast.cka(a, b, kernel="rbf", sigma_x=1.5))


def test_minibatches_estimate_the_whole():
    """The mean over minibatches does not depend on their size, while that of their CKA does."""
    x = torch.randn(4096, 6)
    y = torch.cat([x[:, :3], torch.randn(4096, 3)], 1)
    whole = bdam_fast.cka(x, y)
    for size in (8, 64):
        parts = [t.view(-1, size, 6) for t in (x, y)]
        torch.testing.assert_close(bdam_fast.cka(*parts, minibatches=True), whole, rtol=0.05, atol=0)
        assert bdam_fast.cka(*(p.expand(2, -1, -1, -1) for p in parts), minibatches=True).shape == (2,)
    with pytest.raises(
        ValueError, match=r"cka: x must have shape \(..., minibatches, N, Dx\) with minibatches=True, got"
    ):
        bdam_fast.cka(x, y, minibatches=True)


@pytest.mark.parametrize(("kernel", "estimator"), KINDS)
def test_gradcheck(kernel, estimator):
    x, y = (t.requires_grad_() for t in pair(7, 3, 2, batch=(2,), dtype=torch.float64))
    options = {"kernel": kernel, "estimator": estimator} | ({"sigma_x": 0.9, "sigma_y": 0.8} if kernel == "rbf" else {})
    assert torch.autograd.gradcheck(lambda a, b: bdam_fast.cka(a, b, **options), (x, y))
    assert torch.autograd.gradcheck(lambda a, b: bdam_fast.cka(a, b, minibatches=True, **options), (x, y))


def test_wrong_arguments_have_the_words_of_hsic():
    x, y = pair(6, 3, 4)
    with pytest.raises(TypeError, match="hsic: y must be a tensor, got list"):
        bdam_fast.cka(x, [1.0])
    with pytest.raises(ValueError, match="hsic: the unbiased estimator needs at least 4 samples, got 3"):
        bdam_fast.cka(x[:3], y[:3])
    with pytest.raises(ValueError, match=r"hsic: x must have shape \(..., N, Dx\), got \(6,\)"):
        bdam_fast.cka(x[:, 0], x[:, 0])
    with pytest.raises(TypeError, match="hsic: y must be torch.float32 like x, got torch.bfloat16"):
        bdam_fast.cka(x, x.bfloat16())
    with pytest.raises(TypeError, match="hsic: x must be float32, bfloat16, float16 or float64, got torch.int64"):
        bdam_fast.cka(x.long(), x.long())


def test_compiles_as_one_graph():
    torch._dynamo.reset()
    compiled = torch.compile(bdam_fast.cka, fullgraph=True, backend="aot_eager")
    for samples in (8, 12, 40):
        x, y = pair(samples, 6, 6)
        torch.testing.assert_close(compiled(x * 1e-6, y), bdam_fast.cka(x, y))


@pytest.mark.filterwarnings("ignore:.*running the slow reference")
def test_transforms_and_second_derivatives_of_small_features():
    """The scale is a constant to them, as CKA does not change with it."""
    x, y = pair(7, 3, 2, dtype=torch.float64)
    run = [lambda a, s=s: bdam_fast.cka(s * a, y) for s in (1e-9, 1.0)]
    for transform in (
        lambda f: torch.func.grad(f)(x),
        lambda f: torch.func.jvp(f, (x,), (x.cos(),))[1],
        lambda f: torch.func.hessian(f)(x),
        lambda f: torch.func.vmap(f)(torch.stack([x, x.cos()])),
    ):
        got, expected = (transform(f) for f in run)
        torch.testing.assert_close(got, expected)
        assert expected.abs().sum() > 0
    assert torch.autograd.gradgradcheck(run[1], x.clone().requires_grad_())


def test_exports_for_any_number_of_samples():
    class Alignment(torch.nn.Module):
        def forward(self, x, y):
            return bdam_fast.cka(x, y, backend="cpu")

    (x, y), samples = pair(40, 6, 3), torch.export.Dim("samples", min=9, max=999)
    program = torch.export.export(Alignment(), (x, y), dynamic_shapes=({0: samples}, {0: samples}))
    assert "bdam_fast.hsic_forward" in program.graph_module.code
    again = pair(70, 6, 3)
    torch.testing.assert_close(program.module()(again[0] * 1e-6, again[1]), bdam_fast.cka(*again))
