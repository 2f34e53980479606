"""cka: by its formula, its limits, batches, minibatches and gradients."""

import pytest
import torch

import bdam_fast
from tests.support.operators import BACKENDS
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


def test_compiles_as_one_graph():
    torch._dynamo.reset()
    compiled = torch.compile(bdam_fast.cka, fullgraph=True, backend="aot_eager")
    for samples in (8, 12, 40):
        x, y = pair(samples, 6, 6)
        torch.testing.assert_close(compiled(x, y), bdam_fast.cka(x, y))
