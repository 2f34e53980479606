"""Buffers that workers fill ahead of time: order, lifetime, errors."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from training.data.images.prefetch import prefetched

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create 4 worker processes")


def squares(key: int, buffer: Tensor) -> int:
    """Slow for some keys, so that workers finish out of order."""
    time.sleep(0.02 if key % 5 == 0 else 0.0)
    buffer.fill_(key)
    return key * key


def refuses_seven(key: int, buffer: Tensor) -> int:
    if key == 7:
        raise ValueError("seven is refused")
    return squares(key, buffer)


@pytest.mark.parametrize("workers", [0, 1, 2, 4])
def test_results_come_in_order_and_their_buffer_holds_until_the_next(workers: int) -> None:
    for number, (result, buffer) in enumerate(prefetched(squares, range(30), (3, 4), workers)):
        # All workers have time to write to every buffer that they may.
        time.sleep(0.01)
        assert result == number**2
        assert buffer.shape == (3, 4) and buffer.dtype == torch.uint8 and (buffer == number).all()
    assert number == 29


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_comes_at_its_turn(workers: int) -> None:
    results: Iterator[tuple[int, Tensor]] = prefetched(refuses_seven, range(20), (1,), workers)
    assert [next(results)[0] for _ in range(7)] == [k * k for k in range(7)]
    with pytest.raises(ValueError, match="^seven is refused$"):
        next(results)


@pytest.mark.parametrize("workers", [0, 2])
def test_no_keys_and_fewer_keys_than_workers(workers: int) -> None:
    assert list(prefetched(squares, [], (1,), workers)) == []
    assert [result for result, _ in prefetched(squares, [3], (1,), workers)] == [9]
