"""Visual and text encoders: ViT and BERT of `transformers`, pretrained by name or folder, or small and untrained.

Shapes: B batch, P patches, T text tokens, C width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BertConfig, BertModel, ViTConfig, ViTModel

from training.config import EncoderConfig

_ATTENTION = "sdpa"
# Standard deviations that new encoders with a convolutional stem start from.
POSITION_STD, WORD_STD = 0.5, 0.1


def _load(name: str, build: Callable[..., Any]) -> Any:
    """A pretrained backbone, or one error that names what was asked for. Raises RuntimeError."""
    try:
        return build(name, add_pooling_layer=False, attn_implementation=_ATTENTION)
    except (OSError, ValueError) as error:
        raise RuntimeError(
            f"encoder: pretrained weights {name!r} cannot be loaded; give a local folder that holds them, connect to "
            f"the hub once, or leave encoder.pretrained empty for a small encoder ({str(error).splitlines()[0]})"
        ) from error


def _sizes(config: EncoderConfig) -> dict[str, Any]:
    """What a small ViT and a small BERT have in common."""
    return {
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "intermediate_size": config.feed_forward * config.width,
        "attn_implementation": _ATTENTION,
    }


class _Backbone(nn.Module):
    """Holds one backbone; a frozen one stays in evaluation mode (no dropout) and outside the graph."""

    def __init__(self, backbone: nn.Module, trainable: bool) -> None:
        super().__init__()
        self.backbone = backbone
        self.trainable = trainable
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
        """From now on the backbone keeps the inputs of its layers only and runs a layer again in the backward pass."""
        if self.trainable:
            backbone: Any = self.backbone
            # BERT would switch its cache for decoding off by itself, with a warning.
            backbone.config.use_cache = False
            # The name before transformers 5.
            old = "gradient_checkpointing_enable"
            name = "activation_checkpointing_enable" if hasattr(backbone, "activation_checkpointing_enable") else old
            getattr(backbone, name)({"use_reentrant": False})

    def _run(self, *args: Tensor, **kwargs: Any) -> Tensor:
        with torch.set_grad_enabled(self.trainable and torch.is_grad_enabled()):
            return self.backbone(*args, **kwargs).last_hidden_state


def _convolution(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())


class _ConvolutionalStem(nn.Module):
    """Patch embedding by convolutions in place of one linear map a patch (Xiao et al., Early Convolutions Help Transformers
    See Better, NeurIPS 2021): each halves the image, down to a token a patch, and
    doubles the channels, up to `width`.

    `patch` is a power of two. Batch statistics are those of a micro-batch where there are several.
    """

    def __init__(self, width: int, patch: int) -> None:
        super().__init__()
        halvings = patch.bit_length() - 1
        channels = [3, *(min(32 * 2**i, width) for i in range(halvings))]
        self.convolutions = nn.Sequential(*(_convolution(a, b, 2) for a, b in zip(channels, channels[1:], strict=False)))
        self.projection = nn.Conv2d(channels[-1], width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """(B, 3, H, W) -> tokens (B, P, C)."""
        return self.norm(self.projection(self.convolutions(images_BCHW))).relu().flatten(2).mT


class _WindowEmbeddings(nn.Module):
    """Embeddings of BERT, and added to each what a window of three words says: which colour belongs to which garment
    stands in neighbouring words, and attention takes long to find them."""

    def __init__(self, embeddings: nn.Module, width: int, pad_id: int) -> None:
        super().__init__()
        self.embeddings, self.pad_id = embeddings, pad_id
        self.window = nn.Linear(3 * width, width)

    def forward(self, input_ids: Tensor, **kwargs: Any) -> Tensor:
        """Token ids (B, T) -> (B, T, C); what stands in padding changes nothing outside of it."""
        x_BTC = self.embeddings(input_ids=input_ids, **kwargs)
        x_BTC = x_BTC * (input_ids != self.pad_id).to(x_BTC.dtype)[..., None]
        around = torch.cat([F.pad(x_BTC[:, :-1], (0, 0, 1, 0)), x_BTC, F.pad(x_BTC[:, 1:], (0, 0, 0, 1))], dim=2)
        return x_BTC + F.gelu(self.window(around))


def _start_from_grid(positions_1NC: nn.Parameter, image_size: tuple[int, int], patch: int) -> None:
    """Starts the trainable position embeddings of a new ViT from sines and cosines of row and column, [CLS] from 0.

    Small random ones are drowned by the patches: InfoNCE of the synthetic set after 6 epochs 3.97, after 8 with random
    ones 4.03.
    """
    rows, columns = image_size[0] // patch, image_size[1] // patch
    quarter = positions_1NC.shape[2] // 4
    rate = 10000.0 ** (-torch.arange(quarter) / quarter)
    y = torch.arange(rows).repeat_interleave(columns)[:, None] * rate
    x = torch.arange(columns).repeat(rows)[:, None] * rate
    with torch.no_grad():
        positions_1NC.zero_()
        positions_1NC[0, 1:, : 4 * quarter] = torch.cat([y.sin(), y.cos(), x.sin(), x.cos()], dim=1)


class VisualEncoder(_Backbone):
    """ViT (paper 3.2: ViT-B/16) whose last block's normalised patch tokens are the entangled feature f.

    Position embeddings of pretrained weights are interpolated (bicubic) when `image_size` is another than theirs.
    Raises RuntimeError when weights cannot be loaded, ValueError when `image_size` is no multiple of the patch.
    """

    def __init__(self, config: EncoderConfig, image_size: tuple[int, int]) -> None:
        if config.pretrained:
            backbone = _load(config.pretrained, ViTModel.from_pretrained)
        else:
            backbone = ViTModel(
                ViTConfig(
                    image_size=list(image_size),
                    patch_size=config.patch_size,
                    # 0.02 is meant for width 768: at 96 a patch's content and place then hardly move the token mean.
                    initializer_range=config.width**-0.5,
                    **_sizes(config),
                ),
                add_pooling_layer=False,
            )
            positions = backbone.embeddings.position_embeddings
            if config.stem == "convolutional":
                backbone.embeddings.patch_embeddings = _ConvolutionalStem(config.width, config.patch_size)
                # As large as what the stem says: smaller, the mean of the tokens would not know where anything was.
                nn.init.normal_(positions, std=POSITION_STD)
            else:
                _start_from_grid(positions, image_size, config.patch_size)
        super().__init__(backbone, config.trainable)
        size, patch = backbone.config.image_size, backbone.config.patch_size
        if image_size[0] % patch or image_size[1] % patch:
            raise ValueError(f"VisualEncoder: image_size must be a multiple of the patch ({patch}), got {image_size}")
        self.width: int = backbone.config.hidden_size
        self.image_size = tuple(image_size)
        self._interpolate = tuple(size if isinstance(size, (list, tuple)) else (size, size)) != self.image_size

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Float images (B, 3, H, W) with mean 0.5 and std 0.5 taken out -> patch tokens (B, P, C), [CLS] dropped.

        Raises ValueError for images of another size than the encoder was built for.
        """
        if tuple(images_BCHW.shape[1:]) != (3, *self.image_size):
            raise ValueError(
                f"VisualEncoder: images must have shape (B, 3, {self.image_size[0]}, {self.image_size[1]}), "
                f"got {tuple(images_BCHW.shape)}"
            )
        return self._run(images_BCHW, interpolate_pos_encoding=self._interpolate)[:, 1:]


class TextEncoder(_Backbone):
    """BERT (paper 4.2: bert-base-uncased), with `adapter_layers` trainable self-attention layers on top (reading 11).

    Raises RuntimeError when weights cannot be loaded, ValueError when they have fewer words or positions than needed.
    """

    def __init__(
        self, config: EncoderConfig, vocab_size: int, pad_id: int, max_length: int, adapter_layers: int = 0
    ) -> None:
        if config.pretrained:
            backbone = _load(config.pretrained, BertModel.from_pretrained)
        else:
            backbone = BertModel(
                BertConfig(
                    vocab_size=vocab_size,
                    max_position_embeddings=max_length,
                    # 160 -> 106 ms forward for 192 texts of 48 tokens (width 128, 2 layers) on 2 CPU cores: dropout of
                    # the attention weights rules the fused attention out.
                    attention_probs_dropout_prob=0.0,
                    # Drawing its masks takes 20 of 258 ms of a step of the synthetic recipe; a new ViT has none either.
                    hidden_dropout_prob=0.0,
                    pad_token_id=pad_id,
                    **_sizes(config),
                ),
                add_pooling_layer=False,
            )
            embeddings: Any = backbone.embeddings
            if config.stem == "convolutional":
                # Words first: at equal size, place and kind are two thirds of what a token says.
                nn.init.normal_(embeddings.word_embeddings.weight, std=WORD_STD)
                backbone.embeddings = _WindowEmbeddings(embeddings, config.width, pad_id)
        super().__init__(backbone, config.trainable)
        for name, needed in (("vocab_size", vocab_size), ("max_position_embeddings", max_length)):
            if getattr(backbone.config, name) < needed:
                raise ValueError(
                    f"TextEncoder: the tokenizer and text length need {name} >= {needed}, "
                    f"the weights of {config.pretrained!r} have {getattr(backbone.config, name)}"
                )
        self.width: int = backbone.config.hidden_size
        heads = backbone.config.num_attention_heads
        layers = [
            nn.TransformerEncoderLayer(
                self.width, heads, 4 * self.width, 0.1, "gelu", batch_first=True, norm_first=True
            )
            for _ in range(adapter_layers)
        ]
        self.adapter = nn.ModuleList(layers)

    def forward(self, input_ids_BT: Tensor, attention_mask_BT: Tensor) -> Tensor:
        """Token ids and mask (B, T), int64, 1 where a token is -> tokens (B, T, C); those of padding mean nothing."""
        tokens_BTC = self._run(input_ids_BT, attention_mask=attention_mask_BT)
        for layer in self.adapter:
            tokens_BTC = layer(tokens_BTC, src_key_padding_mask=attention_mask_BT == 0)
        return tokens_BTC
