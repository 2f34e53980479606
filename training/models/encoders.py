"""Visual and text encoders: pretrained towers of `transformers` (by name or folder), or a small ViT and BERT with random weights.

Shapes: B batch, P patches, T text tokens, C width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from training.config import EncoderConfig
from training.models.pretrained import HALF, Backbone, Kind, load_backbone, rebuild, text_positions
from training.models.small_encoders import small_bert, small_vit
from training.models.word_pairs import WORD_WIDTH, WordVectors


class _Backbone(nn.Module):
    """Wrapper of a backbone; a frozen one stays in evaluation mode (no dropout) and outside the graph."""

    def __init__(self, backbone: nn.Module, trainable: bool, description: str = "") -> None:
        super().__init__()
        self.backbone = backbone
        self.trainable = trainable
        # Of a pretrained tower, from which a run builds it without the folder of its weights.
        self.description = description
        if not trainable:
            backbone.requires_grad_(False)
            backbone.eval()

    def train(self, mode: bool = True) -> _Backbone:
        """Sets training mode; a frozen backbone stays in evaluation mode."""
        super().train(mode)
        if not self.trainable:
            self.backbone.eval()
        return self

    def checkpoint_layers(self) -> None:
        """Enables activation checkpointing: only the inputs of layers are kept, a layer runs again in the backward pass."""
        if self.trainable:
            backbone: Any = self.backbone
            # BERT would otherwise switch its decoding cache off with a warning.
            backbone.config.use_cache = False
            # The name before transformers 5.
            old = "gradient_checkpointing_enable"
            name = "activation_checkpointing_enable" if hasattr(backbone, "activation_checkpointing_enable") else old
            getattr(backbone, name)({"use_reentrant": False})

    def _run(self, *args: Tensor, **kwargs: Any) -> Tensor:
        with torch.set_grad_enabled(self.trainable and torch.is_grad_enabled()):
            return self.backbone(*args, **kwargs).last_hidden_state


class VisualEncoder(_Backbone):
    """ViT (paper 3.2: ViT-B/16) or another tower of `pretrained`, whose last block's normalised patch tokens are the entangled
    feature f.

    Position embeddings of pretrained weights are interpolated (bicubic) to `image_size` where it differs. description: of a
    pretrained tower, to build it without weights. Raises what `load_backbone` does, and ValueError when `image_size` is not a
    multiple of the patch.
    """

    _scale: Tensor
    _shift: Tensor

    def __init__(self, config: EncoderConfig, image_size: tuple[int, int], description: str = "") -> None:
        tower = _pretrained("visual", config, description)
        backbone: Any = tower.module if tower else small_vit(config, image_size)
        super().__init__(backbone, config.trainable, tower.describe() if tower else "")
        size, patch = backbone.config.image_size, backbone.config.patch_size
        if image_size[0] % patch or image_size[1] % patch:
            raise ValueError(f"VisualEncoder: image_size must be a multiple of the patch ({patch}), got {image_size}")
        self.width: int = backbone.config.hidden_size
        self.image_size = tuple(image_size)
        interpolate = tuple(size if isinstance(size, (list, tuple)) else (size, size)) != self.image_size
        # DINOv2 has no such argument: it interpolates whenever sizes differ.
        by_itself = backbone.config.model_type == "dinov2"
        self._arguments: dict[str, Any] = {} if by_itself else {"interpolate_pos_encoding": interpolate}
        self._prefix = tower.tower.prefix_tokens if tower else 1
        self._last_norm = tower.last_norm if tower else None
        mean, std = (tower.mean, tower.std) if tower else HALF
        # Images come with mean 0.5 and std 0.5.
        scale, shift = 0.5 / torch.tensor(std), (0.5 - torch.tensor(mean)) / torch.tensor(std)
        self._is_half = (mean, std) == HALF
        self.register_buffer("_scale", scale[:, None, None], persistent=False)
        self.register_buffer("_shift", shift[:, None, None], persistent=False)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Float images (B, 3, H, W), normalised with mean 0.5 and std 0.5 -> patch tokens (B, P, C) without [CLS].

        Raises ValueError for images of a different size than the encoder was built for.
        """
        if tuple(images_BCHW.shape[1:]) != (3, *self.image_size):
            raise ValueError(
                f"VisualEncoder: images must have shape (B, 3, {self.image_size[0]}, {self.image_size[1]}), "
                f"got {tuple(images_BCHW.shape)}"
            )
        if not self._is_half:
            images_BCHW = images_BCHW * self._scale + self._shift
        return self._run(images_BCHW, **self._arguments)[:, self._prefix :]

    def _run(self, *args: Tensor, **kwargs: Any) -> Tensor:
        tokens_BPC = super()._run(*args, **kwargs)
        return tokens_BPC if self._last_norm is None else self._last_norm(tokens_BPC)


class TextEncoder(_Backbone):
    """BERT (paper 4.2: bert-base-uncased) or another tower of `pretrained`, with `adapter_layers` trainable self-attention layers
    on top (reading 11).

    description: of a pretrained tower, to build it without weights. Raises what `load_backbone` does, and ValueError when the
    weights have fewer words or positions than needed, or another padding token.
    """

    def __init__(
        self,
        config: EncoderConfig,
        vocab_size: int,
        pad_id: int,
        max_length: int,
        adapter_layers: int = 0,
        description: str = "",
    ) -> None:
        tower = _pretrained("text", config, description)
        backbone: Any = tower.module if tower else small_bert(config, vocab_size, pad_id, max_length)
        super().__init__(backbone, config.trainable, tower.describe() if tower else "")
        own = backbone.config
        for name, needed, has in (
            ("vocab_size", vocab_size, own.vocab_size),
            ("max_position_embeddings", max_length, text_positions(own)),
        ):
            if has < needed:
                raise ValueError(
                    f"TextEncoder: the tokenizer and text length need {name} >= {needed}, "
                    f"the weights of {config.pretrained!r} have {has}"
                )
        if own.model_type == "roberta" and own.pad_token_id != pad_id:
            raise ValueError(
                f"TextEncoder: positions of RoBERTa count from its padding token: the tokenizer pads with {pad_id}, the "
                f"weights of {config.pretrained!r} with {own.pad_token_id}"
            )
        # Beside the tokens of a "deep" BERT, whose small width would be the rank of all text embeddings.
        self.words = WordVectors(vocab_size, pad_id) if config.stem == "deep" and tower is None else None
        self.width: int = own.hidden_size + (WORD_WIDTH if self.words else 0)
        heads = own.num_attention_heads
        layers = [
            nn.TransformerEncoderLayer(
                self.width, heads, 4 * self.width, 0.1, "gelu", batch_first=True, norm_first=True
            )
            for _ in range(adapter_layers)
        ]
        self.adapter = nn.ModuleList(layers)

    @property
    def is_causal(self) -> bool:
        """True if a token reads only those before it: the first one says nothing of the text."""
        backbone: Any = self.backbone
        return backbone.config.model_type == "clip_text_model"

    def forward(self, input_ids_BT: Tensor, attention_mask_BT: Tensor) -> Tensor:
        """Token ids and mask (1 token, 0 padding), int64 (B, T) -> tokens (B, T, C); those of padding are undefined."""
        tokens_BTC = self._run(input_ids_BT, attention_mask=attention_mask_BT)
        if self.words is not None:
            tokens_BTC = torch.cat([tokens_BTC, self.words(input_ids_BT)], dim=2)
        for layer in self.adapter:
            tokens_BTC = layer(tokens_BTC, src_key_padding_mask=attention_mask_BT == 0)
        return tokens_BTC


def _pretrained(kind: Kind, config: EncoderConfig, description: str) -> Backbone | None:
    """The tower of a configuration, with random weights if it is described; None for a small encoder."""
    if not config.pretrained:
        return None
    return rebuild(kind, description) if description else load_backbone(kind, config)
