"""Searches of an engine and full scans of the same table, for comparison."""

from __future__ import annotations

import numpy as np
import torch

from tests.support.retrieval.galleries import unit
from training.evaluation.similarity import Similarity
from training.retrieval.engines.engine import Engine, Filter, Metadata
from training.retrieval.scoring import Query, best, exact_scores

# Embedding width.
E = 16


def metadata(count: int, start: int = 0) -> Metadata:
    i = np.arange(start, start + count)
    times = np.where(i % 5 == 0, np.nan, i.astype(float))
    return Metadata(times, {"camera": (i % 4).astype(np.int32)}, {"camera": ["", "c1", "c2", "c3"]})


def query(beta: float, seed: int = 9) -> Query:
    t_E = unit(np.random.default_rng(seed).standard_normal(E))
    return Query(t_E, t_E, beta)


def expected(table: np.ndarray, asked: Query, kept: np.ndarray, k: int) -> list[int]:
    """The best rows by the evaluation's scores, of equal ones the first."""
    similarity = Similarity(asked.identity_E[None], table[:, :E], table[:, E:])
    scores = similarity.matrix(asked.beta)[0].masked_fill(torch.from_numpy(~kept), -torch.inf)
    order = scores.sort(descending=True, stable=True).indices[: min(k, int(kept.sum()))]
    return order.tolist()


def found(engine: Engine, table: np.ndarray, asked: Query, k: int, where: Filter) -> list[int]:
    """Rows that an engine finds, scored exactly; ids are 10 + row."""
    ids = np.sort(engine.search(asked.vector(2), k, where))
    return (ids[best(exact_scores(table[ids - 10], asked).score_M, k)] - 10).tolist()
