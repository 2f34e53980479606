"""Problems of hsic, and the comparison with its float64 reference."""

import torch

import bdam_fast
from tests.support.operators import assert_close

KINDS = [(k, e) for k in ("linear", "rbf") for e in ("biased", "unbiased")]


def pair(samples, width_x, width_y, *, batch=(), dtype=torch.float32, order="rows"):
    """x and y that depend on each other; `order` rows, columns (features adjacent in no row), or strided."""
    common = torch.randn(*batch, samples, 1)
    x = (torch.randn(*batch, samples, width_x) + common) / width_x**0.5
    y = (torch.randn(*batch, samples, width_y) - common) / width_y**0.5

    def laid_out(t):
        if order == "columns":
            return t.mT.contiguous().mT
        if order == "strided":
            wide = torch.zeros(*t.shape[:-2], 2 * t.shape[-2], 3 * t.shape[-1], dtype=t.dtype)
            wide[..., 1::2, 1::3] = t
            return wide[..., 1::2, 1::3]
        return t

    return laid_out(x.to(dtype)), laid_out(y.to(dtype))


def run_hsic(x, y, **kwargs):
    """The value, and both gradients of it times fixed weights."""
    x, y = (t.detach().requires_grad_() for t in (x, y))
    value = bdam_fast.hsic(x, y, **kwargs)
    weights = torch.linspace(0.5, 2, max(value.numel(), 1)).to(value)[: value.numel()].reshape(value.shape)
    dx, dy = torch.autograd.grad((value * weights).sum(), (x, y))
    return {"value": value.detach(), "dx": dx, "dy": dy}


def check_hsic(x, y, **kwargs):
    """Kernel against the formula in float64 and in the inputs' own dtype."""
    exact = run_hsic(x.double(), y.double(), backend="reference", **kwargs)
    same = run_hsic(x, y, backend="reference", **kwargs)
    got = run_hsic(x, y, backend="cpu", **kwargs)
    for name, value in got.items():
        assert value.dtype == same[name].dtype, f"{name}: {value.dtype}, expected {same[name].dtype}"
        assert_close(name, value, exact[name], same[name])
    return got
