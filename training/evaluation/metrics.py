"""Retrieval metrics from a similarity matrix: R-1, R-5, R-10, mAP, mINP, exact with ties.

Shapes: Q queries (captions), G gallery (images), U distinct match counts.
A position is counted from 0; a *group* is a run of equal scores in the ranking of one query. With `start` items before
the group, `size` items in it, `matches` of them right, and `before` right ones ahead of it, the expectation over the
random order of the group is closed for each metric (average precision: McSherry and Najork, ECIR 2008).
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

METRICS = ("R1", "R5", "R10", "mAP", "mINP")
RANKS = (1, 5, 10)
# Scores ranked at once; about twenty arrays of 8 bytes each are alive, 300 MB.
CHUNK = 1 << 21


class Groups(NamedTuple):
    """Group of each position of each ranking; every field (Q, G) int64."""

    start: Tensor
    size: Tensor
    matches: Tensor
    before: Tensor

    def at(self, position_Q: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """start, size and matches (Q,) of the group at one position of each query."""
        start, size, matches = (x.gather(1, position_Q[:, None])[:, 0] for x in self[:3])
        return start, size, matches


def retrieval_metrics(similarity: Any, query_ids: Any, gallery_ids: Any) -> dict[str, float]:
    """R-1, R-5, R-10, mAP and mINP in percent, keys `METRICS`.

    similarity: (Q, G) floating, higher is better; query_ids (Q,) and gallery_ids (G,) integers; tensors or arrays.
    R-k: any match in the first k. AP: mean of (matches so far / rank) over the matches in the full gallery. mINP:
    matches / rank of the last match. Tied scores count with the expected value over their random order. Sums in
    float64, chunked over queries. Raises TypeError for a wrong dtype, ValueError for shapes that do not fit, NaN, or a
    query without a match.
    """
    similarity_QG, query_Q, gallery_G = _checked(similarity, query_ids, gallery_ids)
    total = torch.zeros(len(METRICS), dtype=torch.float64)
    for rows in _chunks(similarity_QG):
        match_QG = query_Q[rows, None] == gallery_G[None]
        total += _query_metrics(similarity_QG[rows], match_QG).sum(0).cpu()
    return _percent(total / len(query_Q))


def has_ties(similarity: Any, query_ids: Any, gallery_ids: Any) -> bool:
    """Whether any query gives one score to a match and to a wrong item, so that the metrics are expectations."""
    similarity_QG, query_Q, gallery_G = _checked(similarity, query_ids, gallery_ids)
    for rows in _chunks(similarity_QG):
        _, groups = _rank(similarity_QG[rows], query_Q[rows, None] == gallery_G[None])
        if bool(((groups.matches > 0) & (groups.matches < groups.size)).any()):
            return True
    return False


def chance_metrics(query_ids: Any, gallery_ids: Any) -> dict[str, float]:
    """The same keys: exact expectation in percent under a uniformly random order of the gallery.

    A random order is one group of equal scores, so this is `retrieval_metrics` of a constant similarity, evaluated
    once for each number of matches that occurs. Errors as there.
    """
    query_Q, gallery_G = _ids("query_ids", query_ids), _ids("gallery_ids", gallery_ids)
    _check_matches(query_Q, gallery_G)
    known_I, number_I = gallery_G.unique(return_counts=True)
    matches_Q = number_I[torch.searchsorted(known_I, query_Q)]
    matches_U, times_U = matches_Q.unique(return_counts=True)
    total = torch.zeros(len(METRICS), dtype=torch.float64)
    for matches, times in zip(matches_U.tolist(), times_U.tolist(), strict=True):
        match_1G = (torch.arange(len(gallery_G)) < matches)[None]
        total += times * _query_metrics(torch.zeros(match_1G.shape), match_1G)[0]
    return _percent(total / len(query_Q))


def query_metrics(similarity_QG: Tensor, match_QG: Tensor, excluded_QG: Tensor | None = None) -> Tensor:
    """(Q, 5) float64 in percent, columns as `METRICS`: each query by itself, with its own matches.

    similarity_QG: (Q, G) floating, finite; match_QG and excluded_QG: (Q, G) bool. An excluded item is not in the gallery
    of its query. Raises ValueError for a query without a match, or whose match is excluded.
    """
    if excluded_QG is not None:
        if bool((match_QG & excluded_QG).any()):
            raise ValueError(f"{int((match_QG & excluded_QG).any(1).sum())} queries exclude a match of theirs")
        # Behind every other item they change no metric: the last match stands before them.
        similarity_QG = similarity_QG.masked_fill(excluded_QG, -torch.inf)
    if not bool(match_QG.any(1).all()):
        raise ValueError(f"{int((~match_QG.any(1)).sum())} of {len(match_QG)} queries have no match in the gallery")
    return 100.0 * torch.cat([_query_metrics(similarity_QG[rows], match_QG[rows]) for rows in _chunks(similarity_QG)])


def _percent(metrics: Tensor) -> dict[str, float]:
    return {key: 100.0 * value for key, value in zip(METRICS, metrics.tolist(), strict=True)}


def _chunks(similarity_QG: Tensor) -> list[slice]:
    queries, gallery = similarity_QG.shape
    step = max(1, CHUNK // gallery)
    return [slice(first, min(first + step, queries)) for first in range(0, queries, step)]


def _query_metrics(similarity_QG: Tensor, match_QG: Tensor) -> Tensor:
    """(Q, 5) float64 in [0, 1], columns as `METRICS`; every query has a match."""
    match_QG, groups = _rank(similarity_QG, match_QG)
    relevant_QG = groups.matches > 0
    found_Q = match_QG.sum(1)
    first_Q = relevant_QG.int().argmax(1)
    last_Q = relevant_QG.shape[1] - 1 - relevant_QG.flip(1).int().argmax(1)
    columns = [_hit_probability(k, *groups.at(first_Q)) for k in RANKS]
    columns.append(_precision_sum(groups) / found_Q)
    inverse = [_inverse_last_rank(*group) for group in zip(*(x.tolist() for x in groups.at(last_Q)), strict=True)]
    columns.append(found_Q * torch.tensor(inverse, dtype=torch.float64, device=found_Q.device))
    return torch.stack(columns, dim=1)


def _rank(similarity_QG: Tensor, match_QG: Tensor) -> tuple[Tensor, Groups]:
    """Matches in ranked order, and the groups of equal scores."""
    scores_QG, order_QG = similarity_QG.sort(dim=1, descending=True)
    match_QG = match_QG.gather(1, order_QG)
    size = scores_QG.shape[1]
    position_G = torch.arange(size, device=scores_QG.device)
    opens_QG = torch.ones_like(match_QG)
    opens_QG[:, 1:] = scores_QG[:, 1:] != scores_QG[:, :-1]
    closes_QG = torch.ones_like(match_QG)
    closes_QG[:, :-1] = opens_QG[:, 1:]
    start_QG = torch.where(opens_QG, position_G, 0).cummax(1).values
    end_QG = torch.where(closes_QG, position_G + 1, size).flip(1).cummin(1).values.flip(1)
    so_far = torch.nn.functional.pad(match_QG.long().cumsum(1), (1, 0))
    before_QG = so_far.gather(1, start_QG)
    return match_QG, Groups(start_QG, end_QG - start_QG, so_far.gather(1, end_QG) - before_QG, before_QG)


def _precision_sum(groups: Groups) -> Tensor:
    """(Q,) sum over the ranks r of P(match at r) E[matches up to r | match at r] / r, float64."""
    rank_G = torch.arange(1, groups.start.shape[1] + 1, device=groups.start.device, dtype=torch.float64)
    probability_QG = groups.matches / groups.size.double()
    # Given a match at r, each of the other places of the group holds one of the other matches equally often.
    others_QG = (groups.matches - 1).double() / (groups.size - 1).clamp(min=1)
    expected_QG = groups.before + 1 + (rank_G - 1 - groups.start) * others_QG
    return (probability_QG * expected_QG / rank_G).sum(1)


def _hit_probability(k: int, start_Q: Tensor, size_Q: Tensor, matches_Q: Tensor) -> Tensor:
    """(Q,) probability that a match of the first relevant group lies in the first k: one minus a hypergeometric 0."""
    drawn_Q = (k - start_Q).clamp(min=0).minimum(size_Q)
    miss_Q = torch.ones(start_Q.shape, dtype=torch.float64, device=start_Q.device)
    for i in range(k):
        factor_Q = (size_Q - matches_Q - i).clamp(min=0).double() / (size_Q - i).clamp(min=1)
        miss_Q = torch.where(i < drawn_Q, miss_Q * factor_Q, miss_Q)
    return 1.0 - miss_Q


@lru_cache(maxsize=4096)
def _inverse_last_rank(start: int, size: int, matches: int) -> float:
    """E[1 / rank of the last match]: P(last at l) = C(l-1, m-1) / C(n, m), by its ratio from l = n downwards."""
    last = np.arange(size, matches - 1, -1, dtype=np.float64)
    probability = np.cumprod(np.concatenate([[matches / size], (last[:-1] - matches) / (last[:-1] - 1)]))
    return float((probability / (start + last)).sum())


def _checked(similarity: Any, query_ids: Any, gallery_ids: Any) -> tuple[Tensor, Tensor, Tensor]:
    similarity_QG = _tensor(similarity)
    if not similarity_QG.is_floating_point():
        raise TypeError(f"similarity must be floating, got {similarity_QG.dtype}")
    query_Q, gallery_G = _ids("query_ids", query_ids), _ids("gallery_ids", gallery_ids)
    if similarity_QG.shape != (len(query_Q), len(gallery_G)):
        expected, got = (len(query_Q), len(gallery_G)), tuple(similarity_QG.shape)
        raise ValueError(f"similarity must have shape {expected} like query_ids and gallery_ids, got {got}")
    if bool(similarity_QG.isnan().any()):
        raise ValueError(f"similarity holds {int(similarity_QG.isnan().sum())} NaN")
    _check_matches(query_Q, gallery_G)
    return similarity_QG, query_Q.to(similarity_QG.device), gallery_G.to(similarity_QG.device)


def _ids(name: str, ids: Any) -> Tensor:
    result = _tensor(ids)
    if result.is_floating_point() or result.is_complex() or result.dtype == torch.bool:
        raise TypeError(f"{name} must be integers, got {result.dtype}")
    if result.ndim != 1 or not len(result):
        raise ValueError(f"{name} must have shape (n,) with n >= 1, got {tuple(result.shape)}")
    return result.long()


def _tensor(values: Any) -> Tensor:
    return values.detach() if isinstance(values, Tensor) else torch.from_numpy(np.asarray(values))


def _check_matches(query_Q: Tensor, gallery_G: Tensor) -> None:
    alone = query_Q[~torch.isin(query_Q, gallery_G.to(query_Q.device))]
    if len(alone):
        raise ValueError(
            f"{len(alone)} of {len(query_Q)} queries have no match in the gallery, ids {alone.unique()[:5].tolist()}"
        )
