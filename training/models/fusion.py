"""Fusion of the gated identity feature with a text through a stack of Mamba layers (paper 3.4, readings 13 and 14), or of
transformer layers in their place (Fig. 5).

Shapes: B batch, P patches, T text tokens, L = P + T, C width of an encoder, W width of the fusion, E joint embedding.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bdam_fast.nn import Mamba
from training.config import Backend, FusionConfig

# Initial weights of the matching head: a cosine of 1 is the log-odds 10.
START_SCALE = 10.0


@dataclass(frozen=True)
class FusionOutput:
    """Fused feature of image-text pairs and the weights of the two modalities."""

    # f_final, not L2-normalised.
    f_final_BE: Tensor
    # Softmax weights of image and text, in this order.
    weights_B2: Tensor


def masked_mean(tokens_BLC: Tensor, mask_BL: Tensor) -> Tensor:
    """Mean (B, C) of the tokens (B, L, C) whose mask (B, L) is not zero; zero for a row without tokens."""
    mask = mask_BL.to(tokens_BLC.dtype)
    return torch.einsum("blc,bl->bc", tokens_BLC, mask) / mask.sum(1, keepdim=True).clamp_min(1)


class _MambaLayer(nn.Module):
    """x + Mamba(x) as printed, or pre-norm residual with dropout (reading 14)."""

    def __init__(self, config: FusionConfig, backend: Backend) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.width) if config.pre_norm else nn.Identity()
        self.mamba = Mamba(config.width, d_state=config.state, d_conv=config.conv, backend=backend)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x_BLW: Tensor, seq_idx_BL: Tensor | None) -> Tensor:
        return x_BLW + self.dropout(self.mamba(self.norm(x_BLW), seq_idx=seq_idx_BL))


class _TransformerLayer(nn.Module):
    """Pre-norm transformer layer with padding masked; token order is known from the encoders' position embeddings."""

    def __init__(self, config: FusionConfig) -> None:
        super().__init__()
        width = config.width
        self.layer = nn.TransformerEncoderLayer(
            width, config.heads, 4 * width, config.dropout, "gelu", batch_first=True, norm_first=True
        )

    def forward(self, x_BLW: Tensor, seq_idx_BL: Tensor | None) -> Tensor:
        return self.layer(x_BLW, src_key_padding_mask=None if seq_idx_BL is None else seq_idx_BL < 0)


def _layers(config: FusionConfig, backend: Backend) -> nn.ModuleList:
    """The stack between gate and projection: layers with the call layer(x (B, L, W), index (B, L), -1 for padding)."""
    if config.layers_kind == "none":
        return nn.ModuleList()
    if config.layers_kind == "transformer":
        return nn.ModuleList(_TransformerLayer(config) for _ in range(config.layers))
    return nn.ModuleList(_MambaLayer(config, backend) for _ in range(config.layers))


def projection(width: int, out: int, batch_norm: bool) -> nn.Module:
    """Linear map (N, width) -> (N, out) to an embedding, batch-normalised if `batch_norm`."""
    linear = nn.Linear(width, out)
    return nn.Sequential(linear, nn.BatchNorm1d(out)) if batch_norm else linear


class LinearMatchingHead(nn.Linear):
    """Logit (M,) of image-text pairs: linear map of f_final alone."""

    def __init__(self, width: int) -> None:
        super().__init__(width, 1)

    # Not the signature of nn.Linear: both heads are called with the text.
    def forward(self, f_final_ME: Tensor, text_ME: Tensor) -> Tensor:  # type: ignore[override]
        """f_final (M, E); the text embeddings are not read."""
        return super().forward(f_final_ME)[:, 0]


class MatchingHead(nn.Module):
    """Logit (M,) of image-text pairs: dot product of f_final and the text's embedding, one weight for each channel, plus a bias.

    A linear map of f_final alone stays at log 2: to compare its text with its image, f_final would have to hold both.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((width,), START_SCALE))
        self.bias = nn.Parameter(torch.zeros(()))

    def forward(self, f_final_ME: Tensor, text_ME: Tensor) -> Tensor:
        """f_final (M, E), text embeddings (M, E) of unit length."""
        return (F.normalize(f_final_ME, dim=-1) * text_ME) @ self.weight + self.bias


def _alignment(width: int, config: FusionConfig) -> nn.Module:
    """MLP from the width of one modality to that of the fusion; one linear map for Table 2, w/o alignment."""
    if not config.alignment:
        return nn.Linear(width, config.width)
    return nn.Sequential(
        nn.Linear(width, config.width), nn.GELU(), nn.Dropout(config.dropout), nn.Linear(config.width, config.width)
    )


class Fusion(nn.Module):
    """Alignment, two-way softmax gate, Mamba or transformer layers, projection to `out` channels.

    forward: gated image tokens (B, P, C), whose mean is the image feature, text tokens (B, T, C), their mask (B, T, 1 token,
    0 padding) and pooled text (B, C) -> FusionOutput. The form "pooled" uses image feature and pooled text, "tokens" the tokens.
    """

    def __init__(
        self,
        image_width: int,
        text_width: int,
        config: FusionConfig,
        out: int,
        backend: Backend,
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        self.form = config.form
        self.align_image = _alignment(image_width, config)
        self.align_text = _alignment(text_width, config)
        self.gate = nn.Linear(2 * config.width, 2) if config.gate else None
        self.layers = _layers(config, backend)
        self.norm = nn.LayerNorm(config.width) if config.pre_norm else nn.Identity()
        self.projection = projection(config.width, out, batch_norm)

    def forward(
        self,
        image_tokens_BPC: Tensor,
        text_tokens_BTC: Tensor,
        text_mask_BT: Tensor,
        text_pooled_BC: Tensor,
    ) -> FusionOutput:
        if self.form == "pooled":
            return self._pooled(image_tokens_BPC.mean(1), text_pooled_BC)
        return self._tokens(image_tokens_BPC, text_tokens_BTC, text_mask_BT)

    def _weights(self, image_BW: Tensor, text_BW: Tensor) -> Tensor:
        if self.gate is None:
            return image_BW.new_full((image_BW.shape[0], 2), 0.5)
        return torch.softmax(self.gate(torch.cat([image_BW, text_BW], dim=1)), dim=1)

    def _pooled(self, f_image_BC: Tensor, text_pooled_BC: Tensor) -> FusionOutput:
        """f_fusion = w1 f_img + w2 f_txt as printed: a sequence of length 1."""
        image_BW, text_BW = self.align_image(f_image_BC), self.align_text(text_pooled_BC)
        weights_B2 = self._weights(image_BW, text_BW)
        x_BLW = (weights_B2[:, :1] * image_BW + weights_B2[:, 1:] * text_BW)[:, None]
        for layer in self.layers:
            x_BLW = layer(x_BLW, None)
        return FusionOutput(self.projection(self.norm(x_BLW[:, 0])), weights_B2)

    def _tokens(self, image_tokens_BPC: Tensor, text_tokens_BTC: Tensor, text_mask_BT: Tensor) -> FusionOutput:
        """[image; text] as one sequence, each token scaled by the weight of its modality; masked mean over the output."""
        image_BPW, text_BTW = self.align_image(image_tokens_BPC), self.align_text(text_tokens_BTC)
        weights_B2 = self._weights(image_BPW.mean(1), masked_mean(text_BTW, text_mask_BT))
        x_BLW = torch.cat([weights_B2[:, :1, None] * image_BPW, weights_B2[:, 1:, None] * text_BTW], dim=1)
        valid_BL = torch.cat([text_mask_BT.new_ones(image_BPW.shape[:2]), text_mask_BT], dim=1) != 0
        # Padding has index -1: the scan and the convolution skip it.
        seq_idx_BL = valid_BL.to(torch.int32) - 1
        for layer in self.layers:
            x_BLW = layer(x_BLW, seq_idx_BL)
        return FusionOutput(self.projection(masked_mean(self.norm(x_BLW), valid_BL)), weights_B2)
