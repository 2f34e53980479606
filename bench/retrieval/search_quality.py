"""Calibration and relevance feedback on a run, against the truth: `python -m bench.retrieval.search_quality RUN`.

Both are chosen on the validation split; --split test measures them. Calibration: shares that it gives to the ten best images of
every caption and the true ones, and how often "nothing good found" hides the results of a person who is in the gallery and of one
who is not. Feedback: mAP of the images that are not marked, before and after marks by the truth: of the first five results;
of the first five right ones (at least one is left) and the first five wrong ones; and, where the outfits are known (synthetic
data), of the first three right ones in the outfit of the best right one and the first five wrong ones, mAP of the person's images
in other outfits (those in the marked one count neither as right nor as wrong).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
import tyro

from training.data.datasets import read_dataset
from training.data.ground_truth import FACTORS, read_factors
from training.engine.checkpoint import load_run
from training.evaluation.calibration import Calibration, calibrate
from training.evaluation.dual import DualEmbeddings, embed_dual
from training.retrieval.scoring import Marks, Query, best, exact_scores

# Results whose shares are compared, and groups of equal size in which they are.
BEST, GROUPS = 10, 10
MARKED, MARKED_OUTFIT = 5, 3
MARKINGS = ("the first five results", "five right, five wrong", "three right of one outfit, five wrong; other outfits")


@dataclass(frozen=True)
class Arguments:
    """Arguments of the command."""

    # Run folder.
    run: Annotated[Path, tyro.conf.Positional]
    # Root of the data set, if it was moved.
    data_root: Path | None = None
    # Split whose captions are the queries.
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
    root, records = Path(run.config.data.root), splits[arguments.split]
    outfits = np.array(read_factors(root, records).outfits) if (root / FACTORS).is_file() else None
    for marking in MARKINGS[: 2 if outfits is None else 3]:
        for beta in sorted({0.0, run.beta}):
            print(feedback_row(dual, beta, marking, arguments.every, outfits), flush=True)


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


def feedback_row(dual: DualEmbeddings, beta: float, marking: str, every: int, outfits_G: np.ndarray | None) -> str:
    """Row of the table for one of MARKINGS; outfits_G: number of each image's outfit, for the last one."""
    branches = [dual.v_id_GE] + ([] if dual.v_clo_GE is None else [dual.v_clo_GE])
    table_GW, ids_G = torch.cat(branches, dim=1).numpy(), dual.gallery_ids_G.numpy()
    values, confirmed_count = [], []
    for t_E, person in zip(dual.t_QE.numpy()[::every], dual.query_ids_Q.numpy()[::every], strict=True):
        query, right_G = Query(t_E, t_E, beta), ids_G == person
        before_G = exact_scores(table_GW, query).score_M
        order_G = best(before_G, len(ids_G))
        confirmed, rejected, known_G = _marks(marking, order_G, right_G, outfits_G)
        rest_G = ~known_G
        rest_G[rejected] = False
        if not right_G[rest_G].any():
            continue
        marked = replace(query, marks=Marks(table_GW[confirmed], table_GW[rejected]))
        after_G = exact_scores(table_GW, marked).score_M
        values.append([_average_precision(scores_G[rest_G], right_G[rest_G]) for scores_G in (before_G, after_G)])
        confirmed_count.append(len(confirmed))
    before, after = 100 * np.mean(values, axis=0)
    return f"| {marking} | {beta:g} | {np.mean(confirmed_count):.1f} | {before:.1f} | {after:.1f} |"


def _marks(
    marking: str, order_G: np.ndarray, right_G: np.ndarray, outfits_G: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Confirmed and rejected images of a ranking, and the right ones that are not measured any more, bool (G,)."""
    right, wrong = order_G[right_G[order_G]], order_G[~right_G[order_G]]
    known_G = np.zeros(len(order_G), bool)
    if marking == MARKINGS[0]:
        confirmed, rejected = right[np.isin(right, order_G[:MARKED])], wrong[np.isin(wrong, order_G[:MARKED])]
    elif marking == MARKINGS[1]:
        confirmed, rejected = right[: min(MARKED, len(right) - 1)], wrong[:MARKED]
    else:
        assert outfits_G is not None
        known_G = right_G & (outfits_G == outfits_G[right[0]])
        confirmed, rejected = right[known_G[right]][:MARKED_OUTFIT], wrong[:MARKED]
    known_G[confirmed] = True
    return confirmed, rejected, known_G


def _average_precision(scores_N: np.ndarray, right_N: np.ndarray) -> float:
    """Average precision of a ranking, in [0, 1]; at least one is right."""
    ranks = np.flatnonzero(right_N[best(scores_N, len(scores_N))]) + 1
    return float(np.mean(np.arange(1, len(ranks) + 1) / ranks))


if __name__ == "__main__":
    main()
