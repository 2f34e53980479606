"""The decoupling loss: HSIC as printed, and CKA, which the variance of the features cannot lower."""

import pytest
import torch
from torch.testing import assert_close

from tests.support.models import unit
from training.engine import losses


def test_hsic_is_the_printed_trace():
    x, y = unit(7, 5, dtype=torch.float64), unit(7, 5, seed=1, dtype=torch.float64)
    centre = torch.eye(7, dtype=torch.float64) - 1 / 7
    expected = torch.trace(x @ x.T @ centre @ (y @ y.T) @ centre) / 36
    raw = {"measure": "hsic", "normalise": False, "kernel": "linear"}
    assert_close(losses.hsic_decoupling(x, y, backend="reference", **raw), expected)
    assert_close(losses.hsic_decoupling(x.float(), y.float(), backend="cpu", **raw), expected.float())


def test_normalised_hsic_cannot_be_lowered_by_closing_the_gate():
    x, y = torch.randn(2, 7, 5, generator=torch.Generator().manual_seed(0))

    def value(gate, normalise):
        options = {"measure": "hsic", "normalise": normalise, "kernel": "linear", "backend": "reference"}
        return float(losses.hsic_decoupling(gate * x, y, **options))

    assert value(1e-3, True) == pytest.approx(value(1.0, True), rel=1e-4)
    assert value(1e-3, False) == pytest.approx(1e-6 * value(1.0, False), rel=1e-4)


def test_rbf_hsic_sees_what_linear_hsic_cannot():
    """y = |x|: uncorrelated, not independent."""
    x = torch.linspace(-1, 1, 21)[:, None]

    def value(kernel):
        options = {"measure": "hsic", "normalise": False, "kernel": kernel, "backend": "reference"}
        return float(losses.hsic_decoupling(x, x.abs(), **options))

    assert abs(value("linear")) < 1e-7 and value("rbf") > 1e-3


def decoupling_cka(x, y, backend="reference", **changes):
    options = {"measure": "cka", "normalise": False, "kernel": "linear", "backend": backend} | changes
    return losses.hsic_decoupling(x, y, **options)


def test_cka_is_the_unbiased_hsic_over_the_features_own():
    """The unbiased estimator of Song et al. (2012) written out, on dependent features."""
    x, noise = torch.randn(2, 9, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = x.flip(1) + 0.5 * noise

    def unbiased(a, b):
        n, k, m = len(a), *(z @ z.T - torch.diag((z * z).sum(1)) for z in (a, b))
        both = (k @ m).trace() + k.sum() * m.sum() / ((n - 1) * (n - 2)) - 2 * (k @ m).sum() / (n - 2)
        return both / (n * (n - 3))

    expected = unbiased(x, y) / (unbiased(x, x) * unbiased(y, y)).sqrt()
    assert 0.3 < expected < 0.99
    assert_close(decoupling_cka(x, y), expected)
    assert float(decoupling_cka(x.float(), y.float(), "cpu")) == pytest.approx(float(expected), rel=1e-5)
    assert float(decoupling_cka(x, x)) == pytest.approx(1.0)


def test_cka_cannot_be_lowered_by_features_that_vary_less():
    """A common part that grows makes normalised HSIC small and leaves CKA of the normalised features where it was."""
    x = torch.randn(64, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    common = torch.full((6,), 100.0, dtype=torch.float64)
    options = {"normalise": True, "kernel": "linear", "backend": "reference"}
    hsic, cka = (
        [float(losses.hsic_decoupling(z, z, measure=m, **options)) for z in (x, x + common)] for m in ("hsic", "cka")
    )
    assert hsic[1] < 1e-6 * hsic[0] and cka == pytest.approx([1.0, 1.0])


def test_cka_of_independent_and_of_constant_features_is_zero_with_a_finite_gradient():
    x, y = torch.randn(2, 256, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert 0 <= float(decoupling_cka(x, y)) < 0.05
    constant = torch.ones(8, 4, requires_grad=True)
    value = decoupling_cka(constant, x[:8].float())
    value.backward()
    assert float(value.detach()) == 0.0 and bool(constant.grad.isfinite().all())
