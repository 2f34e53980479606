"""The kernels' elementary functions on every instruction set: error in ulp against float64, the ends, and NaN."""

import math

import pytest
import torch
from torch import Tensor

from bdam_fast.ops.selective_scan import op

# By number: exact function, interval, largest error in ulp (BDAM_INLINE functions of csrc/common/simd.inl).
FUNCTIONS = {
    "exp2": (0, torch.exp2, (-126.0, 127.9), 1.1),
    "softplus": (1, lambda x: torch.where(x > 20, x, torch.log1p(torch.exp(x))), (-80.0, 60.0), 3.1),
    "sigmoid": (2, torch.sigmoid, (-80.0, 80.0), 2.7),
    "exp": (3, torch.exp, (-87.0, 88.0), 1.2),
}
# Value at inf, -inf, 0 and -1e4.
ENDS = {
    "exp2": [math.inf, 0.0, 1.0, 0.0],
    "softplus": [math.inf, 0.0, math.log(2), 0.0],
    "sigmoid": [1.0, 0.0, 0.5, 0.0],
    "exp": [math.inf, 0.0, 1.0, 0.0],
}


def evaluate(name: str, x: Tensor) -> Tensor:
    op.OPERATOR.raw()
    return torch.ops.bdam_fast.elementary(x, FUNCTIONS[name][0])


@pytest.mark.parametrize("name", FUNCTIONS)
def test_error(isa, name):
    _, exact, (low, high), bound = FUNCTIONS[name]
    x = torch.cat([torch.linspace(low, high, 400_003), torch.linspace(-2, 2, 200_001)])
    expected = exact(x.double())
    ulp = torch.nextafter(expected.float().abs(), torch.tensor(math.inf)).double() - expected.float().abs().double()
    error = ((evaluate(name, x).double() - expected).abs() / ulp).max().item()
    assert error <= bound


@pytest.mark.parametrize("name", FUNCTIONS)
def test_ends_and_nan(isa, name):
    got = evaluate(name, torch.tensor([math.inf, -math.inf, 0.0, -1e4]))
    assert got.tolist() == torch.tensor(ENDS[name]).tolist()
    assert evaluate(name, torch.tensor([math.nan])).isnan().all()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_rate_is_that_of_a_vector_function(kernels, name):
    assert 1e7 < kernels.elementary_rate(name) < 1e12


def test_unknown_rate_is_an_error(kernels):
    with pytest.raises(ValueError, match="elementary_rate: expected exp2, softplus, sigmoid or exp, got cosine"):
        kernels.elementary_rate("cosine")


@pytest.mark.parametrize(
    ("x", "function", "text"),
    [
        (torch.zeros(2, dtype=torch.float64), 0, "x must be contiguous float32"),
        (torch.zeros(2), 4, r"function must be within \[0, 4\), got 4"),
    ],
)
def test_bad_arguments(x, function, text):
    op.OPERATOR.raw()
    with pytest.raises(RuntimeError, match=f"elementary: {text}"):
        torch.ops.bdam_fast.elementary(x, function)
