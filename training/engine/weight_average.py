"""Exponential moving average of the weights of a model (Polyak averaging): the average of a path often generalises better."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from training.models.retrieval_model import RetrievalModel


class WeightAverage:
    """Average of every floating parameter and buffer: after step n, a + (1 - d) (w - a) with d = min(decay, (1 + n) / (10 + n)).

    The smaller d of the first steps forgets the random start. Other buffers, such as counters, are those of the model.
    """

    def __init__(self, model: RetrievalModel, decay: float) -> None:
        self.model, self.decay = model, decay
        self.weights: dict[str, Tensor] = {name: value.detach().clone() for name, value in model.state_dict().items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Moves the average towards the weights after the `step`-th step (counted from 1)."""
        rate = 1.0 - min(self.decay, (1 + step) / (10 + step))
        current = self.model.state_dict()
        moving = [name for name, value in self.weights.items() if value.is_floating_point()]
        torch._foreach_lerp_([self.weights[name] for name in moving], [current[name] for name in moving], rate)
        for name in self.weights.keys() - set(moving):
            self.weights[name].copy_(current[name])

    def load_state_dict(self, weights: dict[str, Tensor]) -> None:
        """Restores `weights`, as a checkpoint holds them."""
        for name, value in self.weights.items():
            value.copy_(weights[name])

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The model has the averaged weights within the block, and its own ones again after it."""
        own = {name: value.detach().clone() for name, value in self.model.state_dict().items()}
        self.model.load_state_dict(self.weights)
        try:
            yield
        finally:
            self.model.load_state_dict(own)
