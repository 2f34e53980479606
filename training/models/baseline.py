"""Floor of the method: a plain dual encoder, four convolutions and a bag of words and word pairs, trained by InfoNCE alone.

Shapes: B batch, T text tokens, E joint embedding.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.config import LossConfig, ModelConfig
from training.models.model_outputs import EncoderOutput, ImageEmbedding, PairFeatures
from training.models.retrieval_model import RetrievalModel
from training.models.word_pairs import PAIRS, pair_numbers

if TYPE_CHECKING:
    from training.data.loader import Batch, TextBatch

# Channels and strides of the convolutions.
CHANNELS, STRIDES = (32, 64, 128, 128), (2, 2, 2, 1)
# Standard deviation that the vectors start from.
STD = 0.1


class ConvolutionalEncoder(nn.Module):
    """3 x 3 convolutions, the last map flattened, so that the place in the image counts, and one linear map."""

    def __init__(self, image_size: tuple[int, int], out: int) -> None:
        super().__init__()
        layers, (height, width) = list[nn.Module](), image_size
        for inputs, outputs, stride in zip((3, *CHANNELS), CHANNELS, STRIDES, strict=False):
            layers += [nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
            height, width = -(-height // stride), -(-width // stride)
        self.convolutions = nn.Sequential(*layers)
        self.projection = nn.Linear(CHANNELS[-1] * height * width, out)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Float images (B, 3, H, W) -> (B, E)."""
        return self.projection(self.convolutions(images_BCHW).flatten(1))


class BagOfWords(nn.Module):
    """Sum of one vector a token and one a pair of neighbouring tokens, which says which colour is of which garment; layer
    normalisation and one linear map. Pairs share PAIRS vectors by a hash."""

    def __init__(self, vocab_size: int, pad_id: int, out: int) -> None:
        super().__init__()
        self.vocab_size, self.pad_id = vocab_size, pad_id
        self.vectors = nn.EmbeddingBag(vocab_size + PAIRS, out, mode="sum", padding_idx=pad_id)
        nn.init.normal_(self.vectors.weight, std=STD)
        self.projection = nn.Sequential(nn.LayerNorm(out), nn.Linear(out, out))

    def forward(self, input_ids_BT: Tensor, attention_mask_BT: Tensor) -> Tensor:
        """Token ids and mask (1 token, 0 padding), int64 (B, T) -> (B, E)."""
        tokens_BT = input_ids_BT.masked_fill(attention_mask_BT == 0, self.pad_id)
        pairs = pair_numbers(tokens_BT, self.vocab_size) + self.vocab_size
        # Padding is at the end: a pair is one of two tokens if its second one is.
        pairs = pairs.masked_fill(attention_mask_BT[:, 1:] == 0, self.pad_id)
        return self.projection(self.vectors(torch.cat([tokens_BT, pairs], dim=1)))


class DualEncoder(RetrievalModel):
    """One embedding of an image, one of a text: neither branches nor fusion (`ModelConfig.architecture` "dual-encoder")."""

    def __init__(
        self, config: ModelConfig, loss: LossConfig, image_size: tuple[int, int], vocab_size: int, pad_id: int
    ) -> None:
        super().__init__(loss)
        self.visual = ConvolutionalEncoder(image_size, config.embedding)
        self.text = BagOfWords(vocab_size, pad_id, config.embedding)
        self.fusion = self.matching_head = None

    def encode(self, batch: Batch) -> EncoderOutput:
        """Runs both encoders on the images and the captions of a step; each makes one token."""
        captions = batch.captions
        image_B1E = self.visual(batch.images_BCHW)[:, None]
        text_1B1E = self.text(captions.input_ids_BT, captions.attention_mask_BT)[None, :, None]
        return EncoderOutput(image_B1E, text_1B1E, torch.ones_like(captions.input_ids_BT[None, :, :1]), batch.ids_B)

    def heads(self, encoded: EncoderOutput) -> PairFeatures:
        """Normalises both embeddings."""
        image_BE, text_BE = encoded.image_tokens_BPC[:, 0], encoded.text_tokens_VBTC[0, :, 0]
        return PairFeatures(F.normalize(image_BE, dim=-1), F.normalize(text_BE, dim=-1), self.temperature())

    def embed_images(self, images_BCHW: Tensor) -> ImageEmbedding:
        """Gallery side: the embedding of float images (B, 3, H, W); there is none of clothing."""
        return ImageEmbedding(F.normalize(self.visual(images_BCHW), dim=-1), None, None)

    def embed_texts(self, texts: TextBatch) -> Tensor:
        """Query side: L2-normalised text embeddings (B, E)."""
        return F.normalize(self.text(texts.input_ids_BT, texts.attention_mask_BT), dim=-1)
