"""Buffers that worker processes fill ahead of time, in an order that does not depend on how many there are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader

# Buffers that each worker may have filled, or have under way, before they are needed.
AHEAD = 2

K = TypeVar("K")
T = TypeVar("T")


class _Filling(Generic[K, T]):
    """Map-style data set of results of `fill`, whose work lies in `buffers`. An error is returned, not raised: DataLoader
    would wrap its text in a traceback."""

    def __init__(self, fill: Callable[[K, Tensor], T], buffers: Tensor) -> None:
        self.fill, self.buffers = fill, buffers

    def __getitem__(self, item: tuple[int, K]) -> T | Exception:
        number, key = item
        try:
            return self.fill(key, self.buffers[number % len(self.buffers)])
        except (OSError, ValueError) as error:
            return error


def _identity(value: T) -> T:
    return value


def filled(
    fill: Callable[[K, Tensor], T], keys: Sequence[K], shape: Sequence[int], workers: int
) -> Iterator[tuple[T, Tensor]]:
    """(fill(key, buffer), buffer) for each key in order, in this process or ahead of time in `workers` others.

    `buffer` is a uint8 tensor of `shape` that `fill` writes to; it holds until the next one is asked for. Raises what
    `fill` raises, OSError or ValueError, when that key's turn comes.
    """
    if workers == 0:
        buffer = torch.empty(tuple(shape), dtype=torch.uint8)
        for key in keys:
            yield fill(key, buffer), buffer
        return
    # DataLoader keeps at most AHEAD keys a worker in flight and sends out the next one before it hands over a result, so
    # the buffer in the caller's hands is one more. Shared memory that is written again and again: a fresh piece for
    # every batch costs 2 us a page in the worker and again in this process.
    buffers = torch.empty((AHEAD * workers + 1, *shape), dtype=torch.uint8).share_memory_()
    source: Any = DataLoader(
        _Filling(fill, buffers),  # type: ignore[arg-type]
        batch_size=None,
        sampler=list(enumerate(keys)),
        num_workers=workers,
        prefetch_factor=AHEAD,
        collate_fn=_identity,
        # Of its own, so that the number of workers does not shift torch's global random numbers.
        generator=torch.Generator().manual_seed(0),
    )
    for number, result in enumerate(source):
        if isinstance(result, Exception):
            raise result
        yield result, buffers[number % len(buffers)]
