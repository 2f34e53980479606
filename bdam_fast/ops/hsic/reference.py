"""HSIC in plain PyTorch by its textbook formula: any device, any floating dtype, differentiable by plain autograd.

N samples, D features.
"""

import torch
from torch import Tensor

from ... import _autograd, _native


def squared_distances(x: Tensor) -> Tensor:
    """Squared Euclidean distances between the rows of x (..., N, D) -> (..., N, N), from the differences themselves."""
    return (x[..., :, None, :] - x[..., None, :, :]).square().sum(-1)


def median_sigma(x: Tensor) -> Tensor:
    """Width of the median heuristic, (..., N, D) -> (...): sqrt(m / 2), m the lower median of |x_i - x_j|^2 over i < j.

    Where that median is zero (at least half of the pairs coincide) m is the mean over i < j; where all rows coincide
    the width is 1.
    """
    n = x.shape[-2]
    i, j = torch.triu_indices(n, n, 1, device=x.device)
    pairs = squared_distances(x.detach())[..., i, j]
    middle = pairs.median(-1).values
    middle = torch.where(middle == 0, pairs.mean(-1), middle)
    return torch.where(middle == 0, torch.ones_like(middle), (middle / 2).sqrt())


def gram(x: Tensor, gaussian: bool, sigma: Tensor | None) -> Tensor:
    """Kernel matrix of the rows of x: x x^T of centred rows, or exp(-|x_i - x_j|^2 / (2 sigma^2)).

    HSIC does not change when x is shifted, but x x^T loses its digits to an offset. The first row goes first, which takes
    an offset away without rounding.
    """
    if not gaussian:
        x = x - x[..., :1, :]
        x = x - x.mean(-2, keepdim=True)
        return x @ x.mT
    width = median_sigma(x) if sigma is None else sigma.to(x.dtype)
    return torch.exp(squared_distances(x) / (-2 * width.square())[..., None, None])


def hsic_reference(
    x: Tensor, y: Tensor, sigma_x: Tensor | None, sigma_y: Tensor | None, gaussian: bool, unbiased: bool
) -> Tensor:
    """`hsic` of checked arguments, x (..., N, Dx), y (..., N, Dy) -> (...), in float32 (float64 for float64)."""
    _native.count_call("hsic.reference.forward")
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    with _autograd.full_precision(x.device):
        n = x.shape[-2]
        K, L = gram(x.to(dtype), gaussian, sigma_x), gram(y.to(dtype), gaussian, sigma_y)
        if not unbiased:
            H = torch.eye(n, dtype=dtype, device=x.device) - 1 / n
            return (K @ H @ L @ H).diagonal(dim1=-2, dim2=-1).sum(-1) / (n - 1) ** 2
        off = 1 - torch.eye(n, dtype=dtype, device=x.device)
        K, L = K * off, L * off
        both = (K * L).sum((-2, -1))
        product = K.sum((-2, -1)) * L.sum((-2, -1)) / ((n - 1) * (n - 2))
        cross = (K.sum(-1) * L.sum(-1)).sum(-1) * 2 / (n - 2)
        return (both + product - cross) / (n * (n - 3))
