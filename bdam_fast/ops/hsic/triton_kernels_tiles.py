"""Triton kernels of hsic's Gaussian kernel for many samples: tiles of both matrices, computed again whenever they are needed.

They work on centred rows (batch, N, D) in float32, contiguous, on their squared lengths `norms`, and where rows are close
on the samples as they were given. A program owns a tile of BLOCK rows and every `splits`-th tile of columns; what it adds
up is one slice of a result that is summed afterwards. One side is a tuple (centred rows, norms, samples as `feature` takes
them) of an item. N samples, D features, T tiles.
"""

import triton
import triton.language as tl

from .triton_kernels import (
    constant_of,
    diagonal,
    distances,
    gaussian,
    sensitivity,
    weighted_differences,
)

UNSPECIALIZED = ["N", "splits", "batch", "x_b", "y_b"]
# Features of close rows are read one by one: no access is wide.
UNALIGNED = ["x_ptr", "x_n", "x_d", "y_ptr", "y_n", "y_d"]


@triton.jit
def _program(N, splits, BLOCK: tl.constexpr):
    """(batch item, tile of rows, split, tiles) of this program."""
    tiles = tl.cdiv(N, BLOCK)
    pid = tl.program_id(0)
    return (pid // splits // tiles).to(tl.int64), pid // splits % tiles, pid % splits, tiles


@triton.jit
def _products(rows, i, j, N, D, BLOCK: tl.constexpr, BLOCK_K: tl.constexpr):
    """Inner products of the rows of tiles i and j."""
    at_i, at_j = i * BLOCK + tl.arange(0, BLOCK), j * BLOCK + tl.arange(0, BLOCK)
    products = tl.zeros([BLOCK, BLOCK], tl.float32)
    for k0 in range(0, D, BLOCK_K):
        d = k0 + tl.arange(0, BLOCK_K)
        own = rows + at_i.to(tl.int64)[:, None] * D + d[None, :]
        other = rows + at_j.to(tl.int64)[None, :] * D + d[:, None]
        a = tl.load(own, mask=(at_i < N)[:, None] & (d < D)[None, :], other=0.0)
        products = tl.dot(
            a, tl.load(other, mask=(at_j < N)[None, :] & (d < D)[:, None], other=0.0), products, input_precision="ieee"
        )
    return products


@triton.jit(do_not_specialize=UNSPECIALIZED)
def norms_kernel(rows_ptr, norms_ptr, N, D, BLOCK: tl.constexpr, BLOCK_K: tl.constexpr):
    """norms (batch, N), as the diagonals of tiles: added up in the order of all products."""
    b, i, _, _ = _program(N, 1, BLOCK)
    products = _products(rows_ptr + b * N * D, i, i, N, D, BLOCK, BLOCK_K)
    at = i * BLOCK + tl.arange(0, BLOCK)
    tl.store(norms_ptr + b * N + at, diagonal(products, BLOCK), mask=at < N)


@triton.jit
def _side(rows_ptr, norms_ptr, ptr, stride_b, stride_n, stride_d, b, N, D):
    """One side of item b."""
    return rows_ptr + b * N * D, norms_ptr + b * N, (ptr + b * stride_b, stride_n, stride_d)


@triton.jit
def _distances(side, i, j, N, D, BLOCK: tl.constexpr, BLOCK_K: tl.constexpr):
    at_i, at_j = i * BLOCK + tl.arange(0, BLOCK), j * BLOCK + tl.arange(0, BLOCK)
    norms_i = tl.load(side[1] + at_i, mask=at_i < N, other=0.0)
    norms_j = tl.load(side[1] + at_j, mask=at_j < N, other=0.0)
    products = _products(side[0], i, j, N, D, BLOCK, BLOCK_K)
    return distances(products, norms_i, norms_j, side[2], at_i, at_j, N, D)


@triton.jit(do_not_specialize=UNSPECIALIZED, do_not_specialize_on_alignment=UNALIGNED)
def count_kernel(
    rows_ptr, norms_ptr, x_ptr, prefix_ptr, counts_ptr, N, D, splits, x_b, x_n, x_d,
    LOW: tl.constexpr, BINS: tl.constexpr, BLOCK: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """counts (batch, T splits, BINS): distances i < j by the bits above the LOW lowest, given all bits above those."""
    b, i, split, tiles = _program(N, splits, BLOCK)
    side = _side(rows_ptr, norms_ptr, x_ptr, x_b, x_n, x_d, b, N, D)
    at_i = i * BLOCK + tl.arange(0, BLOCK)
    prefix = tl.load(prefix_ptr + b)
    counts = tl.zeros([BINS], tl.int32)
    for j in range(i + split, tiles, splits):
        at_j = j * BLOCK + tl.arange(0, BLOCK)
        distance, _ = _distances(side, i, j, N, D, BLOCK, BLOCK_K)
        bits = (distance.to(tl.int32, bitcast=True) & 0x7FFFFFFF) >> LOW
        counted = (at_i[:, None] < at_j[None, :]) & (at_j < N)[None, :] & (bits // BINS == prefix)
        counts += tl.histogram(tl.ravel(bits % BINS), BINS, mask=tl.ravel(counted))
    tl.store(counts_ptr + tl.program_id(0).to(tl.int64) * BINS + tl.arange(0, BINS), counts)


@triton.jit
def _tile(side, saved, i, j, N, D, UNBIASED: tl.constexpr, BLOCK: tl.constexpr, BLOCK_K: tl.constexpr):
    """(a tile of the kernel matrix, whether rows of it are close); `saved` points to sigma and t."""
    at_i, at_j = i * BLOCK + tl.arange(0, BLOCK), j * BLOCK + tl.arange(0, BLOCK)
    keep = (at_i < N)[:, None] & (at_j < N)[None, :]
    if UNBIASED:
        keep = keep & (at_i[:, None] != at_j[None, :])
    distance, close = _distances(side, i, j, N, D, BLOCK, BLOCK_K)
    return gaussian(distance, tl.load(saved), tl.load(saved + 1), keep), close


@triton.jit(do_not_specialize=UNSPECIALIZED, do_not_specialize_on_alignment=UNALIGNED)
def sums_kernel(
    rows_x_ptr, rows_y_ptr, norms_x_ptr, norms_y_ptr, x_ptr, y_ptr, saved_ptr, sums_ptr,
    N, DX, DY, splits, batch, x_b, x_n, x_d, y_b, y_n, y_d,
    UNBIASED: tl.constexpr, BLOCK: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """sums (splits, 3, batch, N): by rows, those of K, of L and of their product, over the columns of a split."""
    b, i, split, tiles = _program(N, splits, BLOCK)
    x = _side(rows_x_ptr, norms_x_ptr, x_ptr, x_b, x_n, x_d, b, N, DX)
    y = _side(rows_y_ptr, norms_y_ptr, y_ptr, y_b, y_n, y_d, b, N, DY)
    saved = saved_ptr + b * (4 + 2 * N)
    sums_x, sums_y = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
    both = tl.zeros([BLOCK], tl.float32)
    for j in range(split, tiles, splits):
        K, _ = _tile(x, saved, i, j, N, DX, UNBIASED, BLOCK, BLOCK_K)
        L, _ = _tile(y, saved + 2, i, j, N, DY, UNBIASED, BLOCK, BLOCK_K)
        sums_x += tl.sum(K, 1)
        sums_y += tl.sum(L, 1)
        both += tl.sum(K * L, 1)
    at = i * BLOCK + tl.arange(0, BLOCK)
    to = sums_ptr + (split * 3 * batch + b) * N + at
    tl.store(to, sums_x, mask=at < N)
    tl.store(to + tl.cast(batch, tl.int64) * N, sums_y, mask=at < N)
    tl.store(to + tl.cast(batch, tl.int64) * N * 2, both, mask=at < N)


@triton.jit
def _add_products(to, weights, rows, i, j, N, D, first, BLOCK: tl.constexpr, BLOCK_K: tl.constexpr):
    """Adds weights times the rows of tile j to the rows of tile i of `to`, which it fills where j is the first."""
    at_i, at_j = i * BLOCK + tl.arange(0, BLOCK), j * BLOCK + tl.arange(0, BLOCK)
    for k0 in range(0, D, BLOCK_K):
        d = k0 + tl.arange(0, BLOCK_K)
        ok = (at_i < N)[:, None] & (d < D)[None, :]
        at = to + at_i.to(tl.int64)[:, None] * D + d[None, :]
        from_ = rows + at_j.to(tl.int64)[:, None] * D + d[None, :]
        sums = tl.load(at, mask=ok & (j != first), other=0.0)
        own = tl.load(from_, mask=(at_j < N)[:, None] & (d < D)[None, :], other=0.0)
        tl.store(at, tl.dot(weights, own, sums, input_precision="ieee"), mask=ok)


@triton.jit
def _add_differences(to, weights, given, i, j, N, D, first, BLOCK: tl.constexpr):
    """The same with weights times what sample j differs by from sample i, which makes the weights' own sums unnecessary."""
    at_i, at_j = i * BLOCK + tl.arange(0, BLOCK), j * BLOCK + tl.arange(0, BLOCK)
    for d in range(0, D):
        at = to + at_i.to(tl.int64) * D + d
        sums = tl.load(at, mask=(at_i < N) & (j != first), other=0.0)
        tl.store(at, sums - weighted_differences(weights, given, at_i, at_j, d, N), mask=at_i < N)


@triton.jit
def _add_gradient(to, weights, side, close, i, j, N, D, first, BLOCK: tl.constexpr, BLOCK_K: tl.constexpr):
    """Adds to `to`, and returns the sums of the weights that are still to be multiplied with the tile's own rows.

    A thread reads what it has written itself; the barrier holds where the compiler lays the two accesses out differently.
    """
    totals = tl.zeros([BLOCK], tl.float32)
    if close:
        _add_differences(to, weights, side[2], i, j, N, D, first, BLOCK)
    else:
        totals += tl.sum(weights, 1)
        _add_products(to, weights, side[0], i, j, N, D, first, BLOCK, BLOCK_K)
    tl.debug_barrier()
    return totals


@triton.jit
def _weights(own, other, saved_own, sums, constant, i, j, N, half_cross, BLOCK: tl.constexpr):
    """W = S * K of a tile, without its diagonal, where a distance has no gradient."""
    at_i, at_j = i * BLOCK + tl.arange(0, BLOCK), j * BLOCK + tl.arange(0, BLOCK)
    sums_i = tl.load(sums + at_i, mask=at_i < N, other=0.0)
    sums_j = tl.load(sums + at_j, mask=at_j < N, other=0.0)
    weights = sensitivity(other, sums_i, sums_j, half_cross, constant) * (own + constant_of(tl.load(saved_own + 1)))
    keep = (at_i < N)[:, None] & (at_j < N)[None, :] & (at_i[:, None] != at_j[None, :])
    return tl.where(keep, weights, 0.0)


@triton.jit(do_not_specialize=UNSPECIALIZED, do_not_specialize_on_alignment=UNALIGNED)
def gradient_kernel(
    rows_x_ptr, rows_y_ptr, norms_x_ptr, norms_y_ptr, x_ptr, y_ptr, saved_ptr, constants_ptr, wx_ptr, wy_ptr, totals_ptr,
    N, DX, DY, splits, batch, half_cross, x_b, x_n, x_d, y_b, y_n, y_d,
    UNBIASED: tl.constexpr, BLOCK: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Over the columns of a split: wx, wy (splits, batch, N, D) = W x and W y, and totals (splits, 2, batch, N), W's sums.

    Of tiles with close rows W x - w x stands in wx and no w in totals. constants (batch, 2) are product s_K, product s_L.
    """
    b, i, split, tiles = _program(N, splits, BLOCK)
    x = _side(rows_x_ptr, norms_x_ptr, x_ptr, x_b, x_n, x_d, b, N, DX)
    y = _side(rows_y_ptr, norms_y_ptr, y_ptr, y_b, y_n, y_d, b, N, DY)
    saved = saved_ptr + b * (4 + 2 * N)
    constant_x, constant_y = tl.load(constants_ptr + 2 * b), tl.load(constants_ptr + 2 * b + 1)
    wx, wy = wx_ptr + (split * batch + b) * N * DX, wy_ptr + (split * batch + b) * N * DY
    total_x, total_y = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
    for j in range(split, tiles, splits):
        K, close_x = _tile(x, saved, i, j, N, DX, UNBIASED, BLOCK, BLOCK_K)
        L, close_y = _tile(y, saved + 2, i, j, N, DY, UNBIASED, BLOCK, BLOCK_K)
        weights = _weights(K, L, saved, saved + 4 + N, constant_y, i, j, N, half_cross, BLOCK)
        total_x += _add_gradient(wx, weights, x, close_x, i, j, N, DX, split, BLOCK, BLOCK_K)
        weights = _weights(L, K, saved + 2, saved + 4, constant_x, i, j, N, half_cross, BLOCK)
        total_y += _add_gradient(wy, weights, y, close_y, i, j, N, DY, split, BLOCK, BLOCK_K)
    at = i * BLOCK + tl.arange(0, BLOCK)
    to = totals_ptr + (split * 2 * batch + b) * N + at
    tl.store(to, total_x, mask=at < N)
    tl.store(to + tl.cast(batch, tl.int64) * N, total_y, mask=at < N)
