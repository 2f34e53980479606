"""Search of the images of a split or of a folder by a text, with the model of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from training.config import DataConfig
from training.data.datasets import SPLITS, Record, read_dataset
from training.data.loader import tokenize
from training.engine import checkpoint
from training.engine.checkpoint import TrainedModel
from training.retrieval.store import Index, build_index, folder_records, index_key, load_index, save_index


def search_gallery(
    run_dir: Path, text: str, k: int, gallery: str, data_root: Path | None = None, device: str = "auto"
) -> list[tuple[float, str]]:
    """(score, path) of the best k images of a split or folder for a text, best first; data_root: where the data of the run are
    now, if they were moved; device: as in `select_device`. Raises ValueError for an empty text and for k below 1, and what
    reading the run and the gallery raises."""
    if not text.strip():
        raise ValueError("TEXT is empty, expected a description of a person")
    if k < 1:
        raise ValueError(f"--k must be at least 1, got {k}")
    run = checkpoint.load_run(run_dir, data_root, device)
    data = run.config.data
    # The packed cache of the run is for its data set: a folder is embedded once, and the index kept.
    ours = gallery in SPLITS
    records = read_dataset(data).splits[gallery] if ours else folder_records(Path(gallery))
    index = _index(run, run_dir, records, data if ours else replace(data, cache=""))
    with torch.inference_mode():
        words = tokenize(run.tokenizer, [text], run.config.data.text_length).to(run.device)
        text_1E = run.model.embed_texts(words)
    scores, positions = index.search(text_1E[0], k)
    return [(score, index.paths[i]) for score, i in zip(scores.tolist(), positions.tolist(), strict=True)]


def _index(run: TrainedModel, run_dir: Path, records: Sequence[Record], data: DataConfig) -> Index:
    """The stored index if it is of this checkpoint and these images, else a new one, stored in its place."""
    path, key = run_dir / "index.pt", index_key(run_dir / "best.pt", records)
    try:
        index = load_index(path)
        if index.key == key:
            return index
    except (FileNotFoundError, ValueError):
        # A missing or damaged index is computed again.
        pass
    index = build_index(run.model, records, data, beta=run.beta, batch_size=run.config.eval.batch_size, key=key)
    save_index(path, index)
    return index
