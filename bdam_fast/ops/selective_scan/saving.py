"""States that the forward of selective_scan saves for its backward: those before every tile, or before every second one.

The CUDA kernels save the states before tiles of 8 steps, 8 bytes for each element with 16 states. Before every second tile
only they save half of that, and the backward walks a tile more for each that it has no state of. No value is rounded.

B batch, L length, D channels, N states.
"""

from typing import Any

from ... import _operators, _tuning
from .fake import CUDA_TILE

# Bytes of a call's saved states from which half of them is saved: 1.5e8 for B 64, D 1536, L 192, 1.1e9 for B 8, D 2048, L 8192.
MANY = 512 * 2**20
PADDED, ITEM = 16, 4


def every(namespace: str, softplus: bool, tensors: tuple[Any, ...]) -> int:
    """Tiles from one saved state to the next: 2 or 1.

    2 where the CUDA kernels can (9 to 16 states, z, softplus, B and C per step, no seq_idx) and either the card's table says so
    (`selective_scan.saved_steps`) or all states would take MANY bytes and more. In a graph with a length that is not known
    the bytes are not either: the table alone decides.

    tensors: those of the raw operator, from u to seq_idx.
    """
    u, _, A, B, C, _, z, _, _, seq_idx = tensors
    if _operators.backend_of(namespace, u.device) != "cuda" or not softplus or z is None or seq_idx is not None:
        return 1
    if not 8 < A.shape[1] <= PADDED or B.dim() == 2 or C.dim() == 2:
        return 1
    if _tuning.size("selective_scan.saved_steps", u.device) == 2 * CUDA_TILE:
        return 2
    batch, channels, length = u.shape
    if not all(type(n) is int for n in (batch, channels, length)):
        return 1
    return 2 if batch * -(-length // CUDA_TILE) * channels * PADDED * ITEM >= MANY else 1
