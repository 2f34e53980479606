"""The raw operators of hsic by Triton kernels and, for the linear kernel of many samples, matrix products of PyTorch.

Up to 128 samples two launches do the whole batch, forward and backward (triton_small.py). Beyond, the Gaussian kernel goes
by tiles that are never kept (triton_kernels_tiles.py), in memory that grows with N, and the linear one by its smaller form:
N x N, or Dx x Dy.

N samples, Dx and Dy features.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import triton
from torch import Tensor

from ... import _autograd
from ..._triton import on_device
from .triton_kernels_tiles import count_kernel, gradient_kernel, norms_kernel, sums_kernel
from .triton_small import BLOCK_K, constants_of, small_backward, small_forward, strides

SMALL = 128  # samples: two kernel matrices fit the registers of a multiprocessor
BLOCK = 64  # samples on a side of a tile
WARPS = 8  # of a tile: with four the registers of sm_90 do not hold it
PROGRAMS = 512  # wanted: a few for each multiprocessor of a large GPU
_PRECISION = threading.Lock()  # the settings are the process's; the backward of another card is another thread
RADIX = ((20, 2048), (10, 1024), (0, 1024))  # passes over the 31 bits of a distance: lowest bit, bins
LEAST = -80.0  # of t, as in triton_kernels.py


def _is_small(samples: int) -> bool:
    return samples <= SMALL


def _by_samples(samples: int, width_x: int, width_y: int) -> bool:
    """True if the N x N matrices take fewer multiplications than Xc^T Yc; the rule of form_of in csrc/hsic/hsic.cpp."""
    return samples * (width_x + width_y) <= 2 * width_x * width_y


def saved_shape(samples: int, width_x: int, width_y: int, gaussian: bool) -> tuple[int, ...]:
    """Shape of what `forward` saves for each item: (sigma_x, t_x, sigma_y, t_y, both row sums), matrices, or nothing."""
    if gaussian:
        return (4 + 2 * samples,)
    if _is_small(samples):
        return (0,)
    return (2, samples, samples) if _by_samples(samples, width_x, width_y) else (width_x, width_y)


@contextmanager
def _full_precision(t: Tensor) -> Iterator[None]:
    """Matrix products in float32, whatever autocast and the user's settings of TF32 say, which are there again afterwards.

    PyTorch has an older setting and newer ones, and cuBLAS raises where they contradict each other; the older function sets
    both.
    """
    newer = torch.backends.cuda.matmul, torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    with _PRECISION, _autograd.full_precision(t.device):
        before = [setting.fp32_precision for setting in newer]
        older = _older_precision(before[0])
        try:
            torch.set_float32_matmul_precision("highest")
            yield
        finally:
            torch.set_float32_matmul_precision(older)
            for setting, value in zip(newer, before, strict=True):
                setting.fp32_precision = value


def _older_precision(newer: str) -> str:
    """torch.get_float32_matmul_precision, also where it refuses to answer because `newer` says the opposite."""
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:
        return "highest" if newer == "tf32" else "high"


def _centred(x: Tensor) -> Tensor:
    """x (batch, N, D) minus its mean over N, float32, contiguous; the first sample goes first, so that offsets cost nothing."""
    rows = x.float() - x[:, :1].float()
    return (rows - rows.mean(1, keepdim=True)).contiguous()


def forward(
    x: Tensor, y: Tensor, sigma_x: Tensor | None, sigma_y: Tensor | None, gaussian: bool, unbiased: bool
) -> tuple[Tensor, Tensor]:
    """`bdam_fast::hsic_forward`: value (batch,) float32, and `saved` (batch, *saved_shape) float32.

    x (batch, N, Dx) and y (batch, N, Dy) are of one dtype, float32, bfloat16 or float16, with any strides; sigma_x and
    sigma_y (batch,) are float32, or None for the median heuristic, which is exact.
    """
    batch, samples, width_x = x.shape
    width_y = y.shape[2]
    value = x.new_empty((batch,), dtype=torch.float32)
    saved = x.new_empty((batch, *saved_shape(samples, width_x, width_y, gaussian)), dtype=torch.float32)
    if batch == 0:
        return value, saved
    if _is_small(samples):
        small_forward(x, y, sigma_x, sigma_y, value, saved, gaussian, unbiased)
    else:
        with _full_precision(x), on_device(x):
            rows = _centred(x), _centred(y)
            if gaussian:
                value.copy_(_gaussian_value((x, y), rows, (sigma_x, sigma_y), saved, unbiased))
            else:
                value.copy_(_linear_value(rows, saved, unbiased))
    return value, saved


def backward(
    dvalue: Tensor, x: Tensor, y: Tensor, saved: Tensor, gaussian: bool, unbiased: bool
) -> tuple[Tensor, Tensor]:
    """`bdam_fast::hsic_backward`: (dx, dy) like x and y, for dvalue (batch,) float32; the widths are constants."""
    batch, samples, width_x = x.shape
    dx, dy = torch.empty_like(x), torch.empty_like(y)
    if batch == 0:
        return dx, dy
    upstream = dvalue.contiguous()
    if _is_small(samples):
        small_backward(upstream, x, y, saved, dx, dy, gaussian, unbiased)
        return dx, dy
    with _full_precision(x), on_device(x):
        rows = _centred(x), _centred(y)
        if gaussian:
            gradients = _gaussian_gradients((x, y), rows, saved, unbiased)
        else:
            gradients = _linear_gradients(rows, saved, unbiased)
        for to, gradient in zip((dx, dy), gradients, strict=True):
            to.copy_(upstream[:, None, None] * gradient)
    return dx, dy


def _linear_sums(rows: Tensor, unbiased: bool) -> Tensor:
    """Row sums (batch, N) of a linear kernel matrix: of centred rows only what a missing diagonal leaves."""
    return -rows.square().sum(2) if unbiased else rows.new_zeros(rows.shape[:2])


def _linear_value(rows: tuple[Tensor, Tensor], saved: Tensor, unbiased: bool) -> Tensor:
    """The value in float64; saves K and L, or Xc^T Yc."""
    scale, cross, product = constants_of(rows[0].shape[1], unbiased)
    sums_x, sums_y = (_linear_sums(r, unbiased).double() for r in rows)
    if saved.dim() == 4:
        for k in range(2):
            torch.bmm(rows[k], rows[k].mT, out=saved[:, k])
            if unbiased:
                saved[:, k].diagonal(dim1=1, dim2=2).zero_()
        both = (saved[:, 0] * saved[:, 1]).sum(2).double().sum(1)
    else:
        torch.bmm(rows[0].mT, rows[1], out=saved)
        both = saved.square().sum(2).double().sum(1) - (sums_x * sums_y).sum(1)  # |M|^2 has the diagonal in it
    return scale * (both - cross * (sums_x * sums_y).sum(1) + product * sums_x.sum(1) * sums_y.sum(1))


def _linear_gradients(rows: tuple[Tensor, Tensor], saved: Tensor, unbiased: bool) -> Iterator[Tensor]:
    """Gradients of the value by x and y: 2 scale S x, with S = L - cross / 2 (l_i + l_j) + product s_L and no diagonal."""
    scale, cross, product = constants_of(rows[0].shape[1], unbiased)
    for k in range(2):
        own, sums = rows[k], _linear_sums(rows[1 - k], unbiased)
        constant = (product * sums.sum(1))[:, None]
        if saved.dim() == 4:
            S = saved[:, 1 - k] - cross / 2 * (sums[:, :, None] + sums[:, None, :]) + constant[:, :, None]
            if unbiased:
                S.diagonal(dim1=1, dim2=2).zero_()
            yield 2 * scale * torch.bmm(S, own)
            continue
        gradient = torch.bmm(rows[1 - k], saved.mT if k == 0 else saved)
        if unbiased:
            shift = torch.bmm(sums[:, None, :], own)
            gradient = gradient - cross / 2 * shift + (sums * (1 + cross) - constant)[:, :, None] * own
        yield 2 * scale * gradient


def _tiles(rows: Tensor) -> int:
    return triton.cdiv(rows.shape[1], BLOCK)


def _splits(rows: Tensor) -> int:
    """Programs that share a tile of rows: by the shape alone, about PROGRAMS in all."""
    return max(1, min(_tiles(rows), PROGRAMS // (rows.shape[0] * _tiles(rows))))


def _norms(rows: Tensor) -> Tensor:
    """Squared lengths (batch, N) of centred rows."""
    batch, samples, width = rows.shape
    norms = rows.new_empty((batch, samples))
    norms_kernel[(batch * _tiles(rows),)](rows, norms, samples, width, BLOCK=BLOCK, BLOCK_K=BLOCK_K, num_warps=WARPS)
    return norms


def _median(x: Tensor, rows: Tensor, norms: Tensor) -> Tensor:
    """The lower median (batch,) of |x_i - x_j|^2, i < j: exact, ten or eleven of its bits a pass over all distances."""
    batch, samples, width = rows.shape
    splits = _splits(rows)
    rank = torch.full((batch, 1), (samples * (samples - 1) // 2 - 1) // 2, dtype=torch.int64, device=rows.device)
    prefix = torch.zeros((batch, 1), dtype=torch.int32, device=rows.device)
    for low, bins in RADIX:
        counts = torch.empty((batch, _tiles(rows) * splits, bins), dtype=torch.int32, device=rows.device)
        sizes = (samples, width, splits, *x.stride())
        count_kernel[(batch * _tiles(rows) * splits,)](
            rows, norms, x, prefix, counts, *sizes, LOW=low, BINS=bins, BLOCK=BLOCK, BLOCK_K=BLOCK_K, num_warps=WARPS
        )
        upto = counts.sum(1, dtype=torch.int64).cumsum(1)
        bin_ = (upto <= rank).sum(1, keepdim=True)
        rank = rank - torch.where(bin_ > 0, upto.gather(1, (bin_ - 1).clamp(min=0)), 0)
        prefix = (prefix * bins + bin_).to(torch.int32)
    return prefix[:, 0].view(torch.float32)


def _find_width(x: Tensor, rows: Tensor, norms: Tensor, sigma: Tensor | None, saved: Tensor) -> None:
    """Writes sigma and t = -m / (2 sigma^2) into saved (batch, 2): m is the median where it sets sigma, else the mean."""
    middle = norms.sum(1, dtype=torch.float64) * (2 / (rows.shape[1] - 1))
    if sigma is None:
        median = _median(x, rows, norms).double()
        middle = torch.where(median == 0, middle, median)
        sigma = torch.where(middle == 0, 1.0, (middle / 2).sqrt()).float()
    saved[:, 0] = sigma
    saved[:, 1] = (-0.5 * middle / sigma.double().square()).clamp(min=LEAST)


def _gaussian_value(
    given: tuple[Tensor, Tensor],
    rows: tuple[Tensor, Tensor],
    sigmas: tuple[Tensor | None, Tensor | None],
    saved: Tensor,
    unbiased: bool,
) -> Tensor:
    """The value in float64, of samples and their centred rows; fills `saved`."""
    batch, samples, _ = rows[0].shape
    norms = [_norms(r) for r in rows]
    for k in range(2):
        _find_width(given[k], rows[k], norms[k], sigmas[k], saved[:, 2 * k : 2 * k + 2])
    splits = _splits(rows[0])
    sums = saved.new_empty((splits, 3, batch, samples))
    sizes = (samples, rows[0].shape[2], rows[1].shape[2], splits, batch, *strides(1, *given))
    sums_kernel[(batch * _tiles(rows[0]) * splits,)](
        *rows, *norms, *given, saved, sums, *sizes, UNBIASED=unbiased, BLOCK=BLOCK, BLOCK_K=BLOCK_K, num_warps=WARPS
    )
    sums_x, sums_y, both = sums.sum(0, dtype=torch.float64)
    saved[:, 4 : 4 + samples], saved[:, 4 + samples :] = sums_x, sums_y
    scale, cross, product = constants_of(samples, unbiased)
    return scale * (both.sum(1) - cross * (sums_x * sums_y).sum(1) + product * sums_x.sum(1) * sums_y.sum(1))


def _gaussian_gradients(
    given: tuple[Tensor, Tensor], rows: tuple[Tensor, Tensor], saved: Tensor, unbiased: bool
) -> Iterator[Tensor]:
    """Gradients of the value by x and y: -2 scale / sigma^2 (w x - W x), with W = S * K and its row sums w."""
    batch, samples, _ = rows[0].shape
    scale, cross, product = constants_of(samples, unbiased)
    splits = _splits(rows[0])
    totals = saved[:, 4:].unflatten(1, (2, samples)).sum(2, dtype=torch.float64)
    constants = (product * totals).float()
    weighted = [r.new_empty((splits, *r.shape)) for r in rows]
    weights = saved.new_empty((splits, 2, batch, samples))
    sizes = (samples, rows[0].shape[2], rows[1].shape[2], splits, batch, cross / 2, *strides(1, *given))
    gradient_kernel[(batch * _tiles(rows[0]) * splits,)](
        *rows, *(_norms(r) for r in rows), *given, saved, constants, *weighted, weights, *sizes,
        UNBIASED=unbiased, BLOCK=BLOCK, BLOCK_K=BLOCK_K, num_warps=WARPS,
    )  # fmt: skip
    for k, own in enumerate(rows):
        factor = (-2 * scale / saved[:, 2 * k].square())[:, None, None]
        yield factor * (weights[:, k].sum(0)[:, :, None] * own - weighted[k].sum(0))
