"""Triton kernels of hsic for small problems, of which a program holds both kernel matrices; see triton_kernels.py for more.

What takes long is spread over programs by parts of the features: small_gram_kernel multiplies a part of one side, and
small_backward_kernel writes the gradient of a part. Each program has both kernel matrices from the sum of the parts, in one
order, whatever the batch.

N samples, D features.
"""

import triton
import triton.language as tl

from ..._triton import rounded
from .triton_kernels import LEAST, constant_of, diagonal, distances, gaussian, sensitivity, weighted_differences


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
def _gram(columns, stride_n, stride_d, begin, share, N, D, BLOCK: tl.constexpr, BLOCK_K: tl.constexpr):
    """Inner products of all centred samples, of the features of a part."""
    products = tl.zeros([BLOCK, BLOCK], tl.float32)
    for k0 in range(begin, tl.minimum(begin + share, D), BLOCK_K):
        _, rows, mean = _means(columns, stride_n, stride_d, k0 + tl.arange(0, BLOCK_K), N, D, BLOCK)
        rows = tl.where((tl.arange(0, BLOCK) < N)[:, None], rows - mean[None, :], 0.0)
        products = tl.dot(rows, tl.trans(rows), products, input_precision="ieee")
    return products


@triton.jit
def _all_parts(grams, parts, BLOCK: tl.constexpr, UNROLL: tl.constexpr):
    """The sum of the parts' inner products."""
    i = tl.arange(0, BLOCK)
    at = grams + i[:, None] * BLOCK + i[None, :]
    products = tl.zeros([BLOCK, BLOCK], tl.float32)
    for _ in tl.range(0, parts, loop_unroll_factor=UNROLL):
        products += tl.load(at)
        at += BLOCK * BLOCK
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
        below = tl.sum((bits <= found + (step - 1)).to(tl.int32))
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
    given, grams, parts, sigma_ptr, saved, sums_ptr, b, N, D,
    FIND: tl.constexpr, GAUSSIAN: tl.constexpr, UNBIASED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """(kernel matrix, row sums, t, whether rows are close) of one side, zero behind N; FIND: sigma, t and sums are saved."""
    i = tl.arange(0, BLOCK)
    keep = (i < N)[:, None] & (i < N)[None, :]
    if UNBIASED:
        keep = keep & (i[:, None] != i[None, :])
    # Only the forward has registers for several parts at a time, and not those of 128 samples.
    products = _all_parts(grams, parts, BLOCK, 4 if FIND and BLOCK <= 64 else 1)
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
def small_gram_kernel(
    x_ptr, y_ptr, grams_ptr, N, DX, DY, share, x_b, x_n, x_d, y_b, y_n, y_d,
    UNIT: tl.constexpr, BLOCK: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """The inner products of a part of x or y a program: grams (batch, parts of x and then of y, BLOCK, BLOCK)."""
    parts_x, parts_y = tl.cdiv(DX, share), tl.cdiv(DY, share)
    b = (tl.program_id(0) // (parts_x + parts_y)).to(tl.int64)
    part = tl.program_id(0) % (parts_x + parts_y)
    if part < parts_x:
        products = _gram(x_ptr + b * x_b * UNIT, x_n, x_d, part * share, share, N, DX, BLOCK, BLOCK_K)
    else:
        products = _gram(y_ptr + b * y_b * UNIT, y_n, y_d, (part - parts_x) * share, share, N, DY, BLOCK, BLOCK_K)
    i = tl.arange(0, BLOCK)
    at = grams_ptr + tl.program_id(0).to(tl.int64) * (BLOCK * BLOCK) + i[:, None] * BLOCK + i[None, :]
    tl.store(at, products)


@triton.jit(do_not_specialize=UNSPECIALIZED)
def small_forward_kernel(
    x_ptr, y_ptr, grams_ptr, sigma_x_ptr, sigma_y_ptr, value_ptr, saved_ptr,
    N, DX, DY, share, x_b, x_n, x_d, y_b, y_n, y_d, scale, cross, product,
    GAUSSIAN: tl.constexpr, UNBIASED: tl.constexpr, UNIT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The value of one item a program; saved (batch, 4 + 2 N) with GAUSSIAN: sigma and t of x and of y, both sums."""
    b = tl.program_id(0).to(tl.int64)
    saved = saved_ptr + b * (4 + 2 * N)
    x, y = (x_ptr + b * x_b * UNIT, x_n, x_d), (y_ptr + b * y_b * UNIT, y_n, y_d)
    parts_x, parts_y = tl.cdiv(DX, share), tl.cdiv(DY, share)
    grams = grams_ptr + b * (parts_x + parts_y) * (BLOCK * BLOCK)
    K, sums_x, _, _ = _matrix(
        x, grams, parts_x, sigma_x_ptr, saved, saved + 4, b, N, DX, True, GAUSSIAN, UNBIASED, BLOCK
    )  # fmt: skip
    grams, to, sums = grams + parts_x * (BLOCK * BLOCK), saved + 2, saved + 4 + N
    L, sums_y, _, _ = _matrix(y, grams, parts_y, sigma_y_ptr, to, sums, b, N, DY, True, GAUSSIAN, UNBIASED, BLOCK)
    value = tl.sum(tl.sum(K * L, 1), 0) - cross * tl.sum(sums_x * sums_y, 0)
    tl.store(value_ptr + b, scale * (value + product * tl.sum(sums_x, 0) * tl.sum(sums_y, 0)))


@triton.jit
def _products_gradient(
    weights, totals, given, store, gradient_ptr, to, factor, begin, end, N, D,
    GAUSSIAN: tl.constexpr, BLOCK: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """factor (w x - W x), or factor W x without GAUSSIAN, for weights W with sums w, features `begin` to `end`.

    `to` is like `given`.

    The weights pass through memory, `store` [BLOCK, BLOCK], and are multiplied BLOCK_K columns at a time: a product over
    all 128 columns would need them in registers (2.7 kB of spills a thread on sm_90).
    """
    i = tl.arange(0, BLOCK)
    tl.debug_barrier()
    tl.store(store + i[:, None] * BLOCK + i[None, :], weights)
    tl.debug_barrier()
    for k0 in range(begin, end, BLOCK_K):
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
def _write_gradient(
    own, other, other_sums, given, close, store, gradient_ptr, to, sigma, shift, begin, share, N, D, scale, cross, product,
    GAUSSIAN: tl.constexpr, UNBIASED: tl.constexpr, BLOCK: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """A part of one side's gradient. Linear: 2 scale S x. Gaussian: -2 scale / sigma^2 (w x - W x), W = S * K, w its sums."""
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
    end = tl.minimum(begin + share, D)
    if close:
        for d in range(begin, end):
            sums = factor * weighted_differences(weights, given, i, i, d, N)
            at = to[0] + i.to(tl.int64) * to[1] + tl.cast(d, tl.int64) * to[2]
            tl.store(at, rounded(sums, gradient_ptr.dtype.element_ty), mask=i < N)
    else:
        _products_gradient(
            weights, totals, given, store, gradient_ptr, to, factor, begin, end, N, D, GAUSSIAN, BLOCK, BLOCK_K
        )  # fmt: skip


@triton.jit(do_not_specialize=UNSPECIALIZED)
def small_backward_kernel(
    dvalue_ptr, x_ptr, y_ptr, grams_ptr, saved_ptr, weights_ptr, dx_ptr, dy_ptr,
    N, DX, DY, share, x_b, x_n, x_d, y_b, y_n, y_d, dx_b, dx_n, dx_d, dy_b, dy_n, dy_d, scale, cross, product,
    GAUSSIAN: tl.constexpr, UNBIASED: tl.constexpr, UNIT: tl.constexpr, BLOCK: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """The gradient of a part of x or y a program."""
    parts_x, parts_y = tl.cdiv(DX, share), tl.cdiv(DY, share)
    b = (tl.program_id(0) // (parts_x + parts_y)).to(tl.int64)
    part = tl.program_id(0) % (parts_x + parts_y)
    saved = saved_ptr + b * (4 + 2 * N)
    x, y = (x_ptr + b * x_b * UNIT, x_n, x_d), (y_ptr + b * y_b * UNIT, y_n, y_d)
    grams = grams_ptr + b * (parts_x + parts_y) * (BLOCK * BLOCK)
    K, sums_x, t_x, close_x = _matrix(
        x, grams, parts_x, None, saved, saved + 4, b, N, DX, False, GAUSSIAN, UNBIASED, BLOCK
    )  # fmt: skip
    grams, sums = grams + parts_x * (BLOCK * BLOCK), saved + 4 + N
    L, sums_y, t_y, close_y = _matrix(
        y, grams, parts_y, None, saved + 2, sums, b, N, DY, False, GAUSSIAN, UNBIASED, BLOCK
    )  # fmt: skip
    sigma_x, sigma_y = 1.0, 1.0
    if GAUSSIAN:
        sigma_x, sigma_y = tl.load(saved), tl.load(saved + 2)
    scale *= tl.load(dvalue_ptr + b)
    store = weights_ptr + tl.program_id(0).to(tl.int64) * (BLOCK * BLOCK)
    if part < parts_x:
        dx = (dx_ptr + b * dx_b * UNIT, dx_n, dx_d)
        _write_gradient(
            K, L, sums_y, x, close_x, store, dx_ptr, dx, sigma_x, t_x, part * share, share, N, DX,
            scale, cross, product, GAUSSIAN, UNBIASED, BLOCK, BLOCK_K,
        )  # fmt: skip
    else:
        dy = (dy_ptr + b * dy_b * UNIT, dy_n, dy_d)
        _write_gradient(
            L, K, sums_x, y, close_y, store, dy_ptr, dy, sigma_y, t_y, (part - parts_x) * share, share, N, DY,
            scale, cross, product, GAUSSIAN, UNBIASED, BLOCK, BLOCK_K,
        )  # fmt: skip
