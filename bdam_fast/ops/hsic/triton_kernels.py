"""Triton device functions of hsic that its kernels share: those of small problems and those of tiles.

With kernel matrices K of x and L of y, row sums r and totals s, and the constants that csrc/hsic/hsic.h derives:
value = scale (<K, L> - cross r_K . r_L + product s_K s_L). x and y are centred first; a Gaussian kernel is kept as
c expm1(t_ij - t) with its value c = exp(t) at the mean distance taken off, so that nothing is lost to what cancels.
Products are float32 in full (`ieee`), and all of one length are added in one order, so that equal rows have distance 0.
Distances of rows that are close come from their differences, and so do the gradients of a tile with such rows: in products
of centred rows they would lose their digits where one entry, or the way from one cluster to another, is large.

Triton compiles once for all N and batches: it specialises neither, and batch strides come as multiples of UNIT (`unit_of`).

N samples, D features.
"""

import triton
import triton.language as tl

from ..._triton import LOG2E

LEAST = tl.constexpr(-80.0)  # of t: its exp and that of its negative are normal numbers
CLOSE = tl.constexpr(1 / 32)  # of the sum of two squared lengths; as in csrc/hsic/hsic.h


@triton.jit
def _exp_parts(x):
    """(q, p) with e^x = q (1 + p): q a power of two, p = e^r - 1 to float32, |r| <= ln(2) / 2; x below -86 counts as -86."""
    x = tl.where(x < -86.0, -86.0, x)
    n = tl.floor(x * LOG2E + 0.5)
    r = x - n * 0.693145751953125 - n * 1.4286068203094172e-06  # ln 2 in two parts: n times the first is exact
    p = 1 / 24 + r * (1 / 120 + r * (1 / 720 + r * (1 / 5040)))
    p = r * (1.0 + r * (0.5 + r * (1 / 6 + r * p)))
    return ((n.to(tl.int32) + 127) << 23).to(tl.float32, bitcast=True), p


@triton.jit
def feature(given, i, d, N):
    """Feature d of samples i as they were given, float32; `given` is (pointer to the first sample, two strides)."""
    at = given[0] + i.to(tl.int64) * given[1] + tl.cast(d, tl.int64) * given[2]
    return tl.load(at, mask=i < N, other=0.0).to(tl.float32)


@triton.jit
def distances(gram, norms_i, norms_j, given, i, j, N, D):
    """(squared distances of samples i and j from their inner products, whether some are close); NaN stays NaN."""
    lengths = norms_i[:, None] + norms_j[None, :]
    d = lengths - 2.0 * gram
    d = tl.where(d < 0.0, 0.0, d)
    close = (d < lengths * CLOSE) & (i[:, None] != j[None, :]) & (i < N)[:, None] & (j < N)[None, :]
    some = tl.max(tl.max(close.to(tl.int32), 1), 0) > 0
    if some:
        exact = tl.zeros(gram.shape, tl.float32)
        for k in range(0, D):
            difference = feature(given, i, k, N)[:, None] - feature(given, j, k, N)[None, :]
            exact += difference * difference
        d = tl.where(close, exact, d)
    return d, some


@triton.jit
def constant_of(shift):
    """c = exp(t)."""
    q, p = _exp_parts(shift)
    return q + q * p


@triton.jit
def gaussian(distance, sigma, shift, keep):
    """c expm1(t_ij - t), t_ij = -d^2 / (2 sigma^2); zero where not `keep`."""
    q, p = _exp_parts(-0.5 / (sigma * sigma) * distance - shift)
    return tl.where(keep, constant_of(shift) * (q * p + (q - 1.0)), 0.0)


@triton.jit
def diagonal(square, BLOCK: tl.constexpr):
    """The diagonal of a square tile."""
    i = tl.arange(0, BLOCK)
    return tl.sum(tl.where(i[:, None] == i[None, :], square, 0.0), 1)


@triton.jit
def sensitivity(other, sums_i, sums_j, half_cross, constant):
    """The gradient of the value by a tile of a kernel matrix, over `scale`; `other` and its sums are the other matrix's."""
    return other - half_cross * (sums_i[:, None] + sums_j[None, :]) + constant


@triton.jit
def weighted_differences(weights, given, i, j, d, N):
    """Sums over j of weights times the difference of samples i and j in feature d, which w x - W x would lose."""
    return tl.sum(weights * (feature(given, i, d, N)[:, None] - feature(given, j, d, N)[None, :]), 1)
