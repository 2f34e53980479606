"""hsic: values and gradients against the textbook formula, and its options."""

from fractions import Fraction

import numpy as np
import pytest
import torch

import bdam_fast
from bdam_fast.ops.hsic import op
from bdam_fast.ops.hsic.reference import median_sigma
from tests.support.operators import BACKENDS, same_bits
from tests.support.operators.hsic import KINDS, check_hsic, pair, run_hsic

pytestmark = pytest.mark.usefixtures("kernels")


@pytest.mark.parametrize(("kernel", "estimator"), KINDS)
@pytest.mark.parametrize("samples", [4, 5, 15, 16, 17, 31, 33, 64, 65, 130, 257])
def test_samples(isa, kernel, estimator, samples):
    check_hsic(*pair(samples, 40, 23), kernel=kernel, estimator=estimator)
    check_hsic(*pair(samples, 3, 130), kernel=kernel, estimator=estimator)


@pytest.mark.parametrize(("kernel", "estimator"), KINDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_dtypes(isa, kernel, estimator, dtype):
    for order in ("rows", "columns", "strided"):
        check_hsic(*pair(21, 35, 18, batch=(2,), dtype=dtype, order=order), kernel=kernel, estimator=estimator)
        check_hsic(*pair(70, 18, 7, dtype=dtype, order=order), kernel=kernel, estimator=estimator)


@pytest.mark.parametrize("width", [1, 2, 15, 16, 17, 31, 33, 64, 97, 300])
def test_features(isa, width):
    for kernel in ("linear", "rbf"):
        check_hsic(*pair(20, width, 33), kernel=kernel)
        check_hsic(*pair(20, 33, width), kernel=kernel, estimator="unbiased")


@pytest.mark.parametrize(("kernel", "estimator"), KINDS)
@pytest.mark.parametrize("batch", [(), (1,), (3,), (2, 3), (0,), (2, 0)])
def test_batches_are_separate_problems(kernel, estimator, batch):
    x, y = pair(12, 9, 20, batch=batch)
    got = run_hsic(x, y, kernel=kernel, estimator=estimator, backend="cpu")
    assert (got["value"].shape, got["dx"].shape) == (batch, x.shape)
    for i in range(got["value"].numel()):
        a, b = (t.reshape(-1, *t.shape[-2:])[i] for t in (x, y))
        single = bdam_fast.hsic(a, b, kernel=kernel, estimator=estimator, backend="cpu")
        assert same_bits(single, got["value"].flatten()[i])


@pytest.mark.parametrize("backend", BACKENDS)
def test_by_hand(backend):
    """Three samples on a line: centred x is (-1, 0, 1) and y (-1, -1, 2), so |Xc^T Yc|^2 / (N-1)^2 = 9 / 4."""
    x, y = torch.tensor([[4.0], [5.0], [6.0]]), torch.tensor([[0.0], [0.0], [3.0]])
    torch.testing.assert_close(bdam_fast.hsic(x, y, backend=backend), torch.tensor(9 / 4))
    median = torch.tensor([1.0, 1.0, 4.0]).exp().reciprocal()  # x: d^2 = 1, 1, 4 over their median, 1
    K = torch.eye(3) + torch.zeros(3, 3).index_put_(
        (torch.tensor([0, 1, 0, 1, 2, 2]), torch.tensor([1, 2, 2, 0, 1, 0])), median.repeat(2)
    )
    L = torch.tensor([[1.0, 1, 0], [1, 1, 0], [0, 0, 1]]) + torch.tensor([[0, 0, 1.0], [0, 0, 1], [1, 1, 0]]) * 2**-0.5
    H = torch.eye(3) - 1 / 3
    sigma_y = 3 / torch.tensor(2.0).log().sqrt()  # exp(-9 / (2 sigma^2)) = 2^(-1/2)
    got = bdam_fast.hsic(x, y, kernel="rbf", sigma_y=sigma_y, backend=backend)
    torch.testing.assert_close(got, torch.trace(K @ H @ L @ H) / 4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_unbiased_is_zero_on_average_for_independent_samples(backend):
    """The mean over all orders of y of the unbiased estimate is exactly zero."""
    orders = torch.cartesian_prod(*[torch.arange(4)] * 4)
    orders = orders[[len(set(row.tolist())) == 4 for row in orders]]
    x, y = torch.randn(4, 3), torch.randn(4, 2)
    for kernel in ("linear", "rbf"):
        values = bdam_fast.hsic(
            x.expand(24, -1, -1), y[orders], kernel=kernel, estimator="unbiased", sigma_x=None, backend=backend
        )
        assert values.mean().abs() < 1e-6 < values.abs().mean()
        biased = bdam_fast.hsic(x.expand(24, -1, -1), y[orders], kernel=kernel, backend=backend)
        assert biased.min() > 0


@pytest.mark.parametrize(("kernel", "estimator"), KINDS)
def test_offsets_do_not_matter(isa, kernel, estimator):
    """Features a thousand away from zero: what centring first is for. The inputs' own rounding is 3e-5 there."""
    x, y = pair(40, 33, 20)
    got = run_hsic(x + 1000, y - 1000, kernel=kernel, estimator=estimator, sigma_x=None, backend="cpu")
    exact = run_hsic(
        (x + 1000).double() - 1000, (y - 1000).double() + 1000, kernel=kernel, estimator=estimator, backend="reference"
    )
    for name, value in got.items():
        torch.testing.assert_close(value.double(), exact[name], rtol=1e-4, atol=1e-4 * exact[name].abs().max().item())


@pytest.mark.parametrize("estimator", ["biased", "unbiased"])
def test_widths_of_the_kernel(isa, estimator):
    x, y = pair(30, 12, 20, batch=(3,))
    sigmas = torch.tensor([0.5, 1.0, 30.0])
    got = check_hsic(x, y, kernel="rbf", sigma_x=sigmas, sigma_y=2, estimator=estimator)
    each = [
        bdam_fast.hsic(
            x[i], y[i], kernel="rbf", sigma_x=float(sigmas[i]), sigma_y=2.0, estimator=estimator, backend="cpu"
        )
        for i in range(3)
    ]
    assert same_bits(torch.stack(each), got["value"])
    wide = run_hsic(x, y, kernel="rbf", sigma_x=100.0, sigma_y=100.0, estimator=estimator, backend="cpu")
    exact = run_hsic(
        x.double(), y.double(), kernel="rbf", sigma_x=100.0, sigma_y=100.0, estimator=estimator, backend="reference"
    )
    torch.testing.assert_close(wide["value"].double(), exact["value"], rtol=1e-4, atol=0)


@pytest.mark.parametrize("number", [np.float32(1.5), np.float64(1.5), np.float16(1.5), Fraction(3, 2)], ids=repr)
def test_widths_of_every_kind_of_number(number):
    x, y = pair(9, 3, 4)
    got = bdam_fast.hsic(x, y, kernel="rbf", sigma_x=number, sigma_y=np.int64(2))
    assert same_bits(got, bdam_fast.hsic(x, y, kernel="rbf", sigma_x=1.5, sigma_y=2))
    with pytest.raises(ValueError, match="hsic: sigma_x must be positive and finite, got -"):
        bdam_fast.hsic(x, y, kernel="rbf", sigma_x=-number)


@pytest.mark.filterwarnings("ignore:.*running the slow reference")
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_width_for_each_problem_of_vmap(backend):
    x, sigmas = pair(9, 3, 4, batch=(3,))[0], torch.tensor([0.5, 1.0, 2.0])

    def call(x, sigma):
        return bdam_fast.hsic(x, x, kernel="rbf", sigma_x=sigma, backend=backend)

    expected = call(x, sigmas)
    torch.testing.assert_close(torch.func.vmap(call)(x, sigmas), expected)
    slopes = torch.func.grad(lambda x: call(x, sigmas).sum())(x)
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(call))(x, sigmas), slopes)
    torch.testing.assert_close(torch.func.grad(lambda x: torch.func.vmap(call)(x, sigmas).sum())(x), slopes)
    for transform in (torch.func.vmap, torch.func.grad):  # one that is the same for all of them is checked
        with pytest.raises(ValueError, match="hsic: sigma_x must be positive and finite in every entry"):
            transform(lambda x: call(x, torch.tensor(-1.0)).sum())(x)


def test_one_graph_for_all_widths():
    """From the second number on."""
    torch._dynamo.reset()
    x, y = pair(9, 3, 4)
    graphs = []

    def count(module, inputs):
        graphs.append(module)
        return module.forward

    def call(sigma):
        return bdam_fast.hsic(x, y, kernel="rbf", sigma_x=sigma)

    compiled = torch.compile(call, fullgraph=True, backend=count)
    for sigma in (0.5, 1.0, 1.5, 2.5):
        torch.testing.assert_close(compiled(sigma), call(sigma))
    assert len(graphs) == 2


def test_a_width_that_follows_from_a_shape_is_exported():
    class Dependence(torch.nn.Module):
        def forward(self, x):
            return bdam_fast.hsic(x, x, kernel="rbf", sigma_x=x.shape[1] ** 0.5, sigma_y=x.shape[1])

    program = torch.export.export(Dependence(), (torch.randn(9, 4),), dynamic_shapes=({1: torch.export.Dim.AUTO},))
    x = torch.randn(9, 7)
    torch.testing.assert_close(program.module()(x), Dependence()(x))


@pytest.mark.parametrize("samples", [2, 3, 4, 17, 64, 511, 520])
def test_median_width(samples):
    """From 513 samples on the median is counted in passes over the bits; both ways are exact."""
    x = torch.randn(2, samples, 6)
    op.OPERATOR.raw()
    saved = torch.ops.bdam_fast.hsic_forward(x, x, None, None, True, False)[1]
    torch.testing.assert_close(saved[:, 0].double(), median_sigma(x.double()), rtol=2e-6, atol=0)
    saved = torch.ops.bdam_fast.hsic_forward(x.double(), x.double(), None, None, True, False)[1]
    torch.testing.assert_close(saved[:, 2], median_sigma(x.double()), rtol=1e-13, atol=0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_median_width_is_a_constant_in_the_gradient(backend):
    x, y = pair(9, 3, 4)
    sigma = [float(torch.nn.functional.pdist(t).square().median().div(2).sqrt()) for t in (x, y)]
    expected = run_hsic(x, y, kernel="rbf", sigma_x=sigma[0], sigma_y=sigma[1], backend=backend)
    got = run_hsic(x, y, kernel="rbf", backend=backend)
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("samples", [20, 600])
def test_median_width_of_labels_and_of_equal_rows(samples):
    """Equal rows have distance zero exactly: the mean steps in when most pairs coincide, and 1 when all do."""
    labels = torch.nn.functional.one_hot((torch.arange(samples) % 10 == 0).long(), 2).float() * 0.3
    rows = torch.full((samples, 2), 0.7)
    expected = median_sigma(labels[None])[0], torch.tensor(1.0)
    assert (labels[1:] == labels[1]).float().mean() > 0.8
    op.OPERATOR.raw()
    saved = torch.ops.bdam_fast.hsic_forward(labels[None], rows[None], None, None, True, False)[1][0]
    torch.testing.assert_close(saved[0], expected[0], rtol=1e-6, atol=0)
    assert saved[2] == expected[1] == median_sigma(rows[None])[0]
    assert bdam_fast.hsic(labels, rows, kernel="rbf", backend="cpu") == 0


def test_many_samples():
    """600: several tiles of 64, and both forms of the linear kernel."""
    for widths in ((20, 30), (900, 700)):
        check_hsic(*pair(600, *widths), estimator="unbiased")
    x, y = pair(600, 4, 3)
    for estimator in ("biased", "unbiased"):
        check_hsic(x, y, kernel="rbf", estimator=estimator)


def test_memory_of_the_gaussian_kernel_does_not_grow_with_the_square():
    x, y = pair(4000, 2, 2, batch=(1,))
    value, saved = op.OPERATOR.raw()(x, y, None, None, True, False)
    assert saved.numel() == 4 + 2 * 4000
    sample = bdam_fast.hsic(x[0, :1000], y[0, :1000], kernel="rbf", backend="reference")
    assert abs(value.item() / sample.item() - 1) < 0.3


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("kernel", ["linear", "rbf"])
def test_broken_values_stay_in_their_problem(isa, bad, kernel):
    x, y = pair(20, 12, 9, batch=(3,))
    good = run_hsic(x, y, kernel=kernel, backend="cpu")
    x[1, 3, 5] = bad
    got = run_hsic(x, y, kernel=kernel, backend="cpu")
    assert got["value"].isnan().tolist() == [False, True, False]
    for name, value in got.items():
        assert same_bits(value[::2], good[name][::2])


@pytest.mark.parametrize(("kernel", "estimator"), KINDS)
@pytest.mark.parametrize("shape", [(64, 96, 80, ()), (300, 24, 40, ()), (520, 7, 5, ()), (20, 30, 20, (5,))], ids=str)
def test_same_bits_with_any_number_of_threads(kernels, kernel, estimator, shape):
    *sizes, batch = shape
    x, y = pair(*sizes, batch=batch)
    results = []
    for threads in (1, 2, 3, 8, 1):
        torch.set_num_threads(threads)
        results.append(run_hsic(x, y, kernel=kernel, estimator=estimator, backend="cpu"))
    assert all(same_bits(r[name], results[0][name]) for r in results for name in r)


def test_one_tensor_twice_and_an_expanded_gradient():
    x = pair(8, 5, 6)[0].requires_grad_()
    grads = [
        torch.autograd.grad(bdam_fast.hsic(x.expand(3, 8, 5), x.expand(3, 8, 5), backend=b).sum(), x)[0]
        for b in BACKENDS
    ]
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast_changes_nothing(backend):
    x, y = (t.requires_grad_() for t in pair(20, 5, 6))
    plain = bdam_fast.hsic(x, y, backend=backend)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = bdam_fast.hsic(x, y, backend=backend)
    grads = [torch.autograd.grad(value, (x, y)) for value in (cast, plain)]
    assert same_bits(cast, plain) and all(same_bits(*pair) for pair in zip(*grads, strict=True))


def test_calls_are_counted():
    bdam_fast.reset_call_counts()
    for backend in BACKENDS:
        run_hsic(*pair(8, 3, 2), backend=backend)
    counts = {n: c for n, c in bdam_fast.call_counts().items() if c}
    assert counts == {f"hsic.{n}": 1 for n in ("cpu.backward", "cpu.forward", "reference.forward")}
