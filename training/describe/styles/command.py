"""Clusters the training captions of a data set by their style: `python -m training.describe styles NAME ROOT --out OUT`.

Attribute words are replaced by neutral ones, by word lists or by a language model; the rest is turned into features and
clustered. Writes OUT/styles.jsonl (style of each caption), OUT/styles.json (each style with its size, example captions and
marker phrases) and OUT/styles.html (with a map). `--method all` runs every method, each in a folder of its own. Where
factors.jsonl records the writers (synthetic sets), the adjusted Rand index against them is printed; nothing else reads them.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from sklearn.metrics import adjusted_rand_score

from training.config import STYLE_METHODS, DataConfig, StyleMethod
from training.data.datasets import read_records
from training.data.ground_truth import read_caption_styles
from training.describe.generate import confirm
from training.describe.style_page import project_captions, write_style_page
from training.describe.styles.clustering import Clustering, StyleOptions, choose_examples, cluster, find_markers
from training.describe.styles.neutral import NeutralCaptions, NeutraliserOptions, neutral_captions
from training.describe.styles.style_encoders import STYLOMETRIC, encode
from training.utils.io import atomic, write_json

# Part of the settings of a stored result: increment when word lists, encoder or clustering change.
VERSION = 1
Row = dict[str, Any]


@dataclass(frozen=True)
class Options:
    """Options of one clustering."""

    # Data set: cuhk-pedes, icfg-pedes, rstpreid or own.
    name: Annotated[str, tyro.conf.Positional]
    # Its folder.
    root: Annotated[Path, tyro.conf.Positional]
    # Folder to write to.
    out: Path
    # Clustering method (Table 4); all: each method in OUT/METHOD.
    method: StyleMethod | Literal["all"] = "dbscan"
    # "stylometric" (offline), or a CLIP or BERT-like text model by Hugging Face name or folder (reading 19).
    encoder: str = STYLOMETRIC
    # Parameters of the methods.
    style: StyleOptions = field(default_factory=StyleOptions)
    # Neutralisation of the captions (reading 20).
    neutral: NeutraliserOptions = field(default_factory=NeutraliserOptions)


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


def main(argv: Sequence[str]) -> None:
    """Entry point; raises what `read_captions` and `make_styles` raise."""
    flat = (tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes)
    options = tyro.cli(Options, args=argv, prog="python -m training.describe styles", description=__doc__, config=flat)
    console = Console(stderr=True)
    captions = read_captions(options.name, options.root)
    neutral = neutral_captions(captions.texts, options.neutral, options.out / "neutral", os.environ, console, confirm)
    encoded = encode_captions(neutral, options.encoder, options.out / "features", console)
    all_methods = options.method == "all"
    found: dict[str, dict[str, Any]] = {}
    caption_map = project_captions(encoded.features_ND, options.style.seed)
    for method in STYLE_METHODS if all_methods else (options.method,):
        folder = options.out / method if all_methods else options.out
        with console.status(f"{method}: {len(captions.texts):,} captions"):
            found[method], clustering = make_styles(captions, encoded, method, options.style, folder)
        write_style_page(folder / "styles.html", found[method], clustering, caption_map)
    print_styles(found, Console(soft_wrap=True))
    print(options.out)


def read_captions(name: str, root: Path) -> Captions:
    """Reads the training captions of a data set. Raises what `read_records` and `read_caption_styles` raise."""
    fields: dict[str, Any] = {"dataset": name, "root": str(root)}
    records = read_records(DataConfig(**fields))["train"]
    keys = [(record.file_path, index) for record in records for index in range(len(record.captions))]
    texts = [caption for record in records for caption in record.captions]
    source = hashlib.sha256(json.dumps([keys, texts]).encode()).hexdigest()
    return Captions(keys, texts, source, read_caption_styles(root, records))


def encode_captions(neutral: NeutralCaptions, encoder: str, folder: Path, console: Console) -> EncodedCaptions:
    """Adds style features to neutral captions; those of a text model are cached in `folder`. Raises what `encode` raises."""
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("features", total=None)
        features_ND = encode(
            neutral.texts, encoder, folder, lambda done, total: bar.update(task, completed=done, total=total)
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


def print_styles(found: Mapping[str, Row], console: Console) -> None:
    """Prints one row a method; for a single method its styles too."""
    table = Table("method", "styles", "captions in each", "noise", "ARI", "seconds")
    for method, row in found.items():
        sizes = [style["size"] for style in row["styles"]]
        shown = f"{sizes[-1]:,} to {sizes[0]:,}" if len(sizes) > 1 else f"{sizes[0]:,}"
        ari = "–" if row["ari"] is None else f"{row['ari']:.3f}"
        table.add_row(method, str(len(sizes)), shown, f"{100 * row['noise_share']:.1f} %", ari, f"{row['seconds']:.1f}")
    console.print(table)
    if len(found) > 1:
        return
    for row in found.values():
        styles = Table("style", "captions", "markers", "example", show_lines=True)
        for style in row["styles"]:
            cells = (str(style["style"]), f"{style['size']:,}", " · ".join(style["markers"][:5]), style["examples"][0])
            styles.add_row(*cells)
        console.print(styles, markup=False)
        console.print(f"{row['encoder']}: {json.dumps(row['found'])}", highlight=False, markup=False)
