"""hsic: each error text."""

import pytest
import torch

import bdam_fast
from bdam_fast.ops.hsic import op
from tests.ops.hsic.test_values import BACKENDS

X, Y = torch.ones(6, 3), torch.ones(6, 4)
CASES = {
    "x list": ({"x": [1.0]}, TypeError, "hsic: x must be a tensor, got list"),
    "y list": ({"y": [1.0]}, TypeError, "hsic: y must be a tensor, got list"),
    "x int": ({"x": X.int()}, TypeError, "hsic: x must be float32, bfloat16, float16 or float64, got torch.int32"),
    "y half": ({"y": Y.half()}, TypeError, "hsic: y must be torch.float32 like x, got torch.float16"),
    "x dim": ({"x": torch.ones(6)}, ValueError, r"hsic: x must have shape \(..., N, Dx\), got \(6,\)"),
    "y dim": ({"y": torch.ones(6)}, ValueError, r"hsic: y must have shape \(..., N, Dy\), got \(6,\)"),
    "no feature": ({"y": torch.ones(6, 0)}, ValueError, r"hsic: y must have a feature, got shape \(6, 0\)"),
    "samples": ({"y": torch.ones(7, 4)}, ValueError, r"hsic: y must have shape \(6, Dy\) like x, got \(7, 4\)"),
    "batch": ({"x": X.expand(2, 6, 3)}, ValueError, r"hsic: y must have shape \(2, 6, Dy\) like x, got \(6, 4\)"),
    "none": ({"x": X[:0], "y": Y[:0]}, ValueError, "hsic: the biased estimator needs at least 2 samples, got 0"),
    "one": ({"x": X[:1], "y": Y[:1]}, ValueError, "hsic: the biased estimator needs at least 2 samples, got 1"),
    "three": (
        {"x": X[:3], "y": Y[:3], "estimator": "unbiased"},
        ValueError,
        "hsic: the unbiased estimator needs at least 4 samples, got 3",
    ),
    "kernel": ({"kernel": "gauss"}, ValueError, "hsic: kernel must be one of linear, rbf, got 'gauss'"),
    "estimator": ({"estimator": "v"}, ValueError, "hsic: estimator must be one of biased, unbiased, got 'v'"),
    "linear": ({"sigma_x": 1.0}, ValueError, 'hsic: sigma_x is for kernel="rbf" only, got it with kernel="linear"'),
    "zero": ({"kernel": "rbf", "sigma_y": 0}, ValueError, "hsic: sigma_y must be positive and finite, got 0"),
    "nan": (
        {"kernel": "rbf", "sigma_y": float("nan")},
        ValueError,
        "hsic: sigma_y must be positive and finite, got nan",
    ),
    "entry": (
        {"kernel": "rbf", "sigma_x": torch.tensor(-1.0)},
        ValueError,
        "hsic: sigma_x must be positive and finite in every entry",
    ),
    "string": (
        {"kernel": "rbf", "sigma_x": "median"},
        TypeError,
        "hsic: sigma_x must be None, a number or a tensor, got str",
    ),
    "width shape": (
        {"kernel": "rbf", "sigma_x": torch.ones(2)},
        ValueError,
        r"hsic: sigma_x must broadcast to \(\), got \(2,\)",
    ),
    "width int": ({"kernel": "rbf", "sigma_x": torch.tensor(1)}, TypeError, "hsic: sigma_x must be float32, bfloat16"),
    "width gradient": (
        {"kernel": "rbf", "sigma_x": torch.tensor(1.0, requires_grad=True)},
        ValueError,
        "hsic: sigma_x must not require a gradient: it is a constant; pass sigma_x.detach",
    ),
    "device": ({"y": Y.to("meta")}, ValueError, "hsic: y must be on cpu like the first argument, got meta"),
    "backend": (
        {"backend": "fast"},
        ValueError,
        "hsic: backend must be one of auto, cuda, triton, cpu, reference, got 'fast'",
    ),
    "triton": ({"backend": "triton"}, ValueError, 'hsic: backend="triton" needs tensors on a GPU'),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", CASES)
def test_error(case, backend):
    changes, error, text = CASES[case]
    with pytest.raises(error, match=text):
        bdam_fast.hsic(**{"x": X, "y": Y, "backend": backend, **changes})


A, B = torch.ones(2, 6, 3), torch.ones(2, 6, 4)
RAW = {
    "dim": ((X, B, None, None, False, False), r"hsic: x must have shape \(batch, N, D\), got \(6, 3\)"),
    "samples": ((A[:, :1], B[:, :1], None, None, False, False), "hsic: needs at least 2 samples, got 1"),
    "unbiased": ((A[:, :3], B[:, :3], None, None, False, True), "hsic: needs at least 4 samples, got 3"),
    "dtype": ((A, B.double(), None, None, False, False), "hsic: x and y must have the same dtype"),
    "shape": ((A, B[:, :5], None, None, False, False), r"hsic: y must have shape \(2, 6, 4\), got \(2, 5, 4\)"),
    "feature": ((A[:, :, :0], B, None, None, False, False), "hsic: x must have at least one feature"),
    "width": ((A, B, torch.ones(2), None, False, False), "hsic: only the Gaussian kernel has a width"),
    "widths": ((A, B, torch.ones(3), None, True, False), r"hsic: sigma_x must have shape \(2,\), got \(3,\)"),
    "kind": ((A, B, torch.ones(2).double(), None, True, False), "hsic: sigma must be float32, or float64 for"),
    "gradient": ((A, B, torch.ones(2).requires_grad_(), None, True, False), "hsic: a width is a constant and has no"),
}


@pytest.mark.parametrize("case", RAW)
def test_raw_operator_checks_what_it_reads(case):
    with pytest.raises(RuntimeError, match=RAW[case][1]):
        op._raw()(*RAW[case][0])


def test_raw_backward_refuses_other_saved_values():
    value, saved = op._raw()(A, B, None, None, False, False)
    backward = torch.ops.bdam_fast.hsic_backward
    for bad in (saved[:, 1:], saved.double(), saved.t().contiguous().t()):
        with pytest.raises(RuntimeError, match="hsic: saved must (have shape|come from the forward of the same call)"):
            backward(value, A, B, bad, False, False)
    with pytest.raises(RuntimeError, match="hsic: dvalue must have the dtype of the value"):
        backward(value.double(), A, B, saved, False, False)


@pytest.mark.parametrize("place", [1, 2])
def test_raw_operator_does_not_mix_real_and_meta_tensors(place):
    args = list((A, B, torch.ones(2), None, True, False))
    args[place] = args[place].to("meta")
    with pytest.raises(ValueError, match="hsic: all tensors must be on cpu like the first argument, got meta"):
        op._raw()(*args)
