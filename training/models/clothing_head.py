"""Projections into the space of clothing texts: of the clothing branch, and of the identity branch (adversary)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from training.config import AdversarialMode


class _GradientReversal(torch.autograd.Function):
    """Identity whose gradient changes sign (gradient reversal layer)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return -grad


class _Standardise(nn.BatchNorm1d):
    """Batch statistics alone, in evaluation too; a single sample passes as it is."""

    def __init__(self, width: int) -> None:
        super().__init__(width, affine=False, track_running_stats=False)

    def forward(self, x_BC: Tensor) -> Tensor:
        return super().forward(x_BC) if len(x_BC) > 1 else x_BC


class _Probe(nn.Linear):
    """Linear map that reads clothing from f_id, each channel standardised first: otherwise it would overlook channels of small
    variance, which a reader of the trained feature can scale up."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__(width, out)
        self.standardise = _Standardise(width)

    def forward(self, f_id_BC: Tensor) -> Tensor:
        return super().forward(self.standardise(f_id_BC))


class ClothingHead(nn.Module):
    """Linear projection to the text dimension and L2 normalisation (paper 3.2), for f^_clo and for f_id.

    The adversary acts on the *gated* identity feature, which everything else reads: the gate is computed from both branches and
    could carry clothing into it. It depends on the mode (reading 6). "intent", "odds" and "paper": the projection of the clothing
    branch with constant weights, so that its loss trains f_id only (the loss of "paper" does not use it). "critic" and
    "minimax": a separate probe that learns to predict clothing from f_id; the loss of f_id uses its weights as constants, or
    goes through a gradient reversal.
    """

    def __init__(self, width: int, out: int, mode: AdversarialMode) -> None:
        super().__init__()
        self.mode = mode
        self.projection = nn.Linear(width, out)
        self.probe = _Probe(width, out) if mode in ("critic", "minimax") else None

    def forward(self, f_id_BC: Tensor, f_clo_hat_BC: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """f_id and f^_clo, (B, C) each -> v_clo, v_id_hat_clo and, with a critic, its own embedding of f_id for training it;
        (B, E) each, L2-normalised."""
        probe, critic_BE = self.probe or self.projection, None
        if self.mode == "critic":
            critic_BE = F.normalize(probe(f_id_BC.detach()), dim=-1)
        if self.mode == "minimax":
            hidden_BE = probe(_GradientReversal.apply(f_id_BC))
        else:
            constants = {name: value.detach() for name, value in probe.named_parameters()}
            hidden_BE = functional_call(probe, constants, (f_id_BC,))
        return F.normalize(self.projection(f_clo_hat_BC), dim=-1), F.normalize(hidden_BE, dim=-1), critic_BE
