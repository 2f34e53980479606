"""Vectors of words and of pairs of neighbouring words, which say which colour is of which garment.

Shapes: B batch, T text tokens, W width of the vectors.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Standard deviation that the words, and pairs of words, of a new small encoder start from.
WORD_STD = 0.1
# Width of WordVectors.
WORD_WIDTH = 128

# Vectors for neighbouring tokens: the captions of 10,000 rendered images hold about 7,000 different pairs.
PAIRS = 1 << 14
# Multiplier of the hash of a pair (Knuth, The Art of Computer Programming, volume 3, 6.4).
_HASH = 2654435761


def pair_numbers(input_ids_BT: Tensor, vocab_size: int) -> Tensor:
    """Token ids, int64 (B, T) -> number of each token and the one after it, int64 (B, T - 1) below PAIRS, by a hash."""
    return (input_ids_BT[:, :-1] * vocab_size + input_ids_BT[:, 1:]) * _HASH % (1 << 32) * PAIRS >> 32


class WordVectors(nn.Module):
    """A vector of each token plus one of it and the token before it (`pair_numbers`)."""

    def __init__(self, vocab_size: int, pad_id: int) -> None:
        super().__init__()
        self.vocab_size = vocab_size
        self.word_embeddings = nn.Embedding(vocab_size, WORD_WIDTH, padding_idx=pad_id)
        self.pairs = nn.Embedding(PAIRS, WORD_WIDTH)
        with torch.no_grad():
            for vectors in (self.word_embeddings.weight, self.pairs.weight):
                nn.init.normal_(vectors, std=WORD_STD)
            self.word_embeddings.weight[pad_id] = 0

    def forward(self, input_ids_BT: Tensor) -> Tensor:
        """Token ids, int64 (B, T) -> (B, T, W)."""
        pairs_BTW = self.pairs(pair_numbers(input_ids_BT, self.vocab_size))
        return self.word_embeddings(input_ids_BT) + F.pad(pairs_BTW, (0, 0, 1, 0))
