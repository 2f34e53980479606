"""Retrieval protocols other than `dual`: `rerank`, `gallery-text`, and `paired-audit`, which is not a result.

rerank: the best k images of `dual` for a caption, and those that tie with the last of them, are scored again by the
fusion of the caption with the image. A candidate counts with dual / tau (the log-odds that InfoNCE trains, up to a
constant) plus the logit of the matching head (the log-odds of a matching pair); the sum has nothing to tune. All
candidates rank before all other images, which keep their order.
gallery-text: cos(caption, fusion of the gallery image with the identity text generated from it).
paired-audit: cos(fusion of the caption with its own image, fusion of the gallery image with its first caption).

Shapes: Q queries (captions), G gallery (images), N texts, T tokens, P pairs of a text and an image, C width of the text
encoder, E joint embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from training.config import Config
from training.data.datasets import Record, TextFile, descriptions_path, identity_texts, read_gallery_texts
from training.data.loader import iterate_images, tokenize
from training.engine.checkpoint import TrainedModel
from training.evaluation.dual import DualEmbeddings, embed_dual
from training.evaluation.metrics import METRICS, chance_metrics, embedding_metrics, has_ties, retrieval_metrics
from training.evaluation.protocol_names import PROTOCOLS, Protocol
from training.evaluation.result import Counts, ProtocolEvaluation, TextSource
from training.models.model import Model

# Pairs fused at once, and queries ranked at once.
PAIRS, QUERIES = 256, 512

# Called with (pairs done, all pairs).
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class _Texts:
    """Output of the text encoder: N T C numbers, 0.8 GB for 6,156 captions of 40 tokens and BERT's 768 channels."""

    tokens_NTC: Tensor
    mask_NT: Tensor


def measure(
    trained: TrainedModel,
    records: Sequence[Record],
    protocol: Protocol,
    k: int,
    progress: Progress = lambda done, total: None,
    texts: TextFile | None = None,
) -> ProtocolEvaluation:
    """Metrics of one protocol on the records of a split, at the clothing weight chosen on validation.

    texts: identity texts for gallery-text in place of the run's own; other protocols ignore it. The result has no data,
    versions, config, seconds and checkpoint yet.

    Raises ValueError for a model without fusion, for rerank without a matching head, a k below 1, or images without
    identity text, FileNotFoundError for a missing file of texts.
    """
    if protocol not in PROTOCOLS[1:]:
        raise ValueError(f"protocol must be one of {', '.join(PROTOCOLS[1:])}, got {protocol!r}")
    if trained.model.fusion is None:
        raise ValueError(f"protocol {protocol} fuses images with texts, but the model has no fusion (fusion.enabled)")
    if protocol == "rerank" and trained.model.matching_head is None:
        raise ValueError(
            "protocol rerank needs the matching head, but the model was trained without loss.final_matching"
        )
    if k < 1:
        raise ValueError(f"--k must be at least 1, got {k}")
    about: dict[str, Any] = {"protocol": protocol, "parameters": {}}
    if protocol == "gallery-text":
        texts = texts or read_gallery_texts(descriptions_path(trained.config.data))
        about["texts"] = TextSource(path=str(texts.path), sha256=texts.sha256)
        identities = identity_texts(texts, records)
    dual = embed_dual(trained.model, records, trained.tokenizer, trained.config)
    ids = dual.query_ids_Q, dual.gallery_ids_G
    about["chance"] = chance_metrics(*ids)
    about["counts"] = Counts(queries=len(ids[0]), gallery=len(ids[1]), ids=len(set(ids[1].tolist())))
    if protocol == "rerank":
        about["parameters"] = {"beta": trained.beta, "k": k}
        return ProtocolEvaluation(**about, **_rerank(trained, records, dual, k, progress))
    if protocol == "gallery-text":
        gallery_GE = _fused(trained, records, identities, torch.arange(len(records)), progress)
        return ProtocolEvaluation(**about, **_gallery_text(trained, dual, gallery_GE))
    fused_QE = _fused(trained, records, dual.captions, dual.query_images_Q, progress)
    first_G = torch.searchsorted(dual.query_images_Q, torch.arange(len(records)))
    audit = embedding_metrics(fused_QE, fused_QE[first_G], *ids)[0.0]
    return ProtocolEvaluation(**about, audit=True, metrics_audit=audit.mean(), ties=audit.has_ties())


def _gallery_text(trained: TrainedModel, dual: DualEmbeddings, gallery_GE: Tensor) -> dict[str, Any]:
    metrics = embedding_metrics(dual.t_QE, gallery_GE, dual.query_ids_Q, dual.gallery_ids_G)[0.0]
    aligned = trained.config.loss.final_info_nce
    return {
        "metrics": metrics.mean(),
        "metrics_dual": dual.metrics([trained.beta])[trained.beta].mean(),
        "ties": metrics.has_ties(),
        "note": "" if aligned else "f_final was not trained against captions (loss.final_info_nce is off)",
    }


def _rerank(
    trained: TrainedModel, records: Sequence[Record], dual: DualEmbeddings, k: int, progress: Progress
) -> dict[str, Any]:
    query_P, image_P = candidates(dual, trained.beta, k)
    logit_P = matching_logits(
        trained.decoupling_model, records, dual.captions, query_P, image_P, trained.tokenizer, trained.config, progress
    )
    temperature = float(trained.model.temperature().detach())
    sums: dict[str, Tensor] = {
        name: torch.zeros(len(METRICS), dtype=torch.float64) for name in ("sum", "matching", "dual")
    }
    ties, total = False, len(dual.captions)
    for start in range(0, total, QUERIES):
        rows = slice(start, min(start + QUERIES, total))
        part = slice(*torch.searchsorted(query_P, torch.tensor([rows.start, rows.stop])).tolist())
        place = query_P[part] - rows.start, image_P[part]
        scores_QG = dual.similarity(trained.beta, rows).double()
        ids = dual.query_ids_Q[rows], dual.gallery_ids_G
        combined_P = scores_QG[place] / temperature + logit_P[part].double()
        ranked = {
            "sum": promote_candidates(scores_QG, *place, combined_P),
            "matching": promote_candidates(scores_QG, *place, logit_P[part].double()),
            "dual": scores_QG,
        }
        for name, scores in ranked.items():
            values = retrieval_metrics(scores, *ids)
            sums[name] += len(ids[0]) / total * torch.tensor([values[key] for key in METRICS], dtype=torch.float64)
        ties = ties or has_ties(ranked["sum"], *ids)
    metrics = {name: dict(zip(METRICS, value.tolist(), strict=True)) for name, value in sums.items()}
    return {
        "metrics": metrics["sum"],
        "metrics_matching": metrics["matching"],
        "metrics_dual": metrics["dual"],
        "pairs": len(query_P),
        "temperature": temperature,
        "ties": ties,
    }


def candidates(dual: DualEmbeddings, beta: float, k: int) -> tuple[Tensor, Tensor]:
    """Query and image, int64 (P,) each, sorted by query, then image: the k best images of each query by `dual`, and all that
    tie with the k-th, so that the order of equal scores does not matter."""
    queries, images, total = [], [], len(dual.captions)
    for start in range(0, total, QUERIES):
        scores_QG = dual.similarity(beta, slice(start, start + QUERIES))
        last_Q1 = scores_QG.topk(min(k, scores_QG.shape[1]), dim=1).values[:, -1:]
        query_P, image_P = (scores_QG >= last_Q1).nonzero(as_tuple=True)
        queries.append(query_P + start)
        images.append(image_P)
    return torch.cat(queries), torch.cat(images)


def promote_candidates(scores_QG: Tensor, query_P: Tensor, image_P: Tensor, score_P: Tensor) -> Tensor:
    """Scores (Q, G) float64 in which the candidates, pairs P with a new score each, rank before all other images of their
    query."""
    new_QG = torch.full_like(scores_QG, torch.inf)
    new_QG[query_P, image_P] = score_P
    shifted_QG = new_QG - new_QG.amin(1, keepdim=True) + scores_QG.amax(1, keepdim=True) + 1.0
    return torch.where(new_QG.isfinite(), shifted_QG, scores_QG)


def matching_logits(
    model: Model,
    records: Sequence[Record],
    captions: Sequence[str],
    query_P: Tensor,
    image_P: Tensor,
    tokenizer: Any,
    config: Config,
    progress: Progress = lambda done, total: None,
) -> Tensor:
    """Logit (P,) of the matching head for each pair: caption `query_P` fused with image `image_P`. Each image and each
    caption is encoded once."""
    head = model.matching_head
    assert head is not None
    texts = _encode_texts(model, captions, tokenizer, config)
    return _pairs(model, records, texts, query_P, image_P, config, lambda fused: head(fused)[:, 0], progress)


def _fused(
    trained: TrainedModel, records: Sequence[Record], texts: Sequence[str], image_N: Tensor, progress: Progress
) -> Tensor:
    """f_final (N, E) of unit length for each text and its image."""
    encoded = _encode_texts(trained.decoupling_model, texts, trained.tokenizer, trained.config)
    number_N = torch.arange(len(texts))
    return _pairs(
        trained.decoupling_model,
        records,
        encoded,
        number_N,
        image_N,
        trained.config,
        lambda x: F.normalize(x, dim=1),
        progress,
    )


@torch.inference_mode()
def _encode_texts(model: Model, texts: Sequence[str], tokenizer: Any, config: Config) -> _Texts:
    device, size = next(model.parameters()).device, config.eval.batch_size
    batches = [
        tokenize(tokenizer, texts[i : i + size], config.data.text_length).to(device) for i in range(0, len(texts), size)
    ]
    longest = max(batch.input_ids_BT.shape[1] for batch in batches)
    tokens, masks = [], []
    for batch in batches:
        pad = longest - batch.input_ids_BT.shape[1]
        encoded_BTC = model.text(batch.input_ids_BT, batch.attention_mask_BT).cpu()
        tokens.append(F.pad(encoded_BTC, (0, 0, 0, pad)))
        masks.append(F.pad(batch.attention_mask_BT.cpu(), (0, pad)))
    return _Texts(torch.cat(tokens), torch.cat(masks))


@torch.inference_mode()
def _pairs(
    model: Model,
    records: Sequence[Record],
    texts: _Texts,
    text_P: Tensor,
    image_P: Tensor,
    config: Config,
    head: Callable[[Tensor], Tensor],
    progress: Progress,
) -> Tensor:
    """head(f_final) of each pair, (P, ...) on the CPU, in the order of the pairs; each image is encoded once."""
    device = next(model.parameters()).device
    length_P = texts.mask_NT.sum(1)[text_P]
    # Pairs of a batch of images are sorted by text length, which keeps the padding short.
    order_P = torch.argsort(length_P, stable=True)
    order_P = order_P[torch.argsort(image_P[order_P] // config.eval.batch_size, stable=True)]
    bounds = torch.searchsorted(
        image_P[order_P] // config.eval.batch_size, torch.arange(-(-len(records) // config.eval.batch_size) + 1)
    ).tolist()
    parts, done = [], 0
    for number, (images, part) in enumerate(iterate_images(records, config.data, config.eval.batch_size)):
        branches = model.bdam(model.visual(images.to(device)))
        for start in range(bounds[number], bounds[number + 1], PAIRS):
            chosen = order_P[start : min(start + PAIRS, bounds[number + 1])]
            row = (image_P[chosen] - part.start).to(device)
            longest, text = int(length_P[chosen].max()), text_P[chosen]
            tokens, mask = texts.tokens_NTC[text, :longest].to(device), texts.mask_NT[text, :longest].to(device)
            fused = model.fuse_parts(branches.id_tokens_BPC[row], branches.f_id_BC[row], tokens, mask)
            parts.append(head(fused.f_final_BE).cpu())
            done += len(chosen)
            progress(done, len(order_P))
    values = torch.cat(parts)
    return torch.empty_like(values).index_copy_(0, order_P, values)
