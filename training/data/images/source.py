"""Sources of decoded images: image files, or the packed cache.

Shapes: B images, C = 3 channels (RGB), H, W pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from training.config import MAX_PIXELS, DataConfig
from training.data.images import transforms
from training.data.images.cache import PackedImages
from training.data.images.pack import pack_images
from training.data.images.prefetch import prefetched

# Decoded images are kept in memory up to this many bytes: 43,690 images of 128x64.
MEMORY_LIMIT = 2**30


class ImageSource(Protocol):
    """Resized images of a list of files, by index."""

    image_size: tuple[int, int]

    def fill(self, indices: Sequence[int], out_BCHW: Tensor) -> None:
        """Writes the images of these indices to the first rows of uint8 (B, 3, H, W). Raises ValueError or OSError."""


class ImageFiles:
    """Images decoded from their files; with `keep` only once, if all of them fit into MEMORY_LIMIT."""

    def __init__(
        self, paths: Sequence[Path], image_size: tuple[int, int], keep: bool, max_pixels: int = MAX_PIXELS
    ) -> None:
        self.paths, self.image_size, self.max_pixels = list(paths), image_size, max_pixels
        shape = (len(paths), 3, *image_size)
        fits = keep and int(np.prod(shape, dtype=np.int64)) <= MEMORY_LIMIT
        # Untouched pages of torch.empty cost no memory.
        self.pixels = torch.empty(shape, dtype=torch.uint8) if fits else None
        self.known = [False] * len(paths)

    def fill(self, indices: Sequence[int], out_BCHW: Tensor) -> None:
        """Raises ValueError or FileNotFoundError naming every bad file of `indices`."""
        if self.pixels is None:
            transforms.decode_into(out_BCHW, range(len(indices)), [self.paths[i] for i in indices], self.max_pixels)
            return
        new = [i for i in indices if not self.known[i]]
        transforms.decode_into(self.pixels, new, [self.paths[i] for i in new], self.max_pixels)
        for i in new:
            self.known[i] = True
        torch.index_select(self.pixels, 0, torch.tensor(indices), out=out_BCHW[: len(indices)])


def update_cache(paths: Sequence[Path], config: DataConfig) -> None:
    """Updates the cache of `config` for these files; without a cache does nothing. Raises what `pack_images` does."""
    if config.cache:
        pack_images(paths, config.cache, config.image_size, config.workers, max_pixels=config.max_pixels)


def open_images(paths: Sequence[Path], config: DataConfig, keep: bool = False) -> ImageSource:
    """The images of `paths` in the size and from the source of `config`, whose cache is updated.

    keep: keep decoded images in memory if there is no cache. Raises ValueError for a size that is not known yet, and what
    `pack_images` does.
    """
    if config.image_size == (0, 0):
        raise ValueError("open_images: data.image_size 0 0 has to be replaced by that of the visual encoder first")
    update_cache(paths, config)
    if config.cache:
        return PackedImages(paths, config.cache, config.image_size)
    return ImageFiles(paths, config.image_size, keep, config.max_pixels)


def read_batches(images: ImageSource, batches: Sequence[Sequence[int]], workers: int) -> Iterator[Tensor]:
    """Yields uint8 (B, 3, H, W) of each batch of indices, read by `workers` processes; valid until the next is requested."""
    largest = max(map(len, batches), default=0)
    buffers = prefetched(images.fill, batches, (largest, 3, *images.image_size), workers)
    for indices, (_, buffer) in zip(batches, buffers, strict=True):
        yield buffer[: len(indices)]
