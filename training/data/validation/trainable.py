"""Finding about the recipes that a data set allows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from training.config import DataConfig
from training.config.recipes import get_recipe
from training.data.checks import examples
from training.data.datasets import described_images, descriptions_path
from training.data.readers import Row
from training.data.suitability import NO_FUSION, asks_for_other, without_other
from training.data.validation.findings import Finding

CHECK = "recipes"


def recipe_finding(name: str, root: Path, rows: Sequence[Row]) -> Finding:
    """Recipes that can be trained on the data set `name` in `root`, and what the others lack."""
    dataset: Any = name
    path, base = descriptions_path(DataConfig(dataset, str(root))), "cuhk-pedes" if name == "own" else name
    suffix = f" --data.dataset {name}" if name == "own" else ""
    train = [row for row in rows if row["split"] == "train"]
    alone = 0 < len(train) == without_other([(row["captions"], "") for row in train])
    options = f" {NO_FUSION}" if alone and asks_for_other(get_recipe(f"{base}-captions")) else ""
    captions = f"`train {base}-captions{suffix}{options} --data.root {root}` trains on the captions alone"
    generate = f"`python -m training.describe generate {name} {root} --out OUT` writes the texts that `{base}` needs"
    if not path.is_file():
        return Finding(CHECK, "note", f"{captions}; there is no {path.name}: {generate}")
    try:
        described = described_images(path)
    except ValueError as error:
        return Finding(CHECK, "warning", f"{captions}; {error}")
    without = [row["file_path"] for row in train if row["file_path"] not in described]
    if without:
        return Finding(CHECK, "note", f"{captions}; {path.name} has no texts of {examples(without)}: {generate}")
    return Finding(CHECK, "ok", f"`train {base}{suffix} --data.root {root}`, with the texts of {path.name}; {captions}")
