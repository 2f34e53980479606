"""Scores of queries against a gallery from their embeddings, with the same bits in every block of queries.

Shapes: Q queries, G gallery, E embedding width, B queries of a block.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

# Scores at once: 20 bytes each, 84 MB. In blocks of a quarter of it the matrix products take 1.07 times as long.
BLOCK = 1 << 22
# Of an embedding's length; two of them and the sum over E fit the 53 of float64.
GRID_BITS = 26


def blocks(queries: int, gallery: int) -> list[slice]:
    """Queries whose scores are computed at once."""
    step = max(1, BLOCK // gallery)
    return [slice(first, min(first + step, queries)) for first in range(0, queries, step)]


class Similarity:
    """<t, v> of queries and a gallery; with a second one <t, v_id> + beta <t, v_clo>, which alone counts at beta = inf.

    A score is float32 and depends on its query, its gallery and beta alone, not on the block or the number of threads:
    embeddings are rounded to 26 bits (of unit length: to multiples of 2^-26), so that every product and every partial
    sum is exact in float64 in whatever order the library adds; each product is rounded to float32 once, then added.
    Equal embeddings always tie. Of a float32 product 87 % of the scores differ between blocks of 2 and of 8 queries (MKL).
    """

    def __init__(self, query_QE: Any, gallery_GE: Any, clothing_GE: Any = None) -> None:
        """Tensors or arrays, floating, (Q, E) and (G, E). Raises TypeError for another dtype, ValueError for shapes that
        do not fit, NaN and infinite values."""
        self.query_QE = _embeddings("query_QE", query_QE)
        named = {"gallery_GE": gallery_GE} | ({} if clothing_GE is None else {"clothing_GE": clothing_GE})
        galleries = [_embeddings(name, values) for name, values in named.items()]
        for name, x in zip(named, galleries, strict=True):
            expected = len(galleries[0]), self.query_QE.shape[1]
            if x.shape != expected:
                raise ValueError(f"{name} must have shape {expected} like the other embeddings, got {tuple(x.shape)}")
        lengths = [_length(x).max() for x in galleries]
        self.branches = [_on_grid(x, length) for x, length in zip(galleries, lengths, strict=True)]
        self.largest = [float(_length(self.query_QE).max() * length) for length in lengths]
        self.shape = len(self.query_QE), len(galleries[0])
        self._exact = torch.empty(0, dtype=torch.float64)

    def matrix(self, beta: float, queries: slice | Sequence[int] = slice(None)) -> Tensor:
        """(B, G) of some queries at once. Errors as in `blocks`."""
        query_BE = self.query_QE[queries]
        parts = [scores_BG for _, _, scores_BG in self._blocks(query_BE, [beta])]
        return torch.cat(parts) if parts else torch.empty(0, self.shape[1])

    def blocks(self, betas: Sequence[float]) -> Iterator[tuple[slice, float, Tensor]]:
        """Queries, beta and their scores (B, G), a tensor of its own, for each block and in it for each weight.

        Raises ValueError for a weight that is negative or NaN, needs a second gallery, or leads beyond float32.
        """
        return self._blocks(self.query_QE, betas)

    def _blocks(self, query_QE: Tensor, betas: Sequence[float]) -> Iterator[tuple[slice, float, Tensor]]:
        for beta in betas:
            self._check(beta)
        for rows in blocks(len(query_QE), self.shape[1]):
            products = self._products(query_QE[rows], betas)
            for beta in betas:
                yield rows, beta, _weighted(products, beta)

    def _products(self, query_BE: Tensor, betas: Sequence[float]) -> dict[int, Tensor]:
        """Products with the galleries that any beta needs."""
        query_BE = _on_grid(query_BE, _length(query_BE)[:, None])
        needed = [any(math.isfinite(beta) for beta in betas), any(beta > 0 for beta in betas)]
        size = len(query_BE), self.shape[1]
        if self._exact.shape != size:
            self._exact = torch.empty(size, dtype=torch.float64)
        products = {}
        for branch, gallery_GE in enumerate(self.branches):
            if needed[branch]:
                products[branch] = torch.mm(query_BE, gallery_GE.T, out=self._exact).float()
        return products

    def _check(self, beta: float) -> None:
        if not beta >= 0:
            raise ValueError(f"beta must be 0 or more, got {beta}")
        if beta > 0 and len(self.branches) == 1:
            raise ValueError(f"beta {beta} weighs a second gallery, but there is none")
        largest = self.largest[0] + beta * self.largest[1] if 0 < beta < math.inf else max(self.largest)
        if not largest < torch.finfo(torch.float32).max:
            raise ValueError(f"scores up to {largest:.2g} (beta {beta}) would be infinite in float32")


def _weighted(products: dict[int, Tensor], beta: float) -> Tensor:
    if beta == 0 or math.isinf(beta):
        return products[0 if beta == 0 else 1].clone()
    # Not one operation with a factor: its vector part and its rest may round differently.
    return torch.mul(products[1], beta).add_(products[0])


def _embeddings(name: str, values: Any) -> Tensor:
    embeddings = values.detach().cpu() if isinstance(values, Tensor) else torch.from_numpy(np.asarray(values))
    if not embeddings.is_floating_point():
        raise TypeError(f"{name} must be floating, got {embeddings.dtype}")
    if embeddings.ndim != 2 or not embeddings.numel():
        raise ValueError(f"{name} must have shape (n, E), none of them 0, got {tuple(embeddings.shape)}")
    wrong = int((~embeddings.isfinite()).sum())
    if wrong:
        raise ValueError(f"{name} holds {wrong} NaN or infinite values")
    return embeddings


def _length(embeddings_NE: Tensor) -> Tensor:
    return embeddings_NE.double().square().sum(1).sqrt_()


def _on_grid(embeddings_NE: Tensor, length: Tensor) -> Tensor:
    """float64, rounded to a power of two of which the length has at most 1.4 * 2^GRID_BITS (products: 2^53)."""
    step = torch.ldexp(torch.ones_like(length), torch.frexp(length / 1.4).exponent - GRID_BITS)
    return embeddings_NE.double().div(step).round_().mul_(step)
