"""Ceiling of text-to-image retrieval on a rendered set: the metrics of an oracle that reads texts by the true factors.

Shapes: Q queries (captions or identity texts), G gallery (images), B queries of a block.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from training.config import from_dict
from training.data.datasets import at_root, read_dataset
from training.data.ground_truth import FACTORS
from training.evaluation.metrics import METRICS, query_metrics
from training.evaluation.result import Evaluation, Metrics, OracleBounds
from training.evaluation.run_folder import ORACLE
from training.evaluation.similarity import blocks
from training.synthetic.identity_oracle import IdentityOracle
from training.synthetic.oracle import Oracle, TrueImage, read_images
from training.synthetic.text.likelihood import IDENTITY_SLOTS, SLOTS
from training.utils.io import read_record, write_record
from training.utils.locks import folder_lock

# Rows by their label: decisions of the annotator that count, and True for the gallery without the outfit of the described image.
ROWS: dict[str, tuple[tuple[str, ...], bool]] = {
    "oracle, all words": (SLOTS, False),
    "oracle, identity words": (IDENTITY_SLOTS, False),
    "oracle, all words, other outfits": (SLOTS, True),
    "oracle, identity words, other outfits": (IDENTITY_SLOTS, True),
}
# Row of the protocol `identity`, whose queries are identity texts instead of captions.
IDENTITY_TEXTS = "oracle, identity texts"


def oracle_bounds(run_dir: Path, evaluation: Evaluation, data_root: Path | None = None) -> OracleBounds | None:
    """Contents of RUN/oracle.json for the test split of an evaluated run, computed only if the file does not exist; None for
    data without factors.jsonl. data_root: where the data are now, if they were moved.

    Raises ValueError for a set that cannot be read by the oracle, or that is not the data of the evaluation.
    """
    path, data = run_dir / ORACLE, at_root(from_dict(evaluation.config).data, data_root)
    fingerprint = evaluation.data.fingerprint if evaluation.data else ""
    if path.exists() and (stored := read_record(path, OracleBounds)).fingerprint == fingerprint:
        # Version 0.1.0 had no such row.
        if IDENTITY_TEXTS in stored.rows:
            return stored
    if not (Path(data.root) / FACTORS).is_file():
        return None
    dataset = read_dataset(data)
    if dataset.fingerprint != fingerprint:
        raise ValueError(f"an oracle needs the data of the evaluation, but {dataset.root} has changed since")
    rows = measure(read_images(dataset.root, dataset.splits["test"]))
    with folder_lock(run_dir):
        write_record(path, OracleBounds(fingerprint=dataset.fingerprint, rows=rows))
    return read_record(path, OracleBounds)


def measure(images: Sequence[TrueImage]) -> dict[str, Metrics]:
    """Metrics of each of ROWS, mean over the captions of the images, and of IDENTITY_TEXTS, over one text an image; a query
    without any match in its gallery is left out, and a row for which no query has one is missing."""
    oracle, result = Oracle(images), dict[str, Metrics]()
    person_G = torch.tensor([image.person for image in images])
    outfit_G = torch.tensor([image.outfit_number for image in images])
    image_Q = torch.tensor([i for i, image in enumerate(images) for _ in image.notes])
    for label, (slots, other_outfits) in ROWS.items():
        values = _row(partial(oracle.log_likelihood, slots), image_Q, person_G, outfit_G, other_outfits)
        if values is not None:
            result[label] = values
    values = _row(IdentityOracle(images).log_likelihood, torch.arange(len(images)), person_G, outfit_G, False)
    return result if values is None else result | {IDENTITY_TEXTS: values}


def _row(
    scores: Callable[[slice], np.ndarray], image_Q: Tensor, person_G: Tensor, outfit_G: Tensor, other_outfits: bool
) -> Metrics | None:
    """Mean metrics over the queries, of which `image_Q` are the images; None if no query has a match."""
    parts = []
    for rows in blocks(len(image_Q), len(person_G)):
        scores_BG = torch.from_numpy(scores(rows))
        parts.append(_query_metrics(scores_BG, image_Q[rows], person_G, outfit_G, other_outfits))
    values_Q5 = torch.cat(parts)
    return dict(zip(METRICS, values_Q5.mean(0).tolist(), strict=True)) if len(values_Q5) else None


def _query_metrics(
    scores_BG: Tensor, image_B: Tensor, person_G: Tensor, outfit_G: Tensor, other_outfits: bool
) -> Tensor:
    match_BG = person_G[image_B][:, None] == person_G
    if not other_outfits:
        return query_metrics(scores_BG, match_BG).values_Q5
    excluded_BG = match_BG & (outfit_G[image_B][:, None] == outfit_G)
    match_BG = match_BG & ~excluded_BG
    kept_B = match_BG.any(1)
    if not bool(kept_B.any()):
        return torch.empty(0, len(METRICS), dtype=torch.float64)
    return query_metrics(scores_BG[kept_B], match_BG[kept_B], excluded_BG[kept_B]).values_Q5
