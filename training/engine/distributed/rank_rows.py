"""Rows of a batch that several ranks share: gathering and exchange, with gradients.

Shapes: B rows of the whole batch, O rows of this rank, P rows of the rank that has most.

Every rank computes the whole loss from the gathered features. A gathered row therefore needs no communication in the
backward pass: the gradient of the own rows is complete. The gradient of a row that another rank has picked is sent back.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from training.models.batch_rows import BatchRows, Pick, micro_batches
from training.models.model_outputs import PairFeatures

F = TypeVar("F", bound=PairFeatures)


class Exchange(Protocol):
    """Exchanges of a group of ranks that its rows need."""

    rank: int
    size: int

    def all_gather(self, x: Tensor, what: str) -> Tensor:
        """(size, *x.shape): tensors of one shape, by rank."""

    def all_to_all(self, x: Tensor, received: list[int], sent: list[int], what: str) -> Tensor:
        """Rows from every rank, by rank; `sent` counts the rows of x for each, `received` those from each."""


def own_rows(count: int, parts: int, rank: int, size: int) -> list[int]:
    """Positions of the rows of a rank in a batch: its share of every micro-batch, so that each is that of one process."""
    rows = list[int]()
    for part in micro_batches(count, parts):
        length = part.stop - part.start
        rows += range(part.start + length * rank // size, part.start + length * (rank + 1) // size)
    return rows


class RankRows(BatchRows):
    """The rows of this rank in a batch of `count`. Raises ValueError when a rank would have none in a micro-batch."""

    def __init__(self, exchange: Exchange, count: int, parts: int) -> None:
        rank, size = exchange.rank, exchange.size
        if count < size * parts:
            raise ValueError(
                f"a batch of {count} images cannot be shared by {size} ranks in {parts} micro-batches: each needs one "
                "image of every micro-batch; take fewer ranks, or a larger batch"
            )
        lengths = [part.stop - part.start for part in micro_batches(count, parts)]
        ends = [0]
        for length in lengths:
            ends.append(ends[-1] + length * (rank + 1) // size - length * rank // size)
        super().__init__([slice(a, b) for a, b in zip(ends, ends[1:], strict=False)])
        self.exchange, self.count = exchange, count
        self.by_rank = [torch.tensor(own_rows(count, parts, other, size)) for other in range(size)]
        self.most = max(map(len, self.by_rank))
        self.positions = self.by_rank[rank]
        # For each row of the batch its rank, its position there, and its place in what `all_gather` returns.
        self.owner, self.place = torch.zeros(2, count, dtype=torch.int64).unbind()
        for other, rows in enumerate(self.by_rank):
            self.owner[rows], self.place[rows] = other, torch.arange(len(rows))
        self.gathered = self.owner * self.most + self.place

    def own(self, x_B: Tensor) -> Tensor:
        """The rows of this rank."""
        return x_B[self.positions.to(x_B.device)]

    def gather(self, x_O: Tensor, what: str = "features") -> Tensor:
        """The rows of all ranks, in the order of the batch; the gradient of the own rows passes."""
        padded = x_O.new_zeros(self.most, *x_O.shape[1:])
        padded[: len(x_O)] = x_O.detach()
        x_B = self.exchange.all_gather(padded, what).flatten(0, 1).index_select(0, self.gathered.to(x_O.device))
        return _Whole.apply(x_O, x_B, self.positions) if x_O.requires_grad and torch.is_grad_enabled() else x_B

    def gather_features(self, features_O: F) -> F:
        """`gather` of every tensor, in one exchange. The gradient of the temperature, which all ranks share, is divided by their
        number: that of the parameters is added up."""
        count, values = len(self.positions), {k: v for k, v in vars(features_O).items() if v is not None}
        temperature = values.pop("temperature")
        # Tensors of k O values, such as the logits of right and then of wrong pairs, as k columns of each row.
        columns = {k: v if v.ndim > 1 else v.unflatten(0, (-1, count)).T for k, v in values.items()}
        kind = torch.promote_types(features_O.v_id.dtype, torch.float32)
        with torch.no_grad():
            joined_B = self.gather(torch.cat([v.to(kind) for v in columns.values()], dim=1))
        widths = [v.shape[1] for v in columns.values()]
        found: dict[str, Any] = {"temperature": _Share.apply(temperature, self.exchange.size)}
        for (name, own), x_B in zip(columns.items(), joined_B.split(widths, dim=1), strict=True):
            x_B = x_B.to(own.dtype).contiguous()
            # One node each: the gradient of a task must not run through the features of others.
            whole = _Whole.apply(own, x_B, self.positions) if own.requires_grad else x_B
            found[name] = whole if values[name].ndim > 1 else whole.T.flatten()
        return replace(features_O, **found)

    def pick(self, index_O: Tensor | None) -> Pick:
        """The rows of these positions in the whole batch, wherever they lie."""
        if index_O is None:
            return Pick(None)
        # The choice of its rank counts, so that all agree on what is sent, whatever their last digits.
        return RankPick(self, index_O, self.gather(index_O, "choice of pairs").cpu())


class RankPick(Pick):
    """Rows that lie on any rank. wanted_B: the choices of all ranks, on the CPU."""

    def __init__(self, rows: RankRows, index_O: Tensor, wanted_B: Tensor) -> None:
        super().__init__(index_O)
        rank, self.exchange = rows.exchange.rank, rows.exchange
        by_rank = [wanted_B[positions] for positions in rows.by_rank]
        mine = [wanted[rows.owner[wanted] == rank] for wanted in by_rank]
        source_O = rows.owner[wanted_B[rows.positions]]
        device = index_O.device
        self.sent, self.received = [len(x) for x in mine], torch.bincount(source_O, minlength=len(mine)).tolist()
        self.outgoing = rows.place[torch.cat(mine)].to(device)
        # Received rows come by rank, and within a rank in the order of the pairs.
        self.order = source_O.argsort(stable=True).to(device)

    def __call__(self, part_O: Tensor) -> Tensor:
        return _Exchanged.apply(part_O, self)


class _Whole(torch.autograd.Function):
    """The gathered values; the gradient is that of the own rows."""

    @staticmethod
    def forward(ctx: Any, x_O: Tensor, x_B: Tensor, positions: Tensor) -> Tensor:
        ctx.positions = positions
        return x_B.view_as(x_B)

    @staticmethod
    def backward(ctx: Any, grad_B: Tensor) -> tuple[Tensor, None, None]:
        return grad_B[ctx.positions.to(grad_B.device)], None, None


class _Share(torch.autograd.Function):
    """Identity whose gradient is divided by the number of ranks."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, size: int) -> Tensor:
        ctx.size = size
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad / ctx.size, None


class _Exchanged(torch.autograd.Function):
    """The rows of a `RankPick`; their gradients are sent back and added to those of the rows."""

    @staticmethod
    def forward(ctx: Any, x_O: Tensor, pick: RankPick) -> Tensor:
        ctx.pick, ctx.rows = pick, len(x_O)
        sent = x_O.index_select(0, pick.outgoing)
        received = pick.exchange.all_to_all(sent, pick.received, pick.sent, "wrong pairs")
        return received.index_select(0, pick.order.argsort())

    @staticmethod
    def backward(ctx: Any, grad_O: Tensor) -> tuple[Tensor, None]:
        pick = ctx.pick
        sent = grad_O.index_select(0, pick.order)
        returned = pick.exchange.all_to_all(sent, pick.sent, pick.received, "wrong pairs")
        grad = grad_O.new_zeros(ctx.rows, *grad_O.shape[1:])
        return grad.index_add_(0, pick.outgoing, returned), None
