"""Protocols that tell identity from clothes.

identity: an identity text of each image asks for the person; the identity embedding alone answers (beta = 0).
other-outfit: a caption asks for the person in other clothes. The gallery of a query leaves out the person's images in the
outfit that the caption describes, the described image included; images of other people stay. Captions of people with one
outfit have nothing to find and are left out.

Shapes: Q queries, G gallery.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from training.data.datasets import Record
from training.data.ground_truth import read_factor_rows
from training.engine.checkpoint import TrainedModel
from training.evaluation.dual import DualEmbeddings, embed_dual
from training.evaluation.metrics import QueryMetrics, joined, query_metrics
from training.evaluation.protocols.fusion_protocols import QUERIES, Outcome
from training.evaluation.protocols.protocol_names import NotMeasurable


def embed_identity(trained: TrainedModel, records: Sequence[Record], texts: Sequence[str]) -> DualEmbeddings:
    """Embeddings of a split whose queries are the identity texts, one of each image, in place of the captions."""
    asked = [replace(record, captions=(text,)) for record, text in zip(records, texts, strict=True)]
    return embed_dual(trained.model, asked, trained.tokenizer, trained.config, trained.ranks)


def identity(dual: DualEmbeddings) -> Outcome:
    """Result of identity texts, embedded by `embed_identity`."""
    metrics = dual.metrics([0.0])[0.0]
    return {"parameters": {"beta": 0.0}, "metrics": metrics.mean(), "ties": metrics.has_ties()}, metrics


def read_outfits(trained: TrainedModel, records: Sequence[Record]) -> Tensor:
    """Number of the outfit (G,) of each image among those of its person. Raises NotMeasurable for data that does not say who
    wears what, and where nobody wears two outfits."""
    paths = [record.file_path for record in records]
    purpose = "protocol other-outfit needs to know who wears what, which only rendered sets say"
    try:
        rows = read_factor_rows(Path(trained.config.data.root), paths, purpose)
    except FileNotFoundError as error:
        raise NotMeasurable(str(error)) from error
    worn = {(record.id, row["outfit_number"]) for record, row in zip(records, rows, strict=True)}
    if len(worn) == len({record.id for record in records}):
        raise NotMeasurable("protocol other-outfit needs a person with two outfits, but each person wears one only")
    return torch.tensor([row["outfit_number"] for row in rows])


def other_outfit(dual: DualEmbeddings, outfit_G: Tensor, beta: float) -> tuple[dict[str, Any], QueryMetrics, Tensor]:
    """Result at beta and at beta 0, with chance and counts; the metrics at beta, and the positions (Q,) of its queries."""
    person_G = dual.gallery_ids_G
    several_G = torch.zeros(len(person_G), dtype=torch.bool)
    for person in person_G.unique():
        own = person_G == person
        several_G[own] = len(outfit_G[own].unique()) > 1
    asked_Q = several_G[dual.query_images_Q].nonzero()[:, 0]
    parts: dict[str, list[QueryMetrics]] = {name: [] for name in ("metrics", "metrics_beta0", "chance")}
    for start in range(0, len(asked_Q), QUERIES):
        rows = asked_Q[start : start + QUERIES]
        image_Q = dual.query_images_Q[rows]
        same_person_QG = person_G[image_Q, None] == person_G
        worn_QG = same_person_QG & (outfit_G[image_Q, None] == outfit_G)
        similarities = {
            "metrics": dual.similarity(beta, rows.tolist()),
            "metrics_beta0": dual.similarity(0.0, rows.tolist()),
            # Of a random order: all images tie.
            "chance": torch.zeros(worn_QG.shape),
        }
        for name, similarity_QG in similarities.items():
            parts[name].append(query_metrics(similarity_QG, same_person_QG & ~worn_QG, worn_QG))
    metrics = {name: joined(values) for name, values in parts.items()}
    return (
        {
            "parameters": {"beta": beta},
            **{name: values.mean() for name, values in metrics.items()},
            "left_out": len(dual.captions) - len(asked_Q),
            "ties": metrics["metrics"].has_ties(),
        },
        metrics["metrics"],
        asked_Q,
    )
