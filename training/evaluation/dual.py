"""Protocol `dual` (reading 24): embeddings of a split, the similarity of every caption to every image, its metrics.

Shapes: Q queries (captions), G gallery (images), E embedding width, C channels of the gate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from training.config import Config
from training.data.datasets import Record
from training.data.loader import iterate_images, tokenize
from training.engine.distributed.ranks import ONE_RANK, Ranks
from training.evaluation.metrics import QueryMetrics, embedding_metrics
from training.evaluation.similarity import Similarity
from training.models.model_outputs import ImageEmbedding
from training.models.retrieval_model import RetrievalModel

# Beyond this beta the grid is not refined: what follows stands for the clothing embedding alone.
LARGEST_BETA = 8.0


@dataclass(frozen=True)
class DualEmbeddings:
    """Embeddings of a split: every caption is a query, every image is in the gallery."""

    t_QE: Tensor
    v_id_GE: Tensor
    # None where the model has no clothing branch, and none where it has no gate.
    v_clo_GE: Tensor | None
    gate_GC: Tensor | None
    captions: tuple[str, ...]
    query_ids_Q: Tensor
    # Position in the gallery of the image that the caption describes.
    query_images_Q: Tensor
    gallery_ids_G: Tensor

    def similarity(self, beta: float, queries: slice | Sequence[int] = slice(None)) -> Tensor:
        """(Q, G) float32: cos(t, v_id) + beta cos(t, v_clo), all embeddings of unit length (reading 24); of some queries."""
        return self._similarity.matrix(beta, queries)

    def metrics(self, betas: Sequence[float]) -> dict[float, QueryMetrics]:
        """Metrics of every query for each clothing weight, without the whole matrix."""
        ids = self.query_ids_Q, self.gallery_ids_G
        return embedding_metrics(self.t_QE, self.v_id_GE, *ids, self.v_clo_GE, betas)

    @cached_property
    def _similarity(self) -> Similarity:
        return Similarity(self.t_QE, self.v_id_GE, self.v_clo_GE)


@torch.inference_mode()
def embed_dual(
    model: RetrievalModel, records: Sequence[Record], tokenizer: Any, config: Config, ranks: Ranks = ONE_RANK
) -> DualEmbeddings:
    """Embeds the images and captions of `records` in evaluation mode; the model's mode is restored. ranks: processes that take
    the batches in turn and all get the whole, with the bits of one."""
    device, mode, size = next(model.parameters()).device, model.training, config.eval.batch_size
    captions = tuple(text for record in records for text in record.captions)
    images = torch.tensor([i for i, record in enumerate(records) for _ in record.captions])
    ids_G = torch.tensor([record.id for record in records])
    model.eval()
    try:
        batches = iterate_images(records, config.data, size, ranks.turns)
        gallery = ranks.in_order([_on_cpu(model.embed_images(x.to(device))) for x, _ in batches])
        texts = ranks.in_order(
            [
                model.embed_texts(tokenize(tokenizer, captions[i : i + size], config.data.text_length).to(device)).cpu()
                for i in range(0, len(captions), size)[ranks.turns]
            ]
        )
    finally:
        model.train(mode)
    v_id_GE, t_QE = torch.cat([x.v_id_BE for x in gallery]), torch.cat(texts)
    v_clo_GE, gate_GC = _joined([x.v_clo_BE for x in gallery]), _joined([x.gate_BC for x in gallery])
    _require_finite(t_QE, v_id_GE, v_clo_GE)
    return DualEmbeddings(t_QE, v_id_GE, v_clo_GE, gate_GC, captions, ids_G[images], images, ids_G)


def _require_finite(*embeddings: Tensor | None) -> None:
    """Raises ValueError: one such value would count as the best match of every query, or of none."""
    if not all(bool(values.isfinite().all()) for values in embeddings if values is not None):
        raise ValueError("the model gives embeddings that are not finite, which have no order of similarity")


def _joined(parts: Sequence[Tensor | None]) -> Tensor | None:
    found = [part for part in parts if part is not None]
    return torch.cat(found) if found else None


def _on_cpu(embedded: ImageEmbedding) -> ImageEmbedding:
    values: dict[str, Any] = {name: None if x is None else x.cpu() for name, x in vars(embedded).items()}
    return ImageEmbedding(**values)


def evaluate_dual(
    model: RetrievalModel, records: Sequence[Record], tokenizer: Any, config: Config, betas: Sequence[float]
) -> tuple[DualEmbeddings, dict[float, QueryMetrics]]:
    """The embeddings of a split, and the metrics of its queries for each clothing weight."""
    dual = embed_dual(model, records, tokenizer, config)
    return dual, dual.metrics(betas)


def validate(model: RetrievalModel, records: Sequence[Record], tokenizer: Any, config: Config) -> dict[str, float]:
    """Metrics of the validation split at its best beta by `EvalConfig.select_by` (the lowest one of equals), and beta.

    Candidates are `EvalConfig.betas`, then the midpoints between the best one and its neighbours up to LARGEST_BETA.
    Keys: `METRICS`, "beta", and "beta0_R1", "beta0_mAP" for beta = 0.
    """
    embeddings, queries = evaluate_dual(model, records, tokenizer, config, config.eval.betas)
    metrics = {beta: values.mean() for beta, values in queries.items()}

    def best() -> float:
        return max(sorted(metrics), key=lambda beta: metrics[beta][config.eval.select_by])

    if between := _midpoints(sorted(metrics), best()):
        metrics |= {beta: values.mean() for beta, values in embeddings.metrics(between).items()}
    beta = best()
    return metrics[beta] | {"beta": beta, "beta0_R1": metrics[0.0]["R1"], "beta0_mAP": metrics[0.0]["mAP"]}


def _midpoints(grid: list[float], best: float) -> list[float]:
    """Between `best` and each of its neighbours in the sorted `grid`, as far as both are at most LARGEST_BETA."""
    at = grid.index(best)
    neighbours = [*grid[max(at - 1, 0) : at], *grid[at + 1 : at + 2]]
    return [(best + beta) / 2 for beta in neighbours if max(best, beta) <= LARGEST_BETA]
