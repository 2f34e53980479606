"""Rows of a batch that this process has: all of them, unless several processes share it (`engine.distributed`).

Shapes: B rows of the whole batch, O rows of this process; in a single process they are the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from torch import Tensor

if TYPE_CHECKING:
    from training.models.model_outputs import PairFeatures

F = TypeVar("F", bound="PairFeatures")


def micro_batches(count: int, parts: int) -> list[slice]:
    """`count` rows in at most `parts` runs whose lengths differ by at most one."""
    parts = min(parts, count)
    bounds = [count * i // parts for i in range(parts + 1)]
    return [slice(a, b) for a, b in zip(bounds, bounds[1:], strict=False)]


class Pick:
    """Rows `index_O` of the whole batch, one for each row of this process; None: its own ones."""

    def __init__(self, index_O: Tensor | None) -> None:
        self.index_O = index_O

    def __call__(self, part_O: Tensor) -> Tensor:
        """The picked rows of a tensor of which every process has its own rows; their gradient returns to where they came from."""
        return part_O if self.index_O is None else part_O[self.index_O]


class BatchRows:
    """Rows of a batch of a single process: all that others would have to send is here."""

    def __init__(self, slices: list[slice] | None = None) -> None:
        # Micro-batches of the encoders, as slices of the rows of this process.
        self.slices = slices or [slice(None)]

    def own(self, x_B: Tensor) -> Tensor:
        """The rows of this process."""
        return x_B

    def gather(self, x_O: Tensor) -> Tensor:
        """The rows of all processes, in the order of the batch; the gradient of the own rows passes."""
        return x_O

    def gather_features(self, features_O: F) -> F:
        """`gather` of every tensor of the features."""
        return features_O

    def pick(self, index_O: Tensor | None) -> Pick:
        """The rows of these positions in the whole batch."""
        return Pick(index_O)


ALL_ROWS = BatchRows()
