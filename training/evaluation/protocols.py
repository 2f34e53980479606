"""The retrieval protocols beside `dual`: `rerank`, `gallery-text`, and `paired-audit`, which is no result.

rerank: the k best images of `dual` for a caption, and those that tie with the last of them, are scored again by the
fusion of that caption with that image. The first score is dual / tau, the log-odds that InfoNCE trains up to a
constant, the second the logit of the matching head, the log-odds of a right pair; a candidate counts with their sum,
which has nothing to tune. All candidates stand before all other images, which keep their order.
gallery-text: cos(caption, fusion of the gallery image with the identity text generated from it, in the run's file of
generated texts or in another one).
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
from training.engine.checkpoint import TrainedRun
from training.evaluation.dual import DualEmbeddings, embed_dual
from training.evaluation.metrics import METRICS, chance_metrics, has_ties, retrieval_metrics
from training.evaluation.protocol_names import PROTOCOLS, Protocol
from training.models.model import Model

# Pairs fused at once, and queries ranked at once.
PAIRS, QUERIES = 256, 512

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class _Texts:
    """Texts behind the encoder: N T C numbers, 0.8 GB for 6,156 captions of 40 tokens and BERT's 768 channels."""

    tokens_NTC: Tensor
    mask_NT: Tensor


def measure(
    run: TrainedRun,
    records: Sequence[Record],
    protocol: Protocol,
    k: int,
    progress: Progress = lambda done, total: None,
    texts: TextFile | None = None,
) -> dict[str, Any]:
    """Results of one protocol on the records of a split, at the clothing weight chosen on validation.

    texts: what gallery-text reads instead of the run's own file of generated texts; no other protocol reads any.

    Keys: protocol, parameters, chance, ties, counts, and "metrics" with what stands beside it ("metrics_..."): for
    rerank the matching head alone and `dual`, for gallery-text `dual`, and "texts", path and SHA-256 of what it read.
    Those of paired-audit are "metrics_audit", with "audit": true, so that no table can take them for results.
    `progress` is called with (pairs done, all).

    Raises ValueError for a model without fusion, for rerank without matching head, a k below 1, or images without
    identity text, FileNotFoundError for a missing file of texts.
    """
    if protocol not in PROTOCOLS[1:]:
        raise ValueError(f"protocol must be one of {', '.join(PROTOCOLS[1:])}, got {protocol!r}")
    if run.model.fusion is None:
        raise ValueError(f"protocol {protocol} fuses images with texts, but the model has no fusion (fusion.enabled)")
    if protocol == "rerank" and run.model.matching_head is None:
        raise ValueError(
            "protocol rerank needs the matching head, but the model was trained without loss.final_matching"
        )
    if k < 1:
        raise ValueError(f"--k must be at least 1, got {k}")
    result: dict[str, Any] = {"protocol": protocol, "parameters": {}}
    if protocol == "gallery-text":
        texts = texts or read_gallery_texts(descriptions_path(run.config.data))
        result["texts"] = {"path": str(texts.path), "sha256": texts.sha256}
        identities = identity_texts(texts, records)
    dual = embed_dual(run.model, records, run.tokenizer, run.config)
    ids = dual.query_ids_Q, dual.gallery_ids_G
    result["chance"] = chance_metrics(*ids)
    result["counts"] = {"queries": len(ids[0]), "gallery": len(ids[1]), "ids": len(set(ids[1].tolist()))}
    if protocol == "rerank":
        return result | {"parameters": {"beta": run.beta, "k": k}} | _rerank(run, records, dual, k, progress)
    if protocol == "gallery-text":
        gallery_GE = _fused(run, records, identities, torch.arange(len(records)), progress)
        scores = dual.t_QE @ gallery_GE.T
        trained = run.config.loss.final_info_nce
        return result | {
            "metrics": retrieval_metrics(scores, *ids),
            "metrics_dual": retrieval_metrics(dual.similarity(run.beta), *ids),
            "ties": has_ties(scores, *ids),
            "note": "" if trained else "f_final was not trained against captions (loss.final_info_nce is off)",
        }
    fused_QE = _fused(run, records, dual.captions, dual.query_images_Q, progress)
    first_G = torch.searchsorted(dual.query_images_Q, torch.arange(len(records)))
    scores = fused_QE @ fused_QE[first_G].T
    audit = {"audit": True, "metrics_audit": retrieval_metrics(scores, *ids), "ties": has_ties(scores, *ids)}
    return result | audit


def _rerank(
    run: TrainedRun, records: Sequence[Record], dual: DualEmbeddings, k: int, progress: Progress
) -> dict[str, Any]:
    query_P, image_P = candidates(dual, run.beta, k)
    logit_P = matching_logits(run.model, records, dual.captions, query_P, image_P, run.tokenizer, run.config, progress)
    temperature = float(run.model.temperature().detach())
    sums: dict[str, Tensor] = {
        name: torch.zeros(len(METRICS), dtype=torch.float64) for name in ("sum", "matching", "dual")
    }
    ties, total = False, len(dual.captions)
    for start in range(0, total, QUERIES):
        rows = slice(start, min(start + QUERIES, total))
        part = slice(*torch.searchsorted(query_P, torch.tensor([rows.start, rows.stop])).tolist())
        place = query_P[part] - rows.start, image_P[part]
        scores_QG = dual.similarity(run.beta, rows).double()
        ids = dual.query_ids_Q[rows], dual.gallery_ids_G
        combined_P = scores_QG[place] / temperature + logit_P[part].double()
        ranked = {
            "sum": in_front(scores_QG, *place, combined_P),
            "matching": in_front(scores_QG, *place, logit_P[part].double()),
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
    """Query and image, int64 (P,) each, sorted by query then image: for each query its k best images by `dual`, and all
    that tie with the k-th, so that no order of equal scores decides."""
    queries, images, total = [], [], len(dual.captions)
    for start in range(0, total, QUERIES):
        scores_QG = dual.similarity(beta, slice(start, start + QUERIES))
        last_Q1 = scores_QG.topk(min(k, scores_QG.shape[1]), dim=1).values[:, -1:]
        query_P, image_P = (scores_QG >= last_Q1).nonzero(as_tuple=True)
        queries.append(query_P + start)
        images.append(image_P)
    return torch.cat(queries), torch.cat(images)


def in_front(scores_QG: Tensor, query_P: Tensor, image_P: Tensor, score_P: Tensor) -> Tensor:
    """(Q, G) float64: the candidates by their new scores, shifted before all other images of the query."""
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
    """Logit (P,) of the matching head for the fusion of caption `query_P` with image `image_P` of each pair. Each image
    and each caption is encoded once."""
    head = model.matching_head
    assert head is not None
    texts = _encode_texts(model, captions, tokenizer, config)
    return _pairs(model, records, texts, query_P, image_P, config, lambda fused: head(fused)[:, 0], progress)


def _fused(
    run: TrainedRun, records: Sequence[Record], texts: Sequence[str], image_N: Tensor, progress: Progress
) -> Tensor:
    """f_final (N, E) of unit length: each text with its image."""
    encoded = _encode_texts(run.model, texts, run.tokenizer, run.config)
    number_N = torch.arange(len(texts))
    return _pairs(run.model, records, encoded, number_N, image_N, run.config, lambda x: F.normalize(x, dim=1), progress)


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
    read: Callable[[Tensor], Tensor],
    progress: Progress,
) -> Tensor:
    """read(f_final) of each pair, (P, ...) on the CPU, in the order of the pairs; the images pass by once."""
    device = next(model.parameters()).device
    length_P = texts.mask_NT.sum(1)[text_P]
    # Within a chunk of images pairs go by length, so that little is padded.
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
            parts.append(read(fused.f_final_BE).cpu())
            done += len(chosen)
            progress(done, len(order_P))
    values = torch.cat(parts)
    return torch.empty_like(values).index_copy_(0, order_P, values)
