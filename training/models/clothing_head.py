"""Projections into the space of clothing texts: of the clothing branch, and of the identity branch (its adversary)."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class _ReverseGradient(torch.autograd.Function):
    """Identity whose gradient changes sign (gradient reversal layer)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return -grad


class ClothingHead(nn.Module):
    """Linear projection to the text dimension and L2 normalisation (paper 3.2), for f^_clo and for f^_id.

    What reads clothing out of f^_id depends on the mode (reading 6). "intent", "odds" and "paper": the projection of the
    clothing branch, its weights as constants, so that only f^_id can answer the adversary (the paper's loss does not
    look at it). "minimax": a probe of its own behind a gradient reversal, which learns to find clothing in f^_id while
    f^_id learns to hide it.
    """

    def __init__(self, width: int, out: int, mode: Literal["paper", "intent", "odds", "minimax"]) -> None:
        super().__init__()
        self.projection = nn.Linear(width, out)
        self.probe = nn.Linear(width, out) if mode == "minimax" else None

    def forward(self, f_id_hat_BC: Tensor, f_clo_hat_BC: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C) twice -> v_clo (B, E) and v_id_hat_clo (B, E)."""
        if self.probe is not None:
            hidden_BE = self.probe(_ReverseGradient.apply(f_id_hat_BC))
        else:
            hidden_BE = F.linear(f_id_hat_BC, self.projection.weight.detach(), self.projection.bias.detach())
        return F.normalize(self.projection(f_clo_hat_BC), dim=-1), F.normalize(hidden_BE, dim=-1)
