"""Protocols that fuse images with texts: `rerank`, `gallery-text`, and `paired-audit`, which is not a result.

rerank: the best k images of `dual` for a caption, and those that tie with the last of them, are scored again by the
fusion of the caption with the image. A candidate counts with dual / tau (the log-odds that InfoNCE trains, up to a
constant) plus the logit of the matching head (the log-odds of a matching pair); the sum has nothing to tune. Where the clothing
embedding alone ranks (beta = CLOTHING_ALONE), its cosine takes the place of dual, which is as many times larger. All candidates
rank before all other images, which keep their order.
gallery-text: cos(caption, fusion of the gallery image with the identity text generated from it).
paired-audit: cos(fusion of the caption with its own image, fusion of the gallery image with its first caption).

Shapes: Q queries (captions), G gallery (images), N texts, T tokens, P pairs of a text and an image, C width of the text
encoder, E joint embedding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from training.data.datasets import Record
from training.data.loader import iterate_images, tokenize
from training.engine.checkpoint import TrainedModel
from training.evaluation.dual import DualEmbeddings
from training.evaluation.metrics import QueryMetrics, embedding_metrics, joined, query_metrics
from training.evaluation.result import CLOTHING_ALONE

# Pairs fused at once, and queries ranked at once.
PAIRS, QUERIES = 256, 512

# Called with (pairs done, all pairs).
Progress = Callable[[int, int], None]
# Fields of a ProtocolEvaluation, and the metrics of each query.
Outcome = tuple[dict[str, Any], QueryMetrics]


@dataclass(frozen=True)
class _Texts:
    """Output of the text encoder: N T C numbers, 0.8 GB for 6,156 captions of 40 tokens and BERT's 768 channels."""

    tokens_NTC: Tensor
    mask_NT: Tensor


def gallery_text(
    trained: TrainedModel, records: Sequence[Record], dual: DualEmbeddings, texts: Sequence[str], progress: Progress
) -> Outcome:
    """Each image fused with its identity text of `texts`."""
    gallery_GE = fused_pairs(trained, records, texts, torch.arange(len(records)), progress)
    metrics = embedding_metrics(dual.t_QE, gallery_GE, dual.query_ids_Q, dual.gallery_ids_G)[0.0]
    aligned = trained.config.loss.final_info_nce
    return {
        "metrics": metrics.mean(),
        "metrics_dual": dual.metrics([trained.beta])[trained.beta].mean(),
        "ties": metrics.has_ties(),
        "note": "" if aligned else "f_final was not trained against captions (loss.final_info_nce is off)",
    }, metrics


def paired_audit(
    trained: TrainedModel, records: Sequence[Record], dual: DualEmbeddings, progress: Progress
) -> dict[str, Any]:
    """Fields of the audit, whose metrics have a name of their own."""
    fused_QE = fused_pairs(trained, records, dual.captions, dual.query_images_Q, progress)
    first_G = torch.searchsorted(dual.query_images_Q, torch.arange(len(records)))
    audit = embedding_metrics(fused_QE, fused_QE[first_G], dual.query_ids_Q, dual.gallery_ids_G)[0.0]
    return {"parameters": {}, "audit": True, "metrics_audit": audit.mean(), "ties": audit.has_ties()}


def rerank(
    trained: TrainedModel, records: Sequence[Record], dual: DualEmbeddings, k: int, progress: Progress
) -> Outcome:
    """The k best images of `dual` at the chosen beta, in the order of the summed scores."""
    query_P, image_P = candidates(dual, trained.beta, k)
    logit_P = matching_logits(trained, records, dual.captions, query_P, image_P, progress)
    temperature = float(trained.model.temperature().detach())
    parts: dict[str, list[QueryMetrics]] = {name: [] for name in ("sum", "matching", "dual")}
    total = len(dual.captions)
    for start in range(0, total, QUERIES):
        rows = slice(start, min(start + QUERIES, total))
        part = slice(*torch.searchsorted(query_P, torch.tensor([rows.start, rows.stop])).tolist())
        place = query_P[part] - rows.start, image_P[part]
        scores_QG = dual.similarity(trained.beta, rows).double()
        match_QG = dual.query_ids_Q[rows, None] == dual.gallery_ids_G
        # Beside a score of 1e6 cosines no logit would change an order.
        alone = trained.beta >= CLOTHING_ALONE
        cosines_QG = dual.similarity(math.inf, rows).double() if alone else scores_QG
        combined_P = cosines_QG[place] / temperature + logit_P[part].double()
        ranked = {
            "sum": promote_candidates(scores_QG, *place, combined_P),
            "matching": promote_candidates(scores_QG, *place, logit_P[part].double()),
            "dual": scores_QG,
        }
        for name, scores in ranked.items():
            parts[name].append(query_metrics(scores, match_QG))
    metrics = {name: joined(values) for name, values in parts.items()}
    return {
        "parameters": {"beta": trained.beta, "k": k},
        "metrics": metrics["sum"].mean(),
        "metrics_matching": metrics["matching"].mean(),
        "metrics_dual": metrics["dual"].mean(),
        "pairs": len(query_P),
        "temperature": temperature,
        "ties": metrics["sum"].has_ties(),
    }, metrics["sum"]


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
    trained: TrainedModel,
    records: Sequence[Record],
    captions: Sequence[str],
    query_P: Tensor,
    image_P: Tensor,
    progress: Progress = lambda done, total: None,
) -> Tensor:
    """Logit (P,) of the matching head for each pair: caption `query_P` fused with image `image_P`. Each image and each
    caption is encoded once."""
    model = trained.decoupling_model
    head = model.matching_head
    assert head is not None

    def match(fused_PE: Tensor, tokens_PTC: Tensor, mask_PT: Tensor) -> Tensor:
        return head(fused_PE, model.embed_tokens(tokens_PTC, mask_PT))

    return _pairs(trained, records, _encode_texts(trained, captions), query_P, image_P, match, progress)


def fused_pairs(
    trained: TrainedModel,
    records: Sequence[Record],
    texts: Sequence[str],
    image_N: Tensor,
    progress: Progress = lambda done, total: None,
) -> Tensor:
    """f_final (N, E) of unit length for each text and its image, a position in `records`."""
    encoded, number_N = _encode_texts(trained, texts), torch.arange(len(texts))
    return _pairs(trained, records, encoded, number_N, image_N, lambda x, *_: F.normalize(x, dim=1), progress)


@torch.inference_mode()
def _encode_texts(trained: TrainedModel, texts: Sequence[str]) -> _Texts:
    model, config, own = trained.decoupling_model, trained.config, list[tuple[Tensor, Tensor]]()
    for start in range(0, len(texts), config.eval.batch_size)[trained.ranks.turns]:
        some = texts[start : start + config.eval.batch_size]
        batch = tokenize(trained.tokenizer, some, config.data.text_length).to(trained.device)
        encoded_BTC = model.text(batch.input_ids_BT, batch.attention_mask_BT)
        own.append((encoded_BTC.cpu(), batch.attention_mask_BT.cpu()))
    parts = trained.ranks.in_order(own)
    longest = max(mask.shape[1] for _, mask in parts)
    pads = [longest - mask.shape[1] for _, mask in parts]
    tokens = [F.pad(encoded_BTC, (0, 0, 0, pad)) for (encoded_BTC, _), pad in zip(parts, pads, strict=True)]
    masks = [F.pad(mask_BT, (0, pad)) for (_, mask_BT), pad in zip(parts, pads, strict=True)]
    return _Texts(torch.cat(tokens), torch.cat(masks))


@torch.inference_mode()
def _pairs(
    trained: TrainedModel,
    records: Sequence[Record],
    texts: _Texts,
    text_P: Tensor,
    image_P: Tensor,
    head: Callable[[Tensor, Tensor, Tensor], Tensor],
    progress: Progress,
) -> Tensor:
    """head(f_final, text tokens, their mask) of each pair, (P, ...) on the CPU, in the order of the pairs; each image is
    encoded once."""
    model, device, turns = trained.decoupling_model, trained.device, trained.ranks.turns
    size = trained.config.eval.batch_size
    length_P = texts.mask_NT.sum(1)[text_P]
    # Pairs of a batch of images are sorted by text length, which keeps the padding short.
    order_P = torch.argsort(length_P, stable=True)
    order_P = order_P[torch.argsort(image_P[order_P] // size, stable=True)]
    bounds = torch.searchsorted(image_P[order_P] // size, torch.arange(-(-len(records) // size) + 1)).tolist()
    ranges = list(zip(bounds, bounds[1:], strict=False))[turns]
    own, done, total = list[list[Tensor]](), 0, sum(end - first for first, end in ranges)
    batches = iterate_images(records, trained.config.data, size, turns)
    for (images, part), (first, end) in zip(batches, ranges, strict=True):
        image_tokens, scores = model.fused_tokens(model.bdam(model.visual(images.to(device)))), list[Tensor]()
        for start in range(first, end, PAIRS):
            chosen = order_P[start : min(start + PAIRS, end)]
            row = (image_P[chosen] - part.start).to(device)
            longest, text = int(length_P[chosen].max()), text_P[chosen]
            tokens, mask = texts.tokens_NTC[text, :longest].to(device), texts.mask_NT[text, :longest].to(device)
            fused = model.fuse_parts(image_tokens[row], tokens, mask)
            scores.append(head(fused.f_final_BE, tokens, mask).cpu())
            done += len(chosen)
            progress(done, total)
        own.append(scores)
    values = torch.cat([part for scores in trained.ranks.in_order(own) for part in scores])
    return torch.empty_like(values).index_copy_(0, order_P, values)
