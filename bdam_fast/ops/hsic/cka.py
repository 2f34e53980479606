"""Centred kernel alignment on `hsic`. N samples, Dx and Dy features."""

from typing import Any

import torch
from torch import Tensor

from ... import _checks
from .op import checked_pair, hsic

# Lower bound of the HSIC of features with themselves, below which they count as constant. `scaled` ones have an entry of at
# least 1, and about 1 / N^2 where a single one of N rows differs from the others.
LEAST = 1e-12


def cka(
    x: Tensor,
    y: Tensor,
    *,
    kernel: str = "linear",
    sigma_x: float | Tensor | None = None,
    sigma_y: float | Tensor | None = None,
    estimator: str = "unbiased",
    minibatches: bool = False,
    backend: str = "auto",
) -> Tensor:
    """Centred kernel alignment of N paired samples: HSIC(x, y) / sqrt(HSIC(x, x) HSIC(y, y)), 1 for equal features.

    Cortes et al. 2012; Kornblith et al. 2019 (Similarity of Neural Network Representations Revisited). Unlike `hsic` it
    does not fall with the variance of the features. With linear kernels and biased estimators it grows with the number of
    features over that of samples, whatever they hold; unbiased ones are around 0 for independent features, and may be
    negative.

    Args:
        x: (..., N, Dx), y: (..., N, Dy); the leading dimensions are a batch of separate problems.
        kernel, sigma_x, sigma_y, backend: as in `hsic`.
        estimator: of all three HSIC, `unbiased` (N >= 4) or `biased` (N >= 2).
        minibatches: the last of the leading dimensions are minibatches of one problem, over which each of the three HSIC
            is averaged before they are divided (Nguyen et al. 2021, equation 3): with unbiased ones an estimate for all
            samples that does not depend on the size of a minibatch.

    Returns:
        (...), or (...) without its last dimension where those are minibatches; float32, or float64 for float64 inputs.
        0 where x or y is constant. Differentiable in x and y; the same bits at every call. With the linear kernel the same
        for x and y times any factor within the range of normal numbers.

    Raises:
        TypeError, ValueError, RuntimeError: as `hsic`; ValueError for `minibatches` without a leading dimension.
    """
    options: dict[str, Any] = {"kernel": kernel, "estimator": estimator, "backend": backend}
    if minibatches and isinstance(x, Tensor) and x.dim() < 3:
        raise ValueError(
            f"cka: x must have shape (..., minibatches, N, Dx) with minibatches=True, got {tuple(x.shape)}"
        )
    x, y = checked_pair(x, y, kernel, estimator)
    if kernel == "linear":
        x, y = (scaled(t, minibatches) for t in (x, y))
    if x.shape == y.shape and sigma_x is None and sigma_y is None:  # one call instead of three
        join = torch.stack if x.dim() == 2 else torch.cat
        xy, xx, yy = hsic(join([x, x, y]), join([y, x, y]), **options).view(3, *x.shape[:-2])
    else:
        xy = hsic(x, y, sigma_x=sigma_x, sigma_y=sigma_y, **options)
        xx = hsic(x, x, sigma_x=sigma_x, sigma_y=sigma_x, **options)
        yy = hsic(y, y, sigma_x=sigma_y, sigma_y=sigma_y, **options)
    if minibatches:
        xy, xx, yy = (value.mean(-1) for value in (xy, xx, yy))
    return alignment(xy, xx, yy)


def scaled(x: Tensor, minibatches: bool) -> Tensor:
    """Rows minus the first one, over a power of two that leaves the largest entry of a problem between 1 and 2.

    The linear HSIC goes as the fourth power of the features: of entries of 5e-4 it is at LEAST, of 1e9 beyond float32. CKA
    changes with neither the shift nor the factor, which are therefore constants in the gradient, and a power of two changes
    no digit. (..., N, D), or (..., minibatches, N, D) with one factor for all minibatches, since their HSIC are added.
    """
    if x.numel() == 0:
        return x
    x = x.to(_checks.sums_dtype(x))  # a difference of 16-bit numbers has more digits than they
    x = x - x.detach()[..., :1, :]
    dims = (-3, -2, -1) if minibatches else (-2, -1)
    largest = x.detach().abs().amax(dims, keepdim=True)
    largest = largest.clamp_min(torch.finfo(x.dtype).tiny)  # 0 where all rows are equal
    return x / (largest / (2 * torch.frexp(largest).mantissa))


def alignment(xy: Tensor, xx: Tensor, yy: Tensor) -> Tensor:
    """HSIC of x and y over the geometric mean of the HSIC of each with itself; 0 for a constant feature. Any one shape."""
    return xy / (xx.clamp_min(LEAST).sqrt() * yy.clamp_min(LEAST).sqrt())
