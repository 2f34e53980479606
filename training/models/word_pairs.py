"""Numbers of pairs of neighbouring tokens, for vectors that say which colour is of which garment.

Shapes: B batch, T text tokens.
"""

from torch import Tensor

# Vectors for neighbouring tokens: the captions of 10,000 rendered images hold about 7,000 different pairs.
PAIRS = 1 << 14
# Multiplier of the hash of a pair (Knuth, The Art of Computer Programming, volume 3, 6.4).
_HASH = 2654435761


def pair_numbers(input_ids_BT: Tensor, vocab_size: int) -> Tensor:
    """Token ids, int64 (B, T) -> number of each token and the one after it, int64 (B, T - 1) below PAIRS, by a hash."""
    return (input_ids_BT[:, :-1] * vocab_size + input_ids_BT[:, 1:]) * _HASH % (1 << 32) * PAIRS >> 32
