"""Thresholds of the checks of generated texts; imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Thresholds of the checks."""

    # Smallest and largest number of words.
    words: tuple[int, int] = (4, 80)
    # Smallest number of attributes that a text must cover, required ones included.
    attributes: int = 2
    # Reject words such as "appears to be" and "possibly".
    hedging: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.words[0] <= self.words[1]:
            raise ValueError(f"limits.words must be a range, the lower number first, got {self.words}")
        if self.attributes < 1:
            raise ValueError(f"limits.attributes must be at least 1, got {self.attributes}")
