"""Interface of the processes that train or evaluate together, for a single one: every exchange is the identity."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from training.data.loader import OwnRows
from training.models.batch_rows import BatchRows, micro_batches
from training.models.retrieval_model import RetrievalModel
from training.utils.locks import folder_lock

T = TypeVar("T")


class GradientSum:
    """Sum of gradients over a single process, which has nothing to do."""

    def follow(self) -> None:
        """Starts every part as soon as the backward pass that comes has left its last gradient."""

    def start(self) -> None:
        """Starts all parts that have not been started."""

    def wait(self) -> None:
        """Waits until all sums are in place of the gradients."""


class Ranks:
    """A process that works alone. `group.RankGroup` has the same methods for several."""

    rank, size = 0, 1
    # Batches of an evaluation that this process encodes.
    turns = slice(None)

    @property
    def first(self) -> bool:
        """True for the process that writes files and talks to the user."""
        return self.rank == 0

    def describe(self) -> str:
        """Words for the line that names the device."""
        return ""

    def own_rows(self, parts: int) -> OwnRows | None:
        """Positions in a batch of the rows of this process, of `parts` micro-batches; None for all."""
        return None

    def rows(self, count: int, parts: int) -> BatchRows:
        """The rows of this process in a batch of so many, in `parts` micro-batches."""
        return BatchRows(micro_batches(count, parts))

    def prepare(self, model: RetrievalModel) -> None:
        """Makes batch statistics those of the whole batch, before the optimiser is built."""

    def share_weights(self, model: nn.Module) -> None:
        """Gives every process the weights and buffers of the first one."""

    def seed_step(self, seed: int, step: int) -> None:
        """Sets torch's generators for a step, where each process needs random numbers of its own."""

    def norms(self, norms: dict[str, float]) -> dict[str, float]:
        """L2 norms of gradients from those of the rows of each process."""
        return norms

    def gradient_sum(self, parameters: Sequence[nn.Parameter], buckets: int = 1) -> GradientSum:
        """Sum over all processes of the gradients of these parameters, in so many parts at most."""
        return GradientSum()

    def largest(self, values: Mapping[str, float]) -> dict[str, float]:
        """The largest of each value in any process."""
        return dict(values)

    def any(self, flag: bool) -> bool:
        """True if the flag is set in any process."""
        return flag

    def share(self, make: Callable[[], T]) -> T:
        """The result of `make`, which the first process calls; what it raises ends all."""
        return make()

    def gather(self, value: T) -> list[T]:
        """The value of each process, by rank; it is pickled, tensors on the CPU."""
        return [value]

    def in_order(self, parts: list[T]) -> list[T]:
        """The results of all batches in their order, from those that each process has of its `turns`."""
        return parts

    def require_rows(self, batches: Iterable[Sequence[int]], parts: int) -> None:
        """Raises ValueError where a batch of an epoch is too small for all processes."""

    def require_equal(self, facts: Callable[[], Mapping[str, Any]]) -> None:
        """Raises ValueError naming a process whose facts are not those of the first one."""

    def wait_for_all(self) -> None:
        """Waits until every process has come here."""

    @contextmanager
    def in_turn(self) -> Iterator[None]:
        """A block that the first process of each machine runs before the others, which find what it has left in caches."""
        yield

    @contextmanager
    def lock(self, folder: Path) -> Iterator[None]:
        """`folder_lock`, held by the first process for all."""
        with folder_lock(folder):
            yield


ONE_RANK = Ranks()
