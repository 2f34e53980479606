"""Styles of the captions of a data set: from captions to style features, clusters and their files.

Shapes: N captions, D features.
"""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from sklearn.metrics import adjusted_rand_score

from training.config import DataConfig
from training.data.datasets import read_records
from training.data.ground_truth import read_caption_styles
from training.describe.styles.clustering import Clustering, choose_examples, cluster, find_markers
from training.describe.styles.neutral import NeutralCaptions
from training.describe.styles.style_encoders import encode
from training.describe.styles.style_options import StyleOptions
from training.utils.io import atomic, write_json
from training.utils.terminal import make_progress

# Part of the settings of a stored result: increment when word lists, encoder or clustering change.
VERSION = 1
Row = dict[str, Any]


@dataclass(frozen=True)
class Captions:
    """Captions of the training split, in order."""

    # (file_path, index within the image) of each.
    keys: list[tuple[str, int]]
    texts: list[str]
    # SHA-256 (hex) over keys and texts.
    source: str
    # Writer of each, where the data has it; for evaluation only.
    writers: list[int] | None


@dataclass(frozen=True)
class EncodedCaptions:
    """Neutral captions with their style features."""

    neutral: NeutralCaptions
    # float32 (N, D), norm 1.
    features_ND: np.ndarray
    encoder: str


def read_captions(name: str, root: Path) -> Captions:
    """Reads the training captions of a data set. Raises what `read_records` and `read_caption_styles` raise."""
    fields: dict[str, Any] = {"dataset": name, "root": str(root)}
    records = read_records(DataConfig(**fields))["train"]
    keys = [(record.file_path, index) for record in records for index in range(len(record.captions))]
    texts = [caption for record in records for caption in record.captions]
    source = hashlib.sha256(json.dumps([keys, texts]).encode()).hexdigest()
    return Captions(keys, texts, source, read_caption_styles(root, records))


def encode_captions(
    neutral: NeutralCaptions, encoder: str, folder: Path, console: Console, device: str = "auto"
) -> EncodedCaptions:
    """Adds style features to neutral captions; those of a text model, on `device`, are cached in `folder`. Raises what `encode`
    raises."""
    with make_progress(console) as bar:
        task = bar.add_task("features", total=None)
        features_ND = encode(
            neutral.texts, encoder, folder, lambda done, total: bar.update(task, completed=done, total=total), device
        )
    return EncodedCaptions(neutral, features_ND, encoder)


def make_styles(
    captions: Captions, encoded: EncodedCaptions, method: str, options: StyleOptions, folder: Path
) -> tuple[Row, Clustering]:
    """Clusters the captions and writes styles.jsonl and styles.json into `folder`.

    Returns (contents of styles.json, the clustering). Raises what `clustering.cluster` raises, before anything is written.
    """
    started = time.perf_counter()
    clustering = cluster(encoded.features_ND, method, options)
    seconds = time.perf_counter() - started
    sizes = np.bincount(clustering.styles_N)
    example_indices = choose_examples(encoded.features_ND, clustering.styles_N, encoded.neutral.texts)
    marker_phrases = find_markers(clustering.styles_N, encoded.neutral.texts)
    table = style_settings(captions, encoded.neutral.by, encoded.encoder, method, options) | {
        "found": clustering.details,
        # Distinct captions that the model failed to neutralise, so that the word lists were used.
        "neutral_by_lists": encoded.neutral.fallbacks,
        "noise_share": round(clustering.noise_share, 6),
        # Against the writers of a synthetic set.
        "ari": None
        if captions.writers is None
        else round(adjusted_rand_score(captions.writers, clustering.styles_N), 6),
        "seconds": round(seconds, 2),
        "styles": [
            {
                "style": style,
                "size": int(sizes[style]),
                "examples": [captions.texts[index] for index in example_indices[style]],
                "markers": marker_phrases[style],
            }
            for style in range(len(sizes))
        ],
    }
    folder.mkdir(parents=True, exist_ok=True)
    with atomic(folder / "styles.jsonl") as file:
        for (file_path, index), style in zip(captions.keys, clustering.styles_N.tolist(), strict=True):
            file.write(json.dumps({"file_path": file_path, "caption": index, "style": style}).encode() + b"\n")
    write_json(folder / "styles.json", table)
    return table, clustering


def style_settings(captions: Captions, neutral: Row, encoder: str, method: str, options: StyleOptions) -> Row:
    """Everything that a result depends on, as in styles.json."""
    params = asdict(options) | {"version": VERSION}
    return {"method": method, "encoder": encoder, "neutral": neutral, "params": params, "source": captions.source}
