"""Measurement of any protocol other than `dual` on the records of a split."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor

from training.data.datasets import Record, TextFile, TextsMissing, descriptions_path, identity_texts, read_gallery_texts
from training.data.identity_queries import query_texts, read_identity_queries
from training.engine.checkpoint import TrainedModel
from training.evaluation.dual import DualEmbeddings, embed_dual
from training.evaluation.metrics import QueryMetrics, chance_metrics
from training.evaluation.protocols import clothes_protocols, fusion_protocols
from training.evaluation.protocols.fusion_protocols import Progress
from training.evaluation.protocols.protocol_names import PROTOCOLS, WITH_TEXTS, NotMeasurable, Protocol
from training.evaluation.result import Counts, ProtocolEvaluation, TextSource


class Measured(NamedTuple):
    """A result, which has no data, versions, config, seconds and checkpoint yet; the metrics of each query and the person (Q,)
    that it describes, None of paired-audit."""

    result: ProtocolEvaluation
    queries: QueryMetrics | None
    ids_Q: Tensor | None


def measure(
    trained: TrainedModel,
    records: Sequence[Record],
    protocol: Protocol,
    k: int,
    progress: Progress = lambda done, total: None,
    texts: TextFile | None = None,
) -> Measured:
    """Metrics of one protocol on the records of a split, at the clothing weight chosen on validation.

    texts: identity texts in place of the run's own for gallery-text, of the data's for identity; other protocols ignore them.
    Raises NotMeasurable, before anything is embedded, when the model or the data lack what the protocol needs, ValueError
    for a k below 1.
    """
    if protocol not in PROTOCOLS[1:]:
        raise ValueError(f"protocol must be one of {', '.join(PROTOCOLS[1:])}, got {protocol!r}")
    if k < 1:
        raise ValueError(f"--k must be at least 1, got {k}")
    if protocol in ("rerank", "gallery-text", "paired-audit"):
        _require_fusion(trained, protocol)
    file, lines = _read_texts(trained, records, protocol, texts) if protocol in WITH_TEXTS else (None, [])
    about: dict[str, Any] = {"protocol": protocol, "parameters": {}}
    if file is not None:
        about["texts"] = TextSource(path=str(file.path), sha256=file.sha256)
    if protocol == "other-outfit":
        outfit_G = clothes_protocols.read_outfits(trained, records)
        dual = embed_dual(trained.model, records, trained.tokenizer, trained.config, trained.ranks)
        values, metrics, asked_Q = clothes_protocols.other_outfit(dual, outfit_G, trained.beta)
        ids_Q = dual.query_ids_Q[asked_Q]
        return Measured(ProtocolEvaluation(**about | values, counts=_counts(ids_Q, dual)), metrics, ids_Q)
    if protocol == "identity":
        dual = clothes_protocols.embed_identity(trained, records, lines)
    else:
        dual = embed_dual(trained.model, records, trained.tokenizer, trained.config, trained.ranks)
    about["chance"] = chance_metrics(dual.query_ids_Q, dual.gallery_ids_G)
    about["counts"] = _counts(dual.query_ids_Q, dual)
    if protocol == "paired-audit":
        values = fusion_protocols.paired_audit(trained, records, dual, progress)
        return Measured(ProtocolEvaluation(**about | values), None, None)
    if protocol == "identity":
        values, metrics = clothes_protocols.identity(dual)
    elif protocol == "rerank":
        values, metrics = fusion_protocols.rerank(trained, records, dual, k, progress)
    else:
        values, metrics = fusion_protocols.gallery_text(trained, records, dual, lines, progress)
    return Measured(ProtocolEvaluation(**about | values), metrics, dual.query_ids_Q)


def _require_fusion(trained: TrainedModel, protocol: Protocol) -> None:
    if trained.model.fusion is None:
        raise NotMeasurable(
            f"protocol {protocol} fuses images with texts, but the model has no fusion (fusion.enabled)"
        )
    if protocol == "rerank" and trained.model.matching_head is None:
        raise NotMeasurable(
            "protocol rerank needs the matching head, but the model was trained without loss.final_matching"
        )


def _read_texts(
    trained: TrainedModel, records: Sequence[Record], protocol: Protocol, texts: TextFile | None
) -> tuple[TextFile, list[str]]:
    """A file of identity texts, and its text of each record."""
    try:
        file = texts or _own_texts(trained, protocol)
        return file, (query_texts if protocol == "identity" else identity_texts)(file, records)
    except (FileNotFoundError, TextsMissing) as error:
        raise NotMeasurable(str(error)) from error


def _own_texts(trained: TrainedModel, protocol: Protocol) -> TextFile:
    """The file that a protocol of WITH_TEXTS reads where none is named: the data's, or the run's. Raises FileNotFoundError."""
    data = trained.config.data
    return read_identity_queries(data.root) if protocol == "identity" else read_gallery_texts(descriptions_path(data))


def has_texts(trained: TrainedModel, protocol: Protocol, texts: TextFile | None, sha256: str) -> bool:
    """True if a protocol of WITH_TEXTS would read texts of this digest, or finds none to read."""
    try:
        return (texts or _own_texts(trained, protocol)).sha256 == sha256
    except FileNotFoundError:
        return True


def _counts(ids_Q: Tensor, dual: DualEmbeddings) -> Counts:
    return Counts(queries=len(ids_Q), gallery=len(dual.gallery_ids_G), ids=len(dual.gallery_ids_G.unique()))
