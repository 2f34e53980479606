"""Sum of gradients over the ranks, in buckets that travel while a backward pass computes the gradients of others."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from training.engine.distributed.ranks import GradientSum


class _Started(NamedTuple):
    """A sum on its way: waits for it, its flat tensor, and the gradients that it replaces."""

    wait: Callable[[], None]
    flat: Tensor
    gradients: list[Tensor]


class BucketedSum(GradientSum):
    """Sum over the ranks of the gradients of `parameters`, cut into at most `buckets` of about the same length, in reverse order:
    about that in which a backward pass leaves them.

    begin: starts the sum of a flat tensor, and returns what waits for it. All ranks start the same buckets in the same order,
    whatever the moments at which their gradients come: a bucket waits for those before it.
    """

    def __init__(
        self, parameters: Sequence[nn.Parameter], buckets: int, begin: Callable[[Tensor], Callable[[], None]]
    ) -> None:
        self.begin = begin
        self.buckets = _cut([*reversed(parameters)], buckets)
        # Parameters without a gradient in the last sum: no bucket waits for them.
        self.silent = set[nn.Parameter]()
        self._missing = set[nn.Parameter]()
        self._waiting = deque[list[nn.Parameter]](self.buckets)
        self._started = list[_Started]()
        self._hooks = list[torch.utils.hooks.RemovableHandle]()

    def follow(self) -> None:
        """Starts every bucket as soon as the backward pass that comes has left its last gradient."""
        expected = [p for bucket in self.buckets for p in bucket if p not in self.silent]
        self._missing = set(expected)
        self._hooks = [p.register_post_accumulate_grad_hook(self._arrived) for p in expected]

    def start(self) -> None:
        """Starts all buckets that have not been started."""
        for hook in self._hooks:
            hook.remove()
        while self._waiting:
            self._begin([p for p in self._waiting.popleft() if p not in self.silent])
        # Used for the first time.
        self._begin([p for bucket in self.buckets for p in bucket if p in self.silent])
        self.silent = {p for bucket in self.buckets for p in bucket if p.grad is None}

    def wait(self) -> None:
        """Waits until all sums are in place of the gradients."""
        for wait, flat, gradients in self._started:
            wait()
            parts = flat.split([gradient.numel() for gradient in gradients])
            torch._foreach_copy_(gradients, [p.view_as(g) for p, g in zip(parts, gradients, strict=True)])
        self._started.clear()
        self._waiting.extend(self.buckets)

    def _arrived(self, parameter: nn.Parameter) -> None:
        self._missing.discard(parameter)
        while self._waiting and self._missing.isdisjoint(self._waiting[0]):
            self._begin([p for p in self._waiting.popleft() if p not in self.silent])

    def _begin(self, parameters: list[nn.Parameter]) -> None:
        gradients = [p.grad for p in parameters if p.grad is not None]
        if gradients:
            flat = torch.cat([gradient.flatten() for gradient in gradients])
            self._started.append(_Started(self.begin(flat), flat, gradients))


def _cut(parameters: list[nn.Parameter], buckets: int) -> list[list[nn.Parameter]]:
    """Runs of parameters that end with the one that fills them."""
    found, size, least = list[list[nn.Parameter]](), 0, sum(p.numel() for p in parameters) / buckets
    for parameter in parameters:
        if size == 0:
            found.append([])
        found[-1].append(parameter)
        size += parameter.numel()
        if size >= least:
            size = 0
    return found
