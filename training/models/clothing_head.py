"""Projections into the space of clothing texts: of the clothing branch, and of the identity branch (adversary)."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class _GradientReversal(torch.autograd.Function):
    """Identity whose gradient changes sign (gradient reversal layer)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return -grad


class ClothingHead(nn.Module):
    """Linear projection to the text dimension and L2 normalisation (paper 3.2), for f^_clo and for f^_id.

    The adversary on f^_id depends on the mode (reading 6). "intent" and "paper": the projection of the clothing branch with
    constant weights, so that its loss trains f^_id only (the loss of "paper" does not use it). "minimax": a separate probe
    behind a gradient reversal, which learns to predict clothing from f^_id while f^_id learns to hide it.
    """

    def __init__(self, width: int, out: int, mode: Literal["paper", "intent", "minimax"]) -> None:
        super().__init__()
        self.projection = nn.Linear(width, out)
        self.probe = nn.Linear(width, out) if mode == "minimax" else None

    def forward(self, f_id_hat_BC: Tensor, f_clo_hat_BC: Tensor) -> tuple[Tensor, Tensor]:
        """f^_id and f^_clo, (B, C) each -> v_clo and v_id_hat_clo, (B, E) each, L2-normalised."""
        if self.probe is not None:
            hidden_BE = self.probe(_GradientReversal.apply(f_id_hat_BC))
        else:
            hidden_BE = F.linear(f_id_hat_BC, self.projection.weight.detach(), self.projection.bias.detach())
        return F.normalize(self.projection(f_clo_hat_BC), dim=-1), F.normalize(hidden_BE, dim=-1)
