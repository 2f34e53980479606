"""Calibration and relevance feedback on a run, against the truth: `python -m bench.pipeline.search_quality RUN`.

Both are chosen on the validation split; --split test measures them. Calibration: shares that it gives to the ten best images of
every caption and the true ones, and how often "nothing good found" hides the results of a person who is in the gallery and of one
who is not. Feedback: mAP of the images that are not marked, before and after marks by the truth, of the first five results, and
of the first five right ones (at least one is left) and the first five wrong ones.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
import tyro

from training.data.datasets import read_dataset
from training.engine.checkpoint import load_run
from training.evaluation.calibration import Calibration, calibrate
from training.evaluation.dual import DualEmbeddings, embed_dual
from training.retrieval.scoring import Marks, Query, best, exact_scores

# Results whose shares are compared, and groups of equal size in which they are.
BEST, GROUPS = 10, 10
MARKED = 5


@dataclass(frozen=True)
class Arguments:
    """Arguments of the command."""

    # Run folder.
    run: Annotated[Path, tyro.conf.Positional]
    # Root of the data set, if it was moved.
    data_root: Path | None = None
    split: Literal["val", "test"] = "test"
    # Every so many-th caption is a query of the feedback.
    every: int = 4


def main() -> None:
    """Entry point."""
    arguments = tyro.cli(Arguments, description=__doc__)
    torch.set_num_threads(1)
    run = load_run(arguments.run, arguments.data_root, "cpu")
    splits = read_dataset(run.config.data).splits
    made = {n: embed_dual(run.model, splits[n], run.tokenizer, run.config) for n in {"val", arguments.split}}
    calibration, dual = calibrate(made["val"], run.beta, ""), made[arguments.split]
    print(
        "| images | beta | share given | true share | mean gap of ten groups | R-1 | hidden, there | hidden, not there |"
    )
    print("|---|---|---|---|---|---|---|---|")
    betas = sorted({0.0, 1.0, run.beta}) if dual.v_clo_GE is not None else [0.0]
    for part in (1, 2, 10):
        for beta in betas:
            print(calibration_row(calibration, dual, beta, part), flush=True)
    print("\n| marks | beta | confirmed | mAP of the rest, before | after |\n|---|---|---|---|---|")
    for each in (False, True):
        for beta in sorted({0.0, run.beta}):
            print(feedback_row(dual, beta, each, arguments.every), flush=True)


def calibration_row(calibration: Calibration, dual: DualEmbeddings, beta: float, part: int) -> str:
    """Row of the table for the gallery of every part-th person."""
    persons = np.unique(dual.gallery_ids_G.numpy())[::part]
    images = np.flatnonzero(np.isin(dual.gallery_ids_G.numpy(), persons))
    queries = np.flatnonzero(np.isin(dual.query_ids_Q.numpy(), persons))
    scores_QG = dual.similarity(beta, queries.tolist()).numpy()[:, images]
    right_QG = dual.query_ids_Q.numpy()[queries, None] == dual.gallery_ids_G.numpy()[images]
    first_QK = np.argsort(-scores_QG, axis=1, kind="stable")[:, :BEST]
    true_QK = np.take_along_axis(right_QG, first_QK, 1)
    found = np.take_along_axis(scores_QG, first_QK, 1).ravel().tolist()
    share_N = np.array([calibration.share(score, beta, len(images)) for score in found])
    order = np.argsort(share_N, kind="stable")
    groups = list(
        zip(np.array_split(share_N[order], GROUPS), np.array_split(true_QK.ravel()[order], GROUPS), strict=True)
    )
    gap = np.mean([abs(given.mean() - true.mean()) for given, true in groups])
    least = calibration.least(beta)
    hidden = [(np.where(mask, scores_QG, -9).max(1) < least).mean() for mask in (True, ~right_QG)]
    cells = (share_N.mean(), true_QK.mean(), gap, true_QK[:, 0].mean(), *hidden)
    return f"| {len(images):,} | {beta:g} | {' | '.join(f'{100 * cell:.1f} %' for cell in cells)} |"


def feedback_row(dual: DualEmbeddings, beta: float, each: bool, every: int) -> str:
    """Row of the table; each: five right and five wrong images are marked, else the first five results."""
    branches = [dual.v_id_GE] + ([] if dual.v_clo_GE is None else [dual.v_clo_GE])
    table_GW, ids_G = torch.cat(branches, dim=1).numpy(), dual.gallery_ids_G.numpy()
    values, confirmed_count = [], []
    for t_E, person in zip(dual.t_QE.numpy()[::every], dual.query_ids_Q.numpy()[::every], strict=True):
        query, right_G = Query(t_E, t_E, beta), ids_G == person
        before_G = exact_scores(table_GW, query).score_M
        order_G = best(before_G, len(ids_G))
        true_G = right_G[order_G]
        confirmed, rejected = order_G[:MARKED][true_G[:MARKED]], order_G[:MARKED][~true_G[:MARKED]]
        if each:
            confirmed = order_G[true_G][: min(MARKED, int(right_G.sum()) - 1)]
            rejected = order_G[~true_G][:MARKED]
        rest_G = np.ones(len(ids_G), bool)
        rest_G[np.concatenate([confirmed, rejected])] = False
        if not right_G[rest_G].any():
            continue
        marked = replace(query, marks=Marks(table_GW[confirmed], table_GW[rejected]))
        after_G = exact_scores(table_GW, marked).score_M
        values.append([_average_precision(scores_G[rest_G], right_G[rest_G]) for scores_G in (before_G, after_G)])
        confirmed_count.append(len(confirmed))
    before, after = 100 * np.mean(values, axis=0)
    name = "five right, five wrong" if each else "the first five results"
    return f"| {name} | {beta:g} | {np.mean(confirmed_count):.1f} | {before:.1f} | {after:.1f} |"


def _average_precision(scores_N: np.ndarray, right_N: np.ndarray) -> float:
    """Average precision of a ranking, in [0, 1]; at least one is right."""
    ranks = np.flatnonzero(right_N[best(scores_N, len(scores_N))]) + 1
    return float(np.mean(np.arange(1, len(ranks) + 1) / ranks))


if __name__ == "__main__":
    main()
