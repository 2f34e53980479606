"""Bidirectional decoupling alignment module (paper 3.2): one token sequence into an identity and a clothing feature.

Shapes: B batch, P patches, C width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from training.config import BdamConfig

# Of the last weights of each residual part of a new layer: it nearly passes its input on at first.
RESIDUAL_SCALE = 0.1


@dataclass(frozen=True)
class BdamOutput:
    """Branches of the decoupling module before and after the gate."""

    # Pooled branches before the gate, f^_id and f^_clo.
    f_id_hat_BC: Tensor
    f_clo_hat_BC: Tensor
    # g; None without a gate (BDAM off, or w/o gate), when both branches pass unweighted.
    gate_BC: Tensor | None
    # g * f^_id and (1 - g) * f^_clo.
    f_id_BC: Tensor
    f_clo_BC: Tensor
    # Tokens of the branches times g and 1 - g; their means over P are f_id_BC and f_clo_BC.
    id_tokens_BPC: Tensor
    clo_tokens_BPC: Tensor


class _Attention(nn.Module):
    """x + attention(x, context): pre-norm with feed-forward part, or attention with residual only (reading 10)."""

    def __init__(self, width: int, config: BdamConfig, cross: bool) -> None:
        super().__init__()
        self.pre_norm = config.pre_norm
        self.attention = nn.MultiheadAttention(width, config.heads, config.dropout, batch_first=True)
        self.dropout = nn.Dropout(config.dropout)
        if config.pre_norm:
            self.norm = nn.LayerNorm(width)
            self.norm_context = nn.LayerNorm(width) if cross else None
            last = nn.Linear(4 * width, width)
            self.feed_forward = nn.Sequential(
                nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), last, nn.Dropout(config.dropout)
            )
            with torch.no_grad():
                self.attention.out_proj.weight.mul_(RESIDUAL_SCALE)
                last.weight.mul_(RESIDUAL_SCALE)

    def forward(self, x_BPC: Tensor, context_BPC: Tensor | None = None) -> Tensor:
        query = self.norm(x_BPC) if self.pre_norm else x_BPC
        if context_BPC is None:
            context = query
        else:
            context = self.norm_context(context_BPC) if self.pre_norm and self.norm_context else context_BPC
        attended = self.attention(query, context, context, need_weights=False)[0]
        x_BPC = x_BPC + self.dropout(attended)
        return x_BPC + self.feed_forward(x_BPC) if self.pre_norm else x_BPC


class _Branch(nn.Module):
    """Projection, self-attention stack and cross-attention layers of one branch; no weights are shared (paper 4.3)."""

    def __init__(self, width: int, config: BdamConfig) -> None:
        super().__init__()
        self.projection = nn.Linear(width, width)
        self_layers = config.self_layers if config.enabled else 0
        cross_layers = config.cross_layers if config.enabled and config.cross_attention else 0
        self.self_attention = nn.ModuleList(_Attention(width, config, cross=False) for _ in range(self_layers))
        self.cross_attention = nn.ModuleList(_Attention(width, config, cross=True) for _ in range(cross_layers))
        self.norm = nn.LayerNorm(width) if config.enabled and config.pre_norm else nn.Identity()

    def self_attend(self, tokens_BPC: Tensor, run: Callable[..., Tensor]) -> Tensor:
        x_BPC = self.projection(tokens_BPC)
        for layer in self.self_attention:
            x_BPC = run(layer, x_BPC)
        return x_BPC


def _call(layer: nn.Module, *tokens: Tensor) -> Tensor:
    return layer(*tokens)


class Bdam(nn.Module):
    """Splits tokens (B, P, C) into identity and clothing (paper 3.2); with `enabled` off, pooled tokens through one linear
    layer per branch (Table 1, baseline). Raises ValueError when `heads` does not divide `width`."""

    def __init__(self, width: int, config: BdamConfig) -> None:
        super().__init__()
        if config.enabled and width % config.heads:
            raise ValueError(f"Bdam: heads must divide the width of the visual encoder ({width}), got {config.heads}")
        self.identity = _Branch(width, config)
        self.clothing = _Branch(width, config)
        self.gate = nn.Linear(2 * width, width) if config.enabled and config.gate else None
        # Keep only the inputs of the layers, and run a layer again for its gradient.
        self.checkpointing = False

    def forward(self, tokens_BPC: Tensor) -> BdamOutput:
        again = self.checkpointing and self.training and torch.is_grad_enabled()
        run = partial(checkpoint, use_reentrant=False) if again else _call
        identity, clothing = self.identity.self_attend(tokens_BPC, run), self.clothing.self_attend(tokens_BPC, run)
        for id_layer, clo_layer in zip(self.identity.cross_attention, self.clothing.cross_attention, strict=True):
            # Both directions read the inputs of the layer, not the update of the other branch.
            identity, clothing = run(id_layer, identity, clothing), run(clo_layer, clothing, identity)
        identity, clothing = self.identity.norm(identity), self.clothing.norm(clothing)
        id_hat_BC, clo_hat_BC = identity.mean(1), clothing.mean(1)
        if self.gate is None:
            return BdamOutput(id_hat_BC, clo_hat_BC, None, id_hat_BC, clo_hat_BC, identity, clothing)
        gate_BC = torch.sigmoid(self.gate(torch.cat([id_hat_BC, clo_hat_BC], dim=1)))
        identity, clothing = gate_BC[:, None] * identity, (1 - gate_BC)[:, None] * clothing
        f_id_BC, f_clo_BC = gate_BC * id_hat_BC, (1 - gate_BC) * clo_hat_BC
        return BdamOutput(id_hat_BC, clo_hat_BC, gate_BC, f_id_BC, f_clo_BC, identity, clothing)
