"""Prefetching: worker processes fill buffers in advance, in an order independent of their number."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader

# Buffers per worker that are filled or being filled before they are needed.
PREFETCH_FACTOR = 2

K = TypeVar("K")
T = TypeVar("T")


class _PrefetchDataset(Generic[K, T]):
    """Map-style data set of the results of `fill`, which writes to `buffers`. An error is returned, not raised: DataLoader
    would wrap its text in a traceback."""

    def __init__(self, fill: Callable[[K, Tensor], T], buffers: Tensor) -> None:
        self.fill, self.buffers = fill, buffers

    def __getitem__(self, item: tuple[int, K]) -> T | Exception:
        number, key = item
        try:
            return self.fill(key, self.buffers[number % len(self.buffers)])
        except (OSError, ValueError) as error:
            return error


def _unchanged(value: T) -> T:
    return value


def prefetched(
    fill: Callable[[K, Tensor], T], keys: Sequence[K], shape: Sequence[int], workers: int
) -> Iterator[tuple[T, Tensor]]:
    """Yields (fill(key, buffer), buffer) for each key in order, computed in this process or in advance by `workers` others.

    `buffer` is a uint8 tensor of `shape` that `fill` writes to; it is valid until the next item is requested. Raises the
    OSError or ValueError of `fill` in place of that key's item.
    """
    if workers == 0:
        buffer = torch.empty(tuple(shape), dtype=torch.uint8)
        for key in keys:
            yield fill(key, buffer), buffer
        return
    # DataLoader keeps at most PREFETCH_FACTOR keys per worker in flight and sends the next one before it returns a
    # result, so the caller's buffer is one more. The shared memory is reused: new memory for every batch costs 2 us per
    # page in the worker and again in this process.
    buffers = torch.empty((PREFETCH_FACTOR * workers + 1, *shape), dtype=torch.uint8).share_memory_()
    source: Any = DataLoader(
        _PrefetchDataset(fill, buffers),  # type: ignore[arg-type]
        batch_size=None,
        sampler=list(enumerate(keys)),
        num_workers=workers,
        prefetch_factor=PREFETCH_FACTOR,
        collate_fn=_unchanged,
        # A separate generator: torch's global random state must not depend on the number of workers.
        generator=torch.Generator().manual_seed(0),
    )
    for number, result in enumerate(source):
        if isinstance(result, Exception):
            raise result
        yield result, buffers[number % len(buffers)]
