"""hsic of few samples in Triton: the launches of triton_kernels_small.py for a whole batch, and its sizes.

One program for an item would be one multiprocessor for it, and its features one after another: on an H200, 64 samples of 768
features took 0.26 ms forward so. Here they are parts of 64 features, 24 programs an item; that has not been timed.

N samples, Dx and Dy features.
"""

from typing import NamedTuple

import torch
import triton
from torch import Tensor

from ... import _tuning
from ..._triton import on_device, unit_of
from .triton_kernels_small import small_backward_kernel, small_forward_kernel, small_gram_kernel

MOST_PARTS = 64  # of a side; 4096 features and more of 64 samples
BLOCK_K = 16  # features that are multiplied at a time, where no card's table says more


def constants_of(samples: int, unbiased: bool) -> tuple[float, float, float]:
    """(scale, cross, product): value = scale (<K, L> - cross r_K . r_L + product s_K s_L)."""
    n = float(samples)
    if unbiased:
        return 1 / (n * (n - 3)), 2 / (n - 2), 1 / ((n - 1) * (n - 2))
    return 1 / (n - 1) ** 2, 2 / n, 1 / n**2


def strides(unit: int, *tensors: Tensor) -> list[int]:
    """Strides of (batch, N, D) as the kernels take them, those of the batch as multiples of `unit`."""
    return [s for t in tensors for s in (t.stride(0) // unit, t.stride(1), t.stride(2))]


class Small(NamedTuple):
    """Sizes of the kernels of few samples: BLOCK, the samples padded, and `share`, the features of a program."""

    BLOCK: int
    share: int
    warps: int

    def parts(self, *widths: int) -> int:
        """Programs of an item."""
        return sum(triton.cdiv(width, self.share) for width in widths)

    def features(self, most: int, device: torch.device) -> int:
        """Features multiplied at a time, BLOCK_K.

        The backward multiplies weights in pieces of as many samples; 128 samples leave no registers for more than BLOCK_K.
        """
        return BLOCK_K if self.BLOCK > 64 else min(self.BLOCK, most, _tuning.size("hsic.features", device))


def small_of(samples: int, width_x: int, width_y: int) -> Small:
    """A part has about as many features as there are samples, so that its products take the memory of x or y in float32.

    More where a side would have above MOST_PARTS of them: each program adds up the products of all parts.
    """
    block = max(16, triton.next_power_of_2(samples))
    share = max(64, block)
    share *= max(1, triton.cdiv(max(width_x, width_y), share * MOST_PARTS))
    return Small(block, share, {16: 1, 32: 2, 64: 8, 128: 16}[block])


def grams_of(small: Small, x: Tensor, y: Tensor) -> Tensor:
    """Inner products of the centred samples by parts of the features, of x and then of y: (batch, parts, BLOCK, BLOCK)."""
    batch, samples, width_x = x.shape
    parts, unit = small.parts(width_x, y.shape[2]), unit_of(x, y)
    grams = x.new_empty((batch, parts, small.BLOCK, small.BLOCK), dtype=torch.float32)
    small_gram_kernel[(batch * parts,)](
        *(x, y, grams, samples, width_x, y.shape[2], small.share, *strides(unit, x, y)),
        *(unit, small.BLOCK, small.features(64, x.device)),
        num_warps=small.warps,
    )
    return grams


def small_forward(
    x: Tensor,
    y: Tensor,
    sigma_x: Tensor | None,
    sigma_y: Tensor | None,
    value: Tensor,
    saved: Tensor,
    gaussian: bool,
    unbiased: bool,
) -> None:
    """Fills value and saved, see `triton_impl.forward`."""
    batch, samples, width_x = x.shape
    width_y = y.shape[2]
    widths = (None if s is None else s.contiguous() for s in (sigma_x, sigma_y))
    unit, small = unit_of(x, y), small_of(samples, width_x, width_y)
    sizes = (samples, width_x, width_y, small.share, *strides(unit, x, y), *constants_of(samples, unbiased))
    flags = (gaussian, unbiased, unit, small.BLOCK)
    with on_device(x):
        grams = grams_of(small, x, y)
        small_forward_kernel[(batch,)](x, y, grams, *widths, value, saved, *sizes, *flags, num_warps=small.warps)


def small_backward(
    upstream: Tensor, x: Tensor, y: Tensor, saved: Tensor, dx: Tensor, dy: Tensor, gaussian: bool, unbiased: bool
) -> None:
    """Fills dx and dy, see `triton_impl.backward`."""
    _, samples, width_x = x.shape
    width_y = y.shape[2]
    unit, small = unit_of(x, y, dx, dy), small_of(samples, width_x, width_y)
    sizes = (samples, width_x, width_y, small.share, *strides(unit, x, y, dx, dy), *constants_of(samples, unbiased))
    features = small.features(32, x.device)  # with 64 it spills 664 bytes on sm_90
    flags = (gaussian, unbiased, unit, small.BLOCK, features)
    with on_device(x):
        grams = grams_of(small, x, y)
        small_backward_kernel[(grams.shape[0] * grams.shape[1],)](
            *(upstream, x, y, grams, saved, torch.empty_like(grams), dx, dy, *sizes, *flags), num_warps=small.warps
        )
