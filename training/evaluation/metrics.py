"""Retrieval metrics R-1, R-5, R-10, mAP and mINP, exact with ties, of a similarity matrix or straight from embeddings.

Shapes: Q queries (captions), G gallery (images), E embedding width, B queries of a block, P the most matches of a query
of the block, U distinct match counts. A rank is counted, not sorted for: the number of larger scores. The *group* of a
match are all items with its score: `start` items are before the group, `size` in it, `matches` of them right, and
`before` right ones ahead of it. The expectation over the random order of the group is closed for each metric (average
precision: McSherry and Najork, ECIR 2008).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from training.evaluation.result import METRICS
from training.evaluation.similarity import Similarity, blocks

RANKS = (1, 5, 10)


@dataclass(frozen=True)
class QueryMetrics:
    """Metrics of each query by itself."""

    # (Q, 5) float64 in percent, columns as `METRICS`.
    values_Q5: Tensor
    # (Q,) bool: a match and a wrong item have one score, so that the values are expectations.
    tied_Q: Tensor

    def mean(self) -> dict[str, float]:
        """Over the queries, keys `METRICS`; summed exactly."""
        columns = zip(METRICS, self.values_Q5.T.tolist(), strict=True)
        return {key: math.fsum(column) / len(column) for key, column in columns}

    def has_ties(self) -> bool:
        """True where any value is an expectation."""
        return bool(self.tied_Q.any())


class Matches(NamedTuple):
    """Positions in the gallery of each query's matches, (B, P) int64, and their number (B,); after them any position."""

    position_BP: Tensor
    found_B: Tensor


class Groups(NamedTuple):
    """Group of each match of each query, ascending by score; every field (B, P) int64, undefined after the matches."""

    start: Tensor
    size: Tensor
    matches: Tensor
    before: Tensor


def retrieval_metrics(similarity: Any, query_ids: Any, gallery_ids: Any) -> dict[str, float]:
    """R-1, R-5, R-10, mAP and mINP in percent, keys `METRICS`.

    similarity: (Q, G) floating, higher is better; query_ids (Q,) and gallery_ids (G,) integers; tensors or arrays.
    R-k: any match in the first k. AP: mean of (matches so far / rank) over the matches in the full gallery. mINP:
    matches / rank of the last match. Tied scores count with the expected value over their random order. Sums in
    float64, in blocks of queries, on the CPU. Raises TypeError for a wrong dtype, ValueError for shapes that do not fit,
    NaN, or a query without a match.
    """
    return _of_similarity(similarity, query_ids, gallery_ids).mean()


def has_ties(similarity: Any, query_ids: Any, gallery_ids: Any) -> bool:
    """True if a query gives the same score to a match and to a wrong item, so that the metrics are expectations."""
    return _of_similarity(similarity, query_ids, gallery_ids).has_ties()


def embedding_metrics(
    query_QE: Any,
    gallery_GE: Any,
    query_ids: Any,
    gallery_ids: Any,
    clothing_GE: Any = None,
    betas: Sequence[float] = (0.0,),
) -> dict[float, QueryMetrics]:
    """Metrics of each query for each clothing weight, the same as of the whole matrices `Similarity.matrix(beta)`.

    No matrix is ever whole, and the embeddings pass by once for all weights. query_QE (Q, E); gallery_GE and clothing_GE
    (G, E) floating, ids as in `retrieval_metrics`; tensors or arrays. Raises TypeError for a wrong dtype, ValueError for
    a query without a match, another number of ids than of embeddings, and what `Similarity` refuses.
    """
    query_Q, gallery_G = _ids("query_ids", query_ids), _ids("gallery_ids", gallery_ids)
    similarity, matches = Similarity(query_QE, gallery_GE, clothing_GE), _matches_by_id(query_Q, gallery_G)
    if similarity.shape != (len(query_Q), len(gallery_G)):
        raise ValueError(f"{similarity.shape} embeddings do not fit {(len(query_Q), len(gallery_G))} ids")
    parts: dict[float, list[QueryMetrics]] = {beta: [] for beta in betas}
    for rows, beta, scores_BG in similarity.blocks(list(parts)):
        parts[beta].append(_rank(scores_BG, matches(rows)))
    return {beta: joined(part) for beta, part in parts.items()}


def chance_metrics(query_ids: Any, gallery_ids: Any) -> dict[str, float]:
    """Exact expectation of `retrieval_metrics` under a uniformly random order of the gallery, percent, keys `METRICS`.

    A random order is one group of equal scores, so this is `retrieval_metrics` of a constant similarity, evaluated
    once for each number of matches that occurs. Raises as `retrieval_metrics`.
    """
    query_Q, gallery_G = _ids("query_ids", query_ids), _ids("gallery_ids", gallery_ids)
    found_Q = _matches_by_id(query_Q, gallery_G)(slice(None)).found_B
    found_U, times_U = found_Q.unique(return_counts=True)
    first_UP = torch.arange(int(found_U.max())).expand(len(found_U), -1)
    chance = _rank(torch.zeros(len(found_U), len(gallery_G)), Matches(first_UP, found_U))
    values = times_U.double() @ chance.values_Q5 / len(query_Q)
    return dict(zip(METRICS, values.tolist(), strict=True))


def query_metrics(similarity_QG: Tensor, match_QG: Tensor, excluded_QG: Tensor | None = None) -> QueryMetrics:
    """Metrics of each query, whose matches are given.

    similarity_QG: (Q, G) floating, finite; match_QG and excluded_QG: (Q, G) bool. An excluded item is not in the gallery
    of its query. Raises ValueError for a query without a match, or whose match is excluded.
    """
    if excluded_QG is not None:
        if bool((match_QG & excluded_QG).any()):
            raise ValueError(f"{int((match_QG & excluded_QG).any(1).sum())} queries exclude one of their matches")
        # Ranked last they change no metric: the last match ranks before them.
        similarity_QG = similarity_QG.masked_fill(excluded_QG, -torch.inf)
    if not bool(match_QG.any(1).all()):
        raise ValueError(f"{int((~match_QG.any(1)).sum())} of {len(match_QG)} queries have no match in the gallery")
    return _in_blocks(similarity_QG, lambda rows: _positions(match_QG[rows].cpu()))


def joined(parts: Sequence[QueryMetrics]) -> QueryMetrics:
    """The queries of all parts, in order."""
    return QueryMetrics(torch.cat([part.values_Q5 for part in parts]), torch.cat([part.tied_Q for part in parts]))


def _of_similarity(similarity: Any, query_ids: Any, gallery_ids: Any) -> QueryMetrics:
    similarity_QG = _tensor(similarity)
    if not similarity_QG.is_floating_point():
        raise TypeError(f"similarity must be floating, got {similarity_QG.dtype}")
    query_Q, gallery_G = _ids("query_ids", query_ids), _ids("gallery_ids", gallery_ids)
    if similarity_QG.shape != (len(query_Q), len(gallery_G)):
        expected, got = (len(query_Q), len(gallery_G)), tuple(similarity_QG.shape)
        raise ValueError(f"similarity must have shape {expected} like query_ids and gallery_ids, got {got}")
    if bool(similarity_QG.isnan().any()):
        raise ValueError(f"similarity holds {int(similarity_QG.isnan().sum())} NaN")
    return _in_blocks(similarity_QG, _matches_by_id(query_Q, gallery_G))


def _in_blocks(similarity_QG: Tensor, matches: Callable[[slice], Matches]) -> QueryMetrics:
    # NumPy sorts neither float16 nor bfloat16; float32 holds both.
    dtype = torch.float64 if similarity_QG.dtype == torch.float64 else torch.float32
    parts = []
    for rows in blocks(*similarity_QG.shape):
        scores_BG = similarity_QG[rows].to("cpu", dtype, copy=True, memory_format=torch.contiguous_format)
        parts.append(_rank(scores_BG, matches(rows)))
    return joined(parts)


def _matches_by_id(query_Q: Tensor, gallery_G: Tensor) -> Callable[[slice], Matches]:
    """Raises ValueError for a query without a match."""
    sorted_G, order_G = gallery_G.sort(stable=True)
    first_Q = torch.searchsorted(sorted_G, query_Q)
    found_Q = torch.searchsorted(sorted_G, query_Q, right=True) - first_Q
    alone = query_Q[found_Q == 0]
    if len(alone):
        raise ValueError(
            f"{len(alone)} of {len(query_Q)} queries have no match in the gallery, ids {alone.unique()[:5].tolist()}"
        )

    def matches(rows: slice) -> Matches:
        place_BP = first_Q[rows, None] + torch.arange(int(found_Q[rows].max()))
        return Matches(order_G[place_BP.clamp(max=len(order_G) - 1)], found_Q[rows])

    return matches


def _positions(match_BG: Tensor) -> Matches:
    found_B = match_BG.sum(1)
    position_BP = torch.zeros(len(found_B), int(found_B.max()), dtype=torch.int64)
    # Both go through the matches query by query.
    position_BP[torch.arange(position_BP.shape[1]) < found_B[:, None]] = match_BG.nonzero()[:, 1]
    return Matches(position_BP, found_B)


def _rank(scores_BG: Tensor, matches: Matches) -> QueryMetrics:
    """Overwrites the scores: float32 or float64, contiguous, no NaN. Every query has a match."""
    found_B1 = matches.found_B[:, None]
    valid_BP = torch.arange(matches.position_BP.shape[1]) < found_B1
    groups = _count(scores_BG, matches, valid_BP)
    worst, best = (Groups(*(x.gather(1, place)[:, 0] for x in groups)) for place in (found_B1 * 0, found_B1 - 1))
    columns = [_hit_probability(k, best) for k in RANKS]
    columns.append(_precision_sum(groups, valid_BP, scores_BG.shape[1]) / matches.found_B)
    inverse_B = 1.0 / (worst.start + 1).double()
    for query in (worst.size > 1).nonzero()[:, 0].tolist():
        inverse_B[query] = _inverse_last_rank(*(int(x[query]) for x in worst[:3]))
    columns.append(matches.found_B * inverse_B)
    tied_B = ((groups.matches < groups.size) & valid_BP).any(1)
    return QueryMetrics(100.0 * torch.stack(columns, dim=1), tied_B)


def _count(scores_BG: Tensor, matches: Matches, valid_BP: Tensor) -> Groups:
    found_B1, gallery = matches.found_B[:, None], scores_BG.shape[1]
    match_BP = scores_BG.gather(1, matches.position_BP).masked_fill_(~valid_BP, torch.inf).sort(1).values
    # Nothing below the lowest match is counted: one value for all of that sorts up to four times as fast.
    scores_BG.clamp_(min=match_BP[:, :1].nextafter(match_BP.new_tensor(-torch.inf)))
    _sort(scores_BG)
    above_BP, from_BP = torch.searchsorted(scores_BG, match_BP, right=True), torch.searchsorted(scores_BG, match_BP)
    # Behind the matches the rows hold inf, which a match may be.
    above_right_BP = torch.searchsorted(match_BP, match_BP, right=True).minimum(found_B1)
    matches_BP = above_right_BP - torch.searchsorted(match_BP, match_BP)
    return Groups(gallery - above_BP, above_BP - from_BP, matches_BP, found_B1 - above_right_BP)


def _sort(scores_BG: Tensor) -> None:
    """Each row ascending, in place. NumPy's vector instructions take 6 ns a score, torch.sort 70."""
    threads = torch.get_num_threads()
    with ThreadPoolExecutor(threads) as pool:
        for done in [pool.submit(part.sort, axis=1) for part in np.array_split(scores_BG.numpy(), threads)]:
            done.result()


def _precision_sum(groups: Groups, valid_BP: Tensor, gallery: int) -> Tensor:
    """(B,) sum over the ranks r of P(match at r) E[matches up to r | match at r] / r, float64."""
    # Given a match at r, each of the other places of the group holds one of the other matches equally often, so the
    # expectation is base + r * others, and the sum over the group needs the sum of 1 / r.
    others_BP = (groups.matches - 1).double() / (groups.size - 1).clamp(min=1)
    base_BP = groups.before + 1 - (groups.start + 1) * others_BP
    harmonic = torch.from_numpy(np.cumsum(1.0 / np.arange(1, gallery + 1)))
    harmonic = torch.nn.functional.pad(harmonic, (1, 0))
    start_BP, end_BP = groups.start, (groups.start + groups.size).clamp(max=gallery)
    inverse_BP = torch.where(groups.size == 1, 1.0 / (start_BP + 1).double(), harmonic[end_BP] - harmonic[start_BP])
    each_BP = base_BP * inverse_BP / groups.size.clamp(min=1) + others_BP
    # One after the other, as `sum` is not: its order depends on P, which the other queries of the block decide.
    return each_BP.masked_fill_(~valid_BP, 0.0).cumsum(1)[:, -1]


def _hit_probability(k: int, best: Groups) -> Tensor:
    """(B,) probability that a match of the first relevant group lies in the first k: one minus a hypergeometric 0."""
    drawn_B = (k - best.start).clamp(min=0).minimum(best.size)
    miss_B = torch.ones(drawn_B.shape, dtype=torch.float64)
    for i in range(k):
        factor_B = (best.size - best.matches - i).clamp(min=0).double() / (best.size - i).clamp(min=1)
        miss_B = torch.where(i < drawn_B, miss_B * factor_B, miss_B)
    return 1.0 - miss_B


@lru_cache(maxsize=4096)
def _inverse_last_rank(start: int, size: int, matches: int) -> float:
    """E[1 / rank of the last match]: P(last at l) = C(l-1, m-1) / C(n, m), by its ratio from l = n downwards."""
    last = np.arange(size, matches - 1, -1, dtype=np.float64)
    probability = np.cumprod(np.concatenate([[matches / size], (last[:-1] - matches) / (last[:-1] - 1)]))
    return float((probability / (start + last)).sum())


def _ids(name: str, ids: Any) -> Tensor:
    result = _tensor(ids).cpu()
    if result.is_floating_point() or result.is_complex() or result.dtype == torch.bool:
        raise TypeError(f"{name} must be integers, got {result.dtype}")
    if result.ndim != 1 or not len(result):
        raise ValueError(f"{name} must have shape (n,) with n >= 1, got {tuple(result.shape)}")
    return result.long()


def _tensor(values: Any) -> Tensor:
    return values.detach() if isinstance(values, Tensor) else torch.from_numpy(np.asarray(values))
