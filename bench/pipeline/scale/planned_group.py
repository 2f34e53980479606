"""One rank of a group whose others do not exist: it notes what it would send.

The exchanges are those of a training (`group.RankGroup`); only the library below them is another.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from training.engine.device import CPU
from training.engine.distributed.failures import Register
from training.engine.distributed.group import RankGroup
from training.engine.distributed.rank_rows import RankPick, RankRows
from training.models.batch_rows import BatchRows, Pick


class Exchange(NamedTuple):
    """One exchange between ranks: the part of the step, the kind (a method of torch.distributed), bytes that this rank sends, and
    True if the step goes on before it has ended."""

    part: str
    kind: str
    bytes: int
    behind: bool = False


class Progress:
    """Name of the part of the step that runs, and number of exchanges that have begun behind it."""

    part = "encoders"
    begun = 0


class Noting:
    """Library of a group of ranks of which only one exists: notes what it would send."""

    def __init__(self, rank: int, progress: Progress) -> None:
        self.rank, self.progress, self.exchanges = rank, progress, list[Exchange]()

    def all_reduce(self, x: Tensor, *, async_op: bool = False) -> Noting:
        """Notes x; the sum would have its shape."""
        return self._note("all_reduce", x.nbytes, async_op)

    def all_gather_single(self, out: Tensor, x: Tensor) -> None:
        """Notes x."""
        self._note("all_gather", x.nbytes)

    all_gather_into_tensor = all_gather_single

    def all_to_all_single(self, out: Tensor, x: Tensor, received: list[int], sent: list[int]) -> None:
        """Notes the rows that do not stay."""
        self._note("all_to_all", (len(x) - sent[self.rank]) * (x[:1].nbytes if len(x) else 0))

    def wait(self) -> None:
        """Nothing to wait for."""

    def _note(self, kind: str, count: int, behind: bool = False) -> Noting:
        self.exchanges.append(Exchange(self.progress.part, kind, count, behind))
        self.progress.begun += behind
        return self


class PlannedRows(RankRows):
    """Rows of a rank whose wrong pairs are spread evenly over the batch, since tensors without content cannot say which."""

    picks = 0

    def pick(self, index_O: Tensor | None) -> Pick:
        """Rows of every other image: those of the even ones in the second call, as the model alternates them."""
        if index_O is None:
            return Pick(None)
        # For its bytes.
        self.gather(index_O, "choice of pairs")
        with _disable_current_modes():
            own = torch.arange(self.count)
            other = torch.randperm(self.count, generator=torch.Generator().manual_seed(self.picks % 2))
            wanted_B = torch.where(own % 2 == self.picks % 2, own, other)
            self.picks += 1
            return RankPick(self, wanted_B[self.positions], wanted_B)


class PlannedGroup(RankGroup):
    """One rank of a group of `size`, the others of which do not exist."""

    def __init__(self, rank: int, size: int, progress: Progress) -> None:
        nobody: Any = None
        super().__init__(Register(nobody, rank, size, nobody), CPU, rank, "0")
        self.library = Noting(rank, progress)

    def rows(self, count: int, parts: int) -> BatchRows:
        """The rows of this process in a batch of so many, in `parts` micro-batches."""
        key = count, min(parts, count)
        if key not in self._rows:
            with _disable_current_modes():
                self._rows[key] = PlannedRows(self, *key)
        return self._rows[key]
