"""Finds the images that a text describes: `python -m training.search RUN "a man in a red jacket"`.

The embeddings of the gallery are kept in RUN/index.pt and made anew when the checkpoint or an image has changed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TextIO

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from training.config import DataConfig
from training.data.datasets import SPLITS, Record, read_dataset
from training.data.loader import tokenize
from training.engine import checkpoint
from training.engine.checkpoint import TrainedRun
from training.retrieval.store import Index, build_index, folder_records, index_key, load_index, save_index
from training.utils import cli


def main(argv: Sequence[str]) -> None:
    """Entry point: prints rank, score and path of the best images. Raises what the stages raise."""
    parser = argparse.ArgumentParser("python -m training.search", description=__doc__, allow_abbrev=False)
    parser.add_argument("run", metavar="RUN", type=Path, help="run folder that `python -m training.train` has filled")
    parser.add_argument("text", metavar="TEXT", help="what the person looks like")
    parser.add_argument("--k", type=int, default=10, help="number of images (default 10)")
    help_gallery = f"one of {', '.join(SPLITS)} of the run's data set, or a folder of images (default test)"
    parser.add_argument("--gallery", default="test", metavar="SPLIT|FOLDER", help=help_gallery)
    arguments = parser.parse_args(argv)
    print_results(find(arguments.run, arguments.text, arguments.k, arguments.gallery), sys.stdout)


def find(run_dir: Path, text: str, k: int, gallery: str) -> list[tuple[float, str]]:
    """(score, path) of the best k images of a split or folder for a text, best first. Raises what the stages raise."""
    if not text.strip():
        raise ValueError("TEXT is empty, expected a description of a person")
    if k < 1:
        raise ValueError(f"--k must be at least 1, got {k}")
    run = checkpoint.load_run(run_dir)
    data = run.config.data
    # The packed cache of the run is for its data set: a folder is embedded once, and the index kept.
    ours = gallery in SPLITS
    records = read_dataset(data).splits[gallery] if ours else folder_records(Path(gallery))
    index = _index(run, run_dir, records, data if ours else replace(data, cache=""))
    with torch.inference_mode():
        text_1E = run.model.embed_texts(tokenize(run.tokenizer, [text], run.config.data.text_length))
    scores, positions = index.search(text_1E[0], k)
    return [(score, index.paths[i]) for score, i in zip(scores.tolist(), positions.tolist(), strict=True)]


def _index(run: TrainedRun, run_dir: Path, records: Sequence[Record], data: DataConfig) -> Index:
    """The stored index if it is of this checkpoint and these images, else a new one, stored in its place."""
    path, key = run_dir / "index.pt", index_key(run_dir / "best.pt", records)
    try:
        index = load_index(path)
        if index.key == key:
            return index
    except (FileNotFoundError, ValueError):
        # A missing or damaged index costs nothing but the time to make it again.
        pass
    index = build_index(run.model, records, data, beta=run.beta, batch_size=run.config.eval.batch_size, key=key)
    save_index(path, index)
    return index


def print_results(results: Sequence[tuple[float, str]], file: TextIO) -> None:
    """Table of rank, score and path, so wide that no path is broken into lines."""
    table = Table("rank", "score", "path")
    for rank, (score, path) in enumerate(results, 1):
        table.add_row(str(rank), f"{score:.4f}", Text(path))
    # 40 columns are more than the rest of the table needs.
    Console(file=file, width=40 + max(len(path) for _, path in results), soft_wrap=True).print(table)


if __name__ == "__main__":
    sys.exit(cli.run(main))
