"""Problems of hsic, and the comparison with its float64 reference."""

import torch

import bdam_fast
from tests.support.operators import check, leaves, with_gradients

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


def outlier(size, samples=64, features=8):
    """One entry far from all others, which moves the mean."""
    x = torch.randn(samples, features)
    x[5, 0] = size
    return x, x + 0.1 * torch.randn(samples, features)


def clusters(distance, samples=64, features=8):
    """Two clusters; no centre is near to both."""
    x = torch.randn(samples, features)
    x[::2] += distance
    return x, x + 0.1 * torch.randn(samples, features)


def near_rows():
    """Rows in groups within which distances are a thousandth of their lengths, as of frames of one film."""
    x = torch.randn(1, 40).expand(32, -1) + torch.randn(4, 40).repeat_interleave(8, 0) + 1e-3 * torch.randn(32, 40)
    return x, x[:, ::2]


def hsic_problem(samples, width_x, width_y, **kwargs):
    """The same by name."""
    return dict(zip("xy", pair(samples, width_x, width_y, **kwargs), strict=True))


def run_problem(problem, **kwargs):
    """The value, and the gradients of it times fixed weights."""
    value = bdam_fast.hsic(**problem, **kwargs)
    weights = torch.linspace(0.5, 2, max(value.numel(), 1)).to(value)[: value.numel()].reshape(value.shape)
    return with_gradients(problem, {"value": value}, [weights])


def run_hsic(x, y, **kwargs):
    """The value and both gradients."""
    return run_problem(leaves({"x": x, "y": y}), **kwargs)


def check_hsic(x, y, **kwargs):
    """Kernel against the formula in float64 and in the inputs' own dtype."""
    return check(run_problem, {"x": x, "y": y}, **kwargs)


def worst(got, exact):
    """Largest error of the value and of the gradients, each over its own largest entry."""
    return max(((got[n].double() - v).abs().max() / v.abs().max()).item() for n, v in exact.items())


def rbf_error(x, y, **kwargs):
    """`worst` of hsic with RBF kernels against the reference in float64."""
    exact = run_hsic(x.double(), y.double(), kernel="rbf", **{**kwargs, "backend": "reference"})
    return worst(run_hsic(x, y, kernel="rbf", **kwargs), exact)
