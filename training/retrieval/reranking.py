"""Re-ranking of the best results of a text by the fusion of the text with each image, as the protocol `rerank` does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from training.retrieval.embedders import Embedder
from training.retrieval.finder import Result
from training.retrieval.scoring import LARGEST_BETA

# Images that are read and fused for one query, and at once.
MOST_RERANKED, BATCH = 200, 64


def require_count(count: int) -> None:
    """Raises ValueError for a number of images that is not from 0 to MOST_RERANKED."""
    if not 0 <= count <= MOST_RERANKED:
        raise ValueError(f"rerank must be a whole number from 0 to {MOST_RERANKED}, got {count}")


def rerank(embedder: Embedder, text: str, results: Sequence[Result], count: int, beta: float) -> list[Result]:
    """The first `count` results in the order of score + match, then the others as they were; `match` is set where it was made.

    At LARGEST_BETA, clothing alone, the score counts as its cosine, beside which the match says something.
    An image that cannot be read any more comes after those that can. Raises ValueError for a count out of range, and for a model
    without a fusion.
    """
    require_count(count)
    first, readable, pixels = list(results[:count]), [], []
    for result in first:
        try:
            pixels.append(embedder.read_image(Path(result.image.path).read_bytes(), result.image.path))
        except (OSError, ValueError):
            continue
        readable.append(result)
    parts = [embedder.match(text, np.stack(pixels[i : i + BATCH])) for i in range(0, len(pixels), BATCH)]
    matches = np.concatenate(parts).tolist() if parts else []
    matched = [replace(result, match=match) for result, match in zip(readable, matches, strict=True)]
    scale = beta if beta >= LARGEST_BETA else 1.0
    matched.sort(key=lambda result: -(result.score / scale + (result.match or 0.0)))
    known = {result.image.id for result in matched}
    return [*matched, *(result for result in first if result.image.id not in known), *results[count:]]
