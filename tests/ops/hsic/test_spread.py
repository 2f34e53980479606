"""hsic of data that is spread far, or lies far from zero: no digits are lost to what cancels."""

from functools import partial

import pytest
import torch

import bdam_fast
from tests.support.operators.hsic import KINDS, clusters, near_rows, outlier, pair, rbf_error, run_hsic, worst

pytestmark = pytest.mark.usefixtures("kernels")
ESTIMATORS = ("biased", "unbiased")


check = partial(rbf_error, backend="cpu")


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("size", [1e5, 1e6])
@pytest.mark.parametrize("sizes", [(64, 8), (300, 70), (40, 3)])
def test_an_outlier(isa, estimator, size, sizes):
    assert check(*outlier(size, *sizes), estimator=estimator) <= 1e-5


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("distance", [1e2, 1e4])
@pytest.mark.parametrize("sizes", [(64, 8), (300, 70)])
def test_clusters(isa, estimator, distance, sizes):
    assert check(*clusters(distance, *sizes), estimator=estimator) <= 1e-5
    assert check(*clusters(distance, *sizes), estimator=estimator, sigma_x=1.0, sigma_y=2.0) <= 1e-5


def test_rows_that_nearly_coincide(isa):
    assert check(*near_rows(), sigma_x=0.01, sigma_y=0.01) <= 1e-5


@pytest.mark.parametrize("order", ["rows", "columns", "strided"])
def test_other_memory_orders(order):
    x, y = pair(70, 30, 12, order=order)
    x[3] += 1e5
    y[3] -= 1e5
    assert check(x, y) <= 1e-5
    assert check(x.double(), y.double()) <= 1e-13


def test_equal_rows_have_distance_zero(isa):
    labels = torch.nn.functional.one_hot(torch.arange(64) % 5).float()
    assert check(labels, labels.clone(), sigma_x=0.5) <= 1e-5


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize(("kernel", "estimator"), KINDS)
@pytest.mark.parametrize("offset", [1e3, 1e5])
def test_an_offset_costs_nothing_but_the_rounding_of_the_data(backend, kernel, estimator, offset):
    """Multiples of 1/64, which stay what they are when the offset is added."""
    x, y = (torch.randint(-128, 128, (40, 6)) / 64 for _ in range(2))
    y = y + x
    options = {"kernel": kernel, "estimator": estimator, "backend": backend}
    plain, moved = run_hsic(x, y, **options), run_hsic(x + offset, y - offset, **options)
    assert worst(moved, {n: v.double() for n, v in plain.items()}) <= 1e-5


def test_mixed_dtypes_under_autocast():
    x, y = pair(20, 6, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = bdam_fast.hsic(x.bfloat16(), y)
        assert torch.equal(got, bdam_fast.hsic(x.bfloat16().float(), y))
        assert torch.equal(bdam_fast.hsic(y, x.half()), bdam_fast.hsic(y, x.half().float()))
        with pytest.raises(TypeError, match="hsic: y must be float32, bfloat16, float16 or float64, got torch.int64"):
            bdam_fast.hsic(x, y.long())
    with pytest.raises(TypeError, match=r"hsic: y must be torch.bfloat16 like x, got torch.float32"):
        bdam_fast.hsic(x.bfloat16(), y)


def test_feature_maps_are_pointed_out(monkeypatch):
    monkeypatch.setattr("bdam_fast._backend._warned", set())
    maps = torch.randn(5, 3, 4, 4)
    text = r"hsic: x of shape \(5, 3, 4, 4\) is a batch of \(5, 3\) problems with 4 samples each; for N images"
    with pytest.warns(RuntimeWarning, match=text):
        assert bdam_fast.hsic(maps, maps).shape == (5, 3)
    assert bdam_fast.hsic(maps.flatten(1), maps.flatten(1)).shape == ()
