"""Batch normalisation over the rows of all ranks; torch's SyncBatchNorm refuses tensors of a CPU.

Shapes: N rows, C channels.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

WHAT = "batch statistics"


class Statistics(Protocol):
    """Exchanges of a group of ranks that batch normalisation needs."""

    def all_gather(self, x: Tensor, what: str) -> Tensor:
        """(ranks, *x.shape): tensors of one shape, by rank."""

    def all_reduce(self, x: Tensor, what: str) -> Tensor:
        """Sum over the ranks, written to x."""


class GatheredBatchNorm(_BatchNorm):
    """A batch normalisation whose mean and variance are those of the rows of all ranks. Its parameters and running statistics are
    those of `norm`, under the same names."""

    def __init__(self, norm: _BatchNorm, group: Statistics) -> None:
        nn.Module.__init__(self)
        for name in ("num_features", "eps", "momentum", "affine", "track_running_stats"):
            setattr(self, name, getattr(norm, name))
        self._parameters, self._buffers = norm._parameters, norm._buffers
        self.group, self.training = group, norm.training

    def _check_input_dim(self, input: Tensor) -> None:
        """Any rows of C channels."""

    # Compiled graphs hold no exchanges: they would have to be compiled at the same moments on all ranks.
    @torch.compiler.disable
    def forward(self, input: Tensor) -> Tensor:
        """(N, C) or (N, C, ...), in the kind of the input; running statistics as torch keeps them."""
        if not self.training:
            # A rank evaluates alone.
            return super().forward(input) if self.track_running_stats or len(input) > 1 else input
        y, mean_C, variance_C, count = _Normalised.apply(input, self.weight, self.bias, self.eps, self.group)
        if self.track_running_stats:
            self._follow(mean_C, variance_C, count)
        return y

    @torch.no_grad()
    def _follow(self, mean_C: Tensor, variance_C: Tensor, count: Tensor) -> None:
        self.num_batches_tracked.add_(1)  # type: ignore[union-attr]
        rate = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum  # type: ignore[arg-type]
        for running, value in ((self.running_mean, mean_C), (self.running_var, variance_C * (count / (count - 1)))):
            running.mul_(1 - rate).add_(rate * value.to(running.dtype))  # type: ignore[union-attr]


def gather_batch_norms(module: nn.Module, group: Statistics) -> None:
    """Replaces every batch normalisation below `module`, in place."""
    for name, child in module.named_children():
        if isinstance(child, _BatchNorm):
            setattr(module, name, GatheredBatchNorm(child, group))
        else:
            gather_batch_norms(child, group)


def _per_channel(x_C: Tensor, like: Tensor) -> Tensor:
    return x_C.to(like.dtype).view(1, -1, *[1] * (like.ndim - 2))


class _Normalised(torch.autograd.Function):
    """(normalised rows, mean, biased variance and number of all rows); the gradient passes through the statistics."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, group: Statistics
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        dims = [i for i in range(x.ndim) if i != 1]
        mean_C = wide.mean(dims)
        square_C = (wide - _per_channel(mean_C, wide)).square().sum(dims)
        count_1 = mean_C.new_full((1,), x.numel() // x.shape[1])
        # In float64: the count of a large image batch is above 2^24.
        sums = group.all_gather(torch.cat([mean_C.double(), square_C.double(), count_1.double()]), WHAT)
        means, squares, counts = sums.split([x.shape[1], x.shape[1], 1], dim=1)
        total = counts.sum()
        mean_C = (counts * means).sum(0) / total
        variance_C = (squares + counts * (means - mean_C).square()).sum(0) / total
        scale_C = (variance_C + eps).rsqrt()
        y = (wide - _per_channel(mean_C, wide)) * _per_channel(scale_C, wide)
        if weight is not None and bias is not None:
            y = y * _per_channel(weight, wide) + _per_channel(bias, wide)
        ctx.save_for_backward(x, weight, mean_C, scale_C, total)
        ctx.group, ctx.dims = group, dims
        ctx.mark_non_differentiable(mean_C, variance_C, total)
        return y.to(x.dtype), mean_C, variance_C, total

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
        x, weight, mean_C, scale_C, total = ctx.saved_tensors
        kind = torch.promote_types(x.dtype, torch.float32)
        wide, grad = x.to(kind), grad.to(kind)
        unit = (wide - _per_channel(mean_C, wide)) * _per_channel(scale_C, wide)
        bias_C, weight_C = grad.sum(ctx.dims), (grad * unit).sum(ctx.dims)
        dx = None
        if ctx.needs_input_grad[0]:
            sums = ctx.group.all_reduce(torch.cat([bias_C, weight_C]), WHAT) / total.to(kind)
            first, second = (_per_channel(part, wide) for part in sums.chunk(2))
            factor_C = scale_C if weight is None else scale_C * weight
            dx = ((grad - first - unit * second) * _per_channel(factor_C, wide)).to(x.dtype)
        own = (weight_C.to(weight.dtype), bias_C.to(weight.dtype)) if weight is not None else (None, None)
        return dx, *own, None, None
