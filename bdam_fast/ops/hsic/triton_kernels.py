"""Triton device functions of hsic, and the kernels of small problems: one program, and one launch, for all of an item.

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

from ..._triton import LOG2E, rounded

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
def _rows(columns, stride_n, stride_d, i, d, offset, N, D):
    """Features d of samples i, minus `offset`, float32; zero behind the last. `columns` points to the first sample."""
    ok = (i < N)[:, None] & (d < D)[None, :]
    at = columns + i.to(tl.int64)[:, None] * stride_n + d.to(tl.int64)[None, :] * stride_d
    return tl.where(ok, tl.load(at, mask=ok, other=0.0).to(tl.float32) - offset[None, :], 0.0)


@triton.jit
def _means(columns, stride_n, stride_d, d, N, D, BLOCK: tl.constexpr):
    """(first sample, all rows minus it, their mean): two parts of the mean, so that a large offset costs nothing."""
    first = tl.load(columns + d.to(tl.int64) * stride_d, mask=d < D, other=0.0).to(tl.float32)
    rows = _rows(columns, stride_n, stride_d, tl.arange(0, BLOCK), d, first, N, D)
    return first, rows, tl.sum(rows, 0) / N


@triton.jit
def _gram(columns, stride_n, stride_d, N, D, BLOCK: tl.constexpr, BLOCK_K: tl.constexpr):
    """Inner products of all centred samples."""
    products = tl.zeros([BLOCK, BLOCK], tl.float32)
    for k0 in range(0, D, BLOCK_K):
        _, rows, mean = _means(columns, stride_n, stride_d, k0 + tl.arange(0, BLOCK_K), N, D, BLOCK)
        rows = tl.where((tl.arange(0, BLOCK) < N)[:, None], rows - mean[None, :], 0.0)
        products = tl.dot(rows, tl.trans(rows), products, input_precision="ieee")
    return products


@triton.jit
def _median(distance, pairs, N):
    """The lower median of the distances in `pairs`: the least one with rank + 1 at or below it, bit by bit.

    Bits of numbers >= 0 are ordered as the numbers are, and those of a NaN come last.
    """
    bits = tl.where(pairs, distance.to(tl.int32, bitcast=True) & 0x7FFFFFFF, 0x7FFFFFFF)
    rank = (N * (N - 1) // 2 - 1) // 2
    found = tl.zeros([], tl.int32)
    for k in range(0, 31):
        step = 1 << (30 - k)
        below = tl.sum(tl.sum((bits <= found + (step - 1)).to(tl.int32), 1), 0)
        found = tl.where(below <= rank, found + step, found)
    return found.to(tl.float32, bitcast=True)


@triton.jit
def _width(sigma_ptr, b, distance, mean, i, N):
    """(sigma, t): sigma as given, or sqrt(m / 2) for the median m of the distances, or for the mean if that is 0, or 1.

    t = -m / (2 sigma^2), for a given sigma with the mean as m.
    """
    if sigma_ptr is not None:
        sigma = tl.load(sigma_ptr + b)
        shift = -0.5 * mean / (sigma * sigma)
        return sigma, tl.where(shift < LEAST, LEAST, shift)
    else:
        pairs = (i[:, None] < i[None, :]) & (i < N)[None, :]
        middle = _median(distance, pairs, N)
        middle = tl.where(middle == 0.0, mean, middle)
        sigma = tl.where(middle == 0.0, 1.0, tl.sqrt(middle * 0.5))
        return sigma, -0.5 * middle / (sigma * sigma)


@triton.jit
def _matrix(
    given, sigma_ptr, saved, sums_ptr, b, N, D,
    FIND: tl.constexpr, GAUSSIAN: tl.constexpr, UNBIASED: tl.constexpr, BLOCK: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """(kernel matrix, row sums, t, whether rows are close) of one side, zero behind N; FIND: sigma, t and sums are saved."""
    i = tl.arange(0, BLOCK)
    keep = (i < N)[:, None] & (i < N)[None, :]
    if UNBIASED:
        keep = keep & (i[:, None] != i[None, :])
    products = _gram(given[0], given[1], given[2], N, D, BLOCK, BLOCK_K)
    norms = diagonal(products, BLOCK)
    if not GAUSSIAN:  # centred rows have no sums but what the diagonal leaves
        return tl.where(keep, products, 0.0), -norms if UNBIASED else norms * 0.0, 0.0, False
    else:
        distance, close = distances(products, norms, norms, given, i, i, N, D)
        if FIND:
            sigma, shift = _width(sigma_ptr, b, distance, tl.sum(norms, 0) * 2.0 / (N - 1), i, N)
            matrix = gaussian(distance, sigma, shift, keep)
            sums = tl.sum(matrix, 1)
            tl.store(saved, sigma)
            tl.store(saved + 1, shift)
            tl.store(sums_ptr + i, sums, mask=i < N)
            return matrix, sums, shift, close
        else:
            shift = tl.load(saved + 1)
            matrix = gaussian(distance, tl.load(saved), shift, keep)
            return matrix, tl.load(sums_ptr + i, mask=i < N, other=0.0), shift, close


UNSPECIALIZED = ["N", "x_b", "y_b", "dx_b", "dy_b"]


@triton.jit(do_not_specialize=UNSPECIALIZED)
def small_forward_kernel(
    x_ptr, y_ptr, sigma_x_ptr, sigma_y_ptr, value_ptr, saved_ptr,
    N, DX, DY, x_b, x_n, x_d, y_b, y_n, y_d, scale, cross, product,
    GAUSSIAN: tl.constexpr, UNBIASED: tl.constexpr, UNIT: tl.constexpr, BLOCK: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """The value of one item a program; saved (batch, 4 + 2 N) with GAUSSIAN: sigma and t of x and of y, both sums."""
    b = tl.program_id(0).to(tl.int64)
    saved = saved_ptr + b * (4 + 2 * N)
    x, y = (x_ptr + b * x_b * UNIT, x_n, x_d), (y_ptr + b * y_b * UNIT, y_n, y_d)
    K, sums_x, _, _ = _matrix(x, sigma_x_ptr, saved, saved + 4, b, N, DX, True, GAUSSIAN, UNBIASED, BLOCK, BLOCK_K)
    to, sums = saved + 2, saved + 4 + N
    L, sums_y, _, _ = _matrix(y, sigma_y_ptr, to, sums, b, N, DY, True, GAUSSIAN, UNBIASED, BLOCK, BLOCK_K)
    value = tl.sum(tl.sum(K * L, 1), 0) - cross * tl.sum(sums_x * sums_y, 0)
    tl.store(value_ptr + b, scale * (value + product * tl.sum(sums_x, 0) * tl.sum(sums_y, 0)))


@triton.jit
def _products_gradient(
    weights, totals, given, store, gradient_ptr, to, factor, N, D,
    GAUSSIAN: tl.constexpr, BLOCK: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """factor (w x - W x), or factor W x without GAUSSIAN, for weights W with sums w; `to` is like `given`.

    The weights pass through memory, `store` [BLOCK, BLOCK], and are multiplied BLOCK_K columns at a time: a product over
    all 128 columns would need them in registers (2.7 kB of spills a thread on sm_90).
    """
    i = tl.arange(0, BLOCK)
    tl.debug_barrier()
    tl.store(store + i[:, None] * BLOCK + i[None, :], weights)
    tl.debug_barrier()
    for k0 in range(0, D, BLOCK_K):
        d = k0 + tl.arange(0, BLOCK_K)
        first, rows, mean = _means(given[0], given[1], given[2], d, N, D, BLOCK)
        sums = tl.zeros([BLOCK, BLOCK_K], tl.float32)
        for j0 in range(0, N, BLOCK_K):
            j = j0 + tl.arange(0, BLOCK_K)
            others = _rows(given[0], given[1], given[2], j, d, first, N, D) - mean[None, :]
            part = tl.load(store + i[:, None] * BLOCK + j[None, :])
            sums = tl.dot(part, others, sums, input_precision="ieee")
        if GAUSSIAN:
            sums = totals[:, None] * (rows - mean[None, :]) - sums
        at = to[0] + i.to(tl.int64)[:, None] * to[1] + d.to(tl.int64)[None, :] * to[2]
        value = rounded(factor * sums, gradient_ptr.dtype.element_ty)
        tl.store(at, value, mask=(i < N)[:, None] & (d < D)[None, :])


@triton.jit
def weighted_differences(weights, given, i, j, d, N):
    """Sums over j of weights times the difference of samples i and j in feature d, which w x - W x would lose."""
    return tl.sum(weights * (feature(given, i, d, N)[:, None] - feature(given, j, d, N)[None, :]), 1)


@triton.jit
def _write_gradient(
    own, other, other_sums, given, close, store, gradient_ptr, to, sigma, shift, N, D, scale, cross, product,
    GAUSSIAN: tl.constexpr, UNBIASED: tl.constexpr, BLOCK: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """The gradient of one side. Linear: 2 scale S x. Gaussian: -2 scale / sigma^2 (w x - W x), W = S * K, w its sums."""
    i = tl.arange(0, BLOCK)
    keep = (i < N)[:, None] & (i < N)[None, :]
    if GAUSSIAN or UNBIASED:
        keep = keep & (i[:, None] != i[None, :])
    weights = sensitivity(other, other_sums, other_sums, 0.5 * cross, product * tl.sum(other_sums, 0))
    factor = 2.0 * scale
    if GAUSSIAN:
        weights = weights * (own + constant_of(shift))
        factor = -factor / (sigma * sigma)
    weights = tl.where(keep, weights, 0.0)
    totals = tl.sum(weights, 1)
    if close:
        for d in range(0, D):
            sums = factor * weighted_differences(weights, given, i, i, d, N)
            at = to[0] + i.to(tl.int64) * to[1] + tl.cast(d, tl.int64) * to[2]
            tl.store(at, rounded(sums, gradient_ptr.dtype.element_ty), mask=i < N)
    else:
        _products_gradient(weights, totals, given, store, gradient_ptr, to, factor, N, D, GAUSSIAN, BLOCK, BLOCK_K)


@triton.jit(do_not_specialize=UNSPECIALIZED)
def small_backward_kernel(
    dvalue_ptr, x_ptr, y_ptr, saved_ptr, weights_ptr, dx_ptr, dy_ptr,
    N, DX, DY, x_b, x_n, x_d, y_b, y_n, y_d, dx_b, dx_n, dx_d, dy_b, dy_n, dy_d, scale, cross, product,
    GAUSSIAN: tl.constexpr, UNBIASED: tl.constexpr, UNIT: tl.constexpr, BLOCK: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Both gradients of one item a program, from kernel matrices that are computed again."""
    b = tl.program_id(0).to(tl.int64)
    saved = saved_ptr + b * (4 + 2 * N)
    x, y = (x_ptr + b * x_b * UNIT, x_n, x_d), (y_ptr + b * y_b * UNIT, y_n, y_d)
    dx, dy = (dx_ptr + b * dx_b * UNIT, dx_n, dx_d), (dy_ptr + b * dy_b * UNIT, dy_n, dy_d)
    K, sums_x, t_x, close_x = _matrix(
        x, None, saved, saved + 4, b, N, DX, False, GAUSSIAN, UNBIASED, BLOCK, BLOCK_K
    )  # fmt: skip
    L, sums_y, t_y, close_y = _matrix(
        y, None, saved + 2, saved + 4 + N, b, N, DY, False, GAUSSIAN, UNBIASED, BLOCK, BLOCK_K
    )  # fmt: skip
    sigma_x, sigma_y = 1.0, 1.0
    if GAUSSIAN:
        sigma_x, sigma_y = tl.load(saved), tl.load(saved + 2)
    scale *= tl.load(dvalue_ptr + b)
    store = weights_ptr + b * BLOCK * BLOCK
    _write_gradient(
        K, L, sums_y, x, close_x, store, dx_ptr, dx, sigma_x, t_x, N, DX,
        scale, cross, product, GAUSSIAN, UNBIASED, BLOCK, BLOCK_K,
    )  # fmt: skip
    _write_gradient(
        L, K, sums_x, y, close_y, store, dy_ptr, dy, sigma_y, t_y, N, DY,
        scale, cross, product, GAUSSIAN, UNBIASED, BLOCK, BLOCK_K,
    )  # fmt: skip
