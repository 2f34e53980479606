"""The Triton kernels of hsic under Triton's interpreter, against the textbook formula in float64."""

import pytest
import torch

from bdam_fast.ops.hsic import triton_impl
from bdam_fast.ops.hsic.reference import hsic_reference, median_sigma
from tests.support.operators import assert_close, same_bits

pytestmark = pytest.mark.usefixtures("poison")

KINDS = [(gaussian, unbiased) for gaussian in (False, True) for unbiased in (False, True)]


@pytest.fixture(autouse=True)
def tiles_from_65_samples(monkeypatch):
    """Two tiles where 129 samples would make three: the interpreter's time goes by programs."""
    monkeypatch.setattr(triton_impl, "SMALL", 64)


def pair(samples, width_x, width_y, batch=1, *, dtype=torch.float32, order="rows"):
    """x and y that depend on each other, with rows or columns adjacent in memory, or neither."""
    common = torch.randn(batch, samples, 1)
    x = (torch.randn(batch, samples, width_x) + common) / width_x**0.5
    y = (torch.randn(batch, samples, width_y) - common) / width_y**0.5

    def laid_out(t):
        if order == "strided":
            wide = torch.zeros(t.shape[0], 2 * t.shape[1], 3 * t.shape[2], dtype=t.dtype)
            wide[:, 1::2, 1::3] = t
            return wide[:, 1::2, 1::3]
        return t.mT.contiguous().mT if order == "columns" else t

    return laid_out(x.to(dtype)), laid_out(y.to(dtype))


def weights(batch):
    return torch.linspace(0.5, 2, batch)


def by_reference(x, y, sigma_x, sigma_y, gaussian, unbiased):
    x, y = x.detach().requires_grad_(), y.detach().requires_grad_()
    value = hsic_reference(x, y, sigma_x, sigma_y, gaussian, unbiased)
    dx, dy = torch.autograd.grad(value, (x, y), weights(len(value)).to(value.dtype))
    return {"value": value.detach(), "dx": dx, "dy": dy}


def by_kernels(x, y, sigma_x, sigma_y, gaussian, unbiased):
    value, saved = triton_impl.forward(x, y, sigma_x, sigma_y, gaussian, unbiased)
    assert saved.shape[1:] == triton_impl.saved_shape(x.shape[1], x.shape[2], y.shape[2], gaussian)
    dx, dy = triton_impl.backward(weights(len(value)), x, y, saved, gaussian, unbiased)
    for gradient, t in ((dx, x), (dy, y)):
        assert (gradient.dtype, gradient.stride()) == (t.dtype, torch.empty_like(t).stride())
    return {"value": value, "dx": dx, "dy": dy}


def check(x, y, gaussian, unbiased, sigma_x=None, sigma_y=None):
    exact = by_reference(x.double(), y.double(), sigma_x, sigma_y, gaussian, unbiased)
    same = by_reference(x, y, sigma_x, sigma_y, gaussian, unbiased)
    got = by_kernels(x, y, sigma_x, sigma_y, gaussian, unbiased)
    for name, value in got.items():
        assert value.dtype == same[name].dtype, f"{name}: {value.dtype}, expected {same[name].dtype}"
        assert_close(name, value, exact[name], same[name])
    return got


@pytest.mark.parametrize(("gaussian", "unbiased"), KINDS)
@pytest.mark.parametrize("samples", [4, 5, 15, 16, 17, 33, 64, 65, 128])
def test_few_samples(monkeypatch, gaussian, unbiased, samples):
    monkeypatch.setattr(triton_impl, "SMALL", 128)
    check(*pair(samples, 20, 23), gaussian, unbiased)
    check(*pair(samples, 1, 37), gaussian, unbiased, torch.tensor([0.7]), torch.tensor([1.9]))


@pytest.mark.parametrize("gaussian", [False, True])
def test_two_and_three_samples(gaussian):
    for samples in (2, 3):
        check(*pair(samples, 3, 5, 2), gaussian, False)


@pytest.mark.parametrize(("gaussian", "unbiased"), KINDS)
@pytest.mark.parametrize("samples", [65, 129])
def test_many_samples(gaussian, unbiased, samples):
    """Tiles, and both forms of the linear kernel."""
    check(*pair(samples, 20, 3), gaussian, unbiased)
    if not gaussian:
        check(*pair(samples, 200, 300, 2), gaussian, unbiased)


@pytest.mark.parametrize(("gaussian", "unbiased"), KINDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_dtypes_and_memory_orders(gaussian, unbiased, dtype):
    for order in ("rows", "columns", "strided"):
        check(*pair(21, 35, 18, dtype=dtype, order=order), gaussian, unbiased)
    check(*pair(70, 3, 7, dtype=dtype, order="strided"), gaussian, unbiased)


@pytest.mark.parametrize("samples", [20, 70])
def test_given_widths(samples):
    x, y = pair(samples, 5, 8, 3)
    check(x, y, True, False, torch.tensor([0.5, 1.0, 30.0]), torch.tensor([2.0]).expand(3))
    check(x[:2], y[:2], True, True, None, torch.tensor([0.5, 100.0]))


def sigmas(x, y):
    saved = triton_impl.forward(x, y, None, None, True, False)[1]
    return saved[:, 0], saved[:, 2]


@pytest.mark.parametrize("samples", [2, 3, 4, 17, 64, 65, 100])
def test_median_width(samples):
    x, y = torch.randn(2, samples, 6), torch.randn(2, samples, 1) * 1e-3
    for got, t in zip(sigmas(x, y), (x, y), strict=True):
        torch.testing.assert_close(got.double(), median_sigma(t.double()), rtol=2e-6, atol=0)


@pytest.mark.parametrize("samples", [20, 75])
def test_median_width_of_labels_and_of_equal_rows(samples):
    """Equal rows have distance zero exactly: the mean steps in when most pairs coincide, and 1 when all do."""
    labels = torch.nn.functional.one_hot((torch.arange(samples) % 10 == 0).long(), 2).float() * 0.3
    rows = torch.full((1, samples, 2), 0.7)
    found = sigmas(labels[None], rows)
    torch.testing.assert_close(found[0], median_sigma(labels[None]), rtol=1e-6, atol=0)
    assert found[1] == median_sigma(rows) == 1
    assert triton_impl.forward(labels[None], rows, None, None, True, False)[0] == 0


@pytest.mark.parametrize(("gaussian", "unbiased"), KINDS)
@pytest.mark.parametrize("samples", [40, 80])
def test_offsets_do_not_matter(gaussian, unbiased, samples):
    """Features a thousand away from zero: what centring first is for."""
    x, y = (t + offset for t, offset in zip(pair(samples, 33, 20), (1000, -1000), strict=True))
    exact = by_reference(x.double() - 1000, y.double() + 1000, None, None, gaussian, unbiased)
    for name, value in by_kernels(x, y, None, None, gaussian, unbiased).items():
        torch.testing.assert_close(value.double(), exact[name], rtol=1e-5, atol=1e-5 * exact[name].abs().max().item())


@pytest.mark.parametrize(("samples", "bad"), [(20, float("nan")), (20, float("inf")), (70, float("nan"))])
@pytest.mark.filterwarnings("ignore:invalid value")
def test_broken_values_stay_in_their_problem(samples, bad):
    for gaussian, sigma_x, sigma_y in (
        (False, None, None),
        (True, torch.ones(3), None if samples == 20 else torch.ones(3)),
    ):
        x, y = pair(samples, 5, 9, 3)
        good = by_kernels(x, y, sigma_x, sigma_y, gaussian, False)
        x[1, 3, 2] = bad
        got = by_kernels(x, y, sigma_x, sigma_y, gaussian, False)
        assert got["value"].isnan().tolist() == [False, True, False]
        assert all(same_bits(value[::2], good[name][::2]) for name, value in got.items())


@pytest.mark.parametrize(("gaussian", "unbiased"), KINDS)
def test_empty_batch_and_same_bits_again(gaussian, unbiased):
    for samples in (12, 70):
        assert by_kernels(*pair(samples, 5, 9, 0), None, None, gaussian, unbiased)["value"].shape == (0,)
        x, y = pair(samples, 5, 9)
        first, again = (by_kernels(x, y, None, None, gaussian, unbiased) for _ in range(2))
        assert all(same_bits(again[name], value) for name, value in first.items())


@pytest.mark.parametrize("programs", [1, 2, 1000])
def test_splits_of_a_row_of_tiles(monkeypatch, programs):
    """One split, and with many programs as many as there are tiles, which are small here: three."""
    monkeypatch.setattr(triton_impl, "BLOCK", 32)
    monkeypatch.setattr(triton_impl, "PROGRAMS", programs)
    sigma = torch.ones(1) if programs == 2 else None
    check(*pair(73, 5, 17), True, programs == 2, sigma, sigma)


def test_matrix_products_are_in_full_precision():
    """A user's TF32 or autocast changes nothing, and is there again afterwards."""
    x, y = pair(70, 200, 300)
    before = torch.backends.cuda.matmul.fp32_precision
    plain = by_kernels(x, y, None, None, False, True)
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            again = by_kernels(x, y, None, None, False, True)
        assert torch.backends.cuda.matmul.fp32_precision == "tf32"
    finally:
        torch.backends.cuda.matmul.fp32_precision = before
    assert all(same_bits(again[name], value) for name, value in plain.items())
