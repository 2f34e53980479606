"""Random numbers and trigonometry that give the same bits on every machine and Python version."""

import random
from collections.abc import Mapping, Sequence
from typing import TypeVar

T = TypeVar("T")


class KeyedRng:
    """Random numbers keyed by a path such as `KeyedRng(seed, "person", 7)`: equal keys give equal draws in any process.

    Only `random.Random.random()` is used: the only stream that Python guarantees across versions.
    """

    def __init__(self, *key: object) -> None:
        self._random = random.Random("/".join(map(str, key))).random

    def chance(self, probability: float) -> bool:
        """True with this probability."""
        return self._random() < probability

    def uniform(self, low: float, high: float) -> float:
        """A float in [low, high)."""
        return low + (high - low) * self._random()

    def integer(self, low: int, high: int) -> int:
        """An integer from low to high, both included."""
        return low + int(self._random() * (high - low + 1))

    def choice(self, items: Sequence[T]) -> T:
        """One item, all equally likely."""
        return items[int(self._random() * len(items))]

    def weighted_choice(self, weights: Mapping[T, float]) -> T:
        """One key of `weights`, with probability proportional to its weight."""
        left = self._random() * sum(weights.values())
        for key, weight in weights.items():
            left -= weight
            if left < 0:
                return key
        return next(key for key, weight in reversed(list(weights.items())) if weight > 0)

    def permutation(self, items: Sequence[T]) -> list[T]:
        """The items in a random order."""
        rest = list(items)
        return [rest.pop(int(self._random() * len(rest))) for _ in range(len(rest))]


def sine(degrees: float) -> float:
    """Sine to 4e-6 from additions and products only, because the last bit of libm's sine differs between platforms."""
    degrees = (degrees + 180.0) % 360.0 - 180.0
    if degrees > 90.0:
        degrees = 180.0 - degrees
    elif degrees < -90.0:
        degrees = -180.0 - degrees
    x = degrees * 0.017453292519943295
    x2 = x * x
    return x * (1.0 - x2 / 6.0 * (1.0 - x2 / 20.0 * (1.0 - x2 / 42.0 * (1.0 - x2 / 72.0))))


def cosine(degrees: float) -> float:
    """Cosine, see `sine`."""
    return sine(degrees + 90.0)
