"""Small encoders with random weights: a ViT and a BERT, with convolutional stems where the configuration says so.

Shapes: B batch, P patches, T text tokens, C width.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BertConfig, BertModel, ViTConfig, ViTModel

from training.config import EncoderConfig
from training.models.bdam import RESIDUAL_SCALE
from training.models.pretrained import ATTENTION
from training.models.word_pairs import PAIRS, WORD_STD, pair_numbers

# Last linear map of an attention or a feed-forward part, by the end of its name (transformers before 5: output.dense).
_LAST = ("o_proj", "fc2", "output.dense")


def _sizes(config: EncoderConfig) -> dict[str, Any]:
    """Arguments shared by the configurations of a small ViT and a small BERT."""
    return {
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "intermediate_size": config.feed_forward * config.width,
        "attn_implementation": ATTENTION,
    }


def _convolution(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())


class _PatchwiseLinear(nn.Module):
    """Linear map (B, C, P) -> (B, P, C') with weights of its own for each patch position."""

    def __init__(self, patches: int, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(patches, inputs, outputs) * inputs**-0.5)

    def forward(self, x_BCP: Tensor) -> Tensor:
        return torch.bmm(x_BCP.permute(2, 0, 1), self.weight).transpose(0, 1)


class _ConvolutionalStem(nn.Module):
    """Patch embedding by convolutions (Xiao et al., Early Convolutions Help Transformers See Better, NeurIPS 2021): each halves
    the image and doubles the channels from 32, up to `width`, down to 2 x 2 cells a patch, and `deep`, one more keeps both; then
    one linear map of the cells for each patch position, so that the mean of the tokens still tells a red shirt from red trousers.

    patch: a power of two above 2; grid: patches in height and width. Batch statistics are those of a micro-batch if there are
    several.
    """

    def __init__(self, width: int, patch: int, grid: tuple[int, int], deep: bool) -> None:
        super().__init__()
        halvings = patch.bit_length() - 2
        channels = [3, *(min(32 * 2**i, width) for i in range(halvings))]
        layers = [_convolution(a, b, 2) for a, b in zip(channels, channels[1:], strict=False)]
        self.convolutions = nn.Sequential(*layers, *([_convolution(channels[-1], channels[-1], 1)] if deep else []))
        self.projection = _PatchwiseLinear(grid[0] * grid[1], 4 * channels[-1], width)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """(B, 3, H, W) -> tokens (B, P, C)."""
        return self.projection(F.unfold(self.convolutions(images_BCHW), 2, stride=2))


class _WindowEmbeddings(nn.Module):
    """Embeddings of BERT, plus a non-linear map of the three words around each, plus, `deep`, a vector of each word and the one
    before it (`word_pairs`): neighbouring words say which colour belongs to which garment, and attention takes long to find them.
    """

    def __init__(self, embeddings: nn.Module, width: int, vocab_size: int, pad_id: int, deep: bool) -> None:
        super().__init__()
        self.embeddings, self.vocab_size, self.pad_id = embeddings, vocab_size, pad_id
        self.window = nn.Linear(3 * width, width)
        self.pairs = nn.Embedding(PAIRS, width) if deep else None
        if self.pairs is not None:
            nn.init.normal_(self.pairs.weight, std=WORD_STD)

    @property
    def word_embeddings(self) -> Any:
        """The table of the words, where transformers looks for it when it recomputes activations."""
        return self.embeddings.word_embeddings

    def forward(self, input_ids: Tensor, **kwargs: Any) -> Tensor:
        """Token ids (B, T) -> (B, T, C); padding has no influence on other tokens."""
        x_BTC = self.embeddings(input_ids=input_ids, **kwargs)
        x_BTC = x_BTC * (input_ids != self.pad_id).to(x_BTC.dtype)[..., None]
        before_BTC, after_BTC = F.pad(x_BTC[:, :-1], (0, 0, 1, 0)), F.pad(x_BTC[:, 1:], (0, 0, 0, 1))
        out_BTC = x_BTC + F.gelu(self.window(torch.cat([before_BTC, x_BTC, after_BTC], dim=2)))
        if self.pairs is None:
            return out_BTC
        return out_BTC + F.pad(self.pairs(pair_numbers(input_ids, self.vocab_size)), (0, 0, 1, 0))


def _start_near_identity(vit: nn.Module) -> None:
    """Scales the last map of each residual part down, so that the layers nearly pass their input on at first: three of five
    epochs of InfoNCE with a bag of words give R-1 54.9 in place of 50.8 (with 0 for RESIDUAL_SCALE)."""
    for name, module in vit.named_modules():
        if isinstance(module, nn.Linear) and name.endswith(_LAST):
            module.weight.data.mul_(RESIDUAL_SCALE)


def _init_grid_positions(positions_1NC: nn.Parameter, image_size: tuple[int, int], patch: int) -> None:
    """Initialises the trainable position embeddings of a new ViT with sines and cosines of row and column, [CLS] with 0.

    Small random ones are dominated by the patches: InfoNCE on the synthetic set is 3.97 after 6 epochs, with random ones
    4.03 after 8.
    """
    rows, columns = image_size[0] // patch, image_size[1] // patch
    quarter = positions_1NC.shape[2] // 4
    rate = 10000.0 ** (-torch.arange(quarter) / quarter)
    y = torch.arange(rows).repeat_interleave(columns)[:, None] * rate
    x = torch.arange(columns).repeat(rows)[:, None] * rate
    with torch.no_grad():
        positions_1NC.zero_()
        positions_1NC[0, 1:, : 4 * quarter] = torch.cat([y.sin(), y.cos(), x.sin(), x.cos()], dim=1)


def small_vit(config: EncoderConfig, image_size: tuple[int, int]) -> nn.Module:
    """A ViT for images of this size."""
    backbone = ViTModel(
        ViTConfig(
            image_size=list(image_size),
            patch_size=config.patch_size,
            # 0.02 suits width 768: at 96 the content and position of a patch would hardly change the token mean.
            initializer_range=config.width**-0.5,
            **_sizes(config),
        ),
        add_pooling_layer=False,
    )
    embeddings: Any = backbone.embeddings
    positions = embeddings.position_embeddings
    if config.stem != "plain":
        grid = image_size[0] // config.patch_size, image_size[1] // config.patch_size
        deep = config.stem == "deep"
        embeddings.patch_embeddings = _ConvolutionalStem(config.width, config.patch_size, grid, deep)
        # The stem knows the positions already.
        nn.init.zeros_(positions)
        _start_near_identity(backbone)
    else:
        _init_grid_positions(positions, image_size, config.patch_size)
    return backbone


def small_bert(config: EncoderConfig, vocab_size: int, pad_id: int, max_length: int) -> nn.Module:
    """A BERT for texts of up to `max_length` tokens."""
    backbone = BertModel(
        BertConfig(
            vocab_size=vocab_size,
            max_position_embeddings=max_length,
            # 160 -> 106 ms forward for 192 texts of 48 tokens (width 128, 2 layers) on 2 CPU cores: fused
            # attention does not support dropout of the attention weights.
            attention_probs_dropout_prob=0.0,
            # Its masks take 20 of 258 ms of a step of the synthetic recipe; a new ViT has no dropout either.
            hidden_dropout_prob=0.0,
            pad_token_id=pad_id,
            **_sizes(config),
        ),
        add_pooling_layer=False,
    )
    bert: Any = backbone
    if config.stem != "plain":
        # Words first: at equal size, place and kind are two thirds of what a token says.
        nn.init.normal_(bert.embeddings.word_embeddings.weight, std=WORD_STD)
        deep = config.stem == "deep"
        bert.embeddings = _WindowEmbeddings(bert.embeddings, config.width, vocab_size, pad_id, deep)
    return backbone
