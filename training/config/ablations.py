"""The tables of the paper as lists of rows, each row a whole Config, and the key that identifies equal runs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from training.config.recipes import get_recipe, texts_of, with_row
from training.config.stages import Config
from training.config.storage import to_dict, without_places

# The whole method, with which every other row is compared.
FULL = "full"
# Titles of the tables, and their rows as (row, label), in the order and words of the paper.
TITLES = {
    "table1": "Table 1: decoupling module",
    "table2": "Table 2: fusion module",
    "table3": "Table 3: losses",
    "table4": "Table 4: styles of the generated texts",
    "table5": "Table 5: data sets",
    "readings": "Readings 1, 2, 6 and 8: what decouples",
    "fig5": "Figure 5: layers of the fusion",
}
ABLATIONS: dict[str, tuple[tuple[str, str], ...]] = {
    "table1": (
        ("no-bdam", "Baseline (w/o BDAM)"),
        (FULL, "+ BDAM"),
        ("no-cross-attention", "w/o cross-attention"),
        ("no-gate", "w/o gate"),
        ("shallow", "Shallow (half of the layers)"),
    ),
    "table2": (
        ("no-fusion", "Baseline (w/o fusion)"),
        (FULL, "Full fusion"),
        ("no-mamba", "w/o Mamba"),
        ("no-fusion-gate", "w/o gate"),
        ("no-alignment", "w/o alignment"),
    ),
    "table3": (
        (FULL, "Full model"),
        ("no-info-nce", "w/o InfoNCE"),
        ("no-triplet", "w/o triplet"),
        ("no-clothing-matching", "w/o clothing matching"),
        ("no-adversarial", "w/o adversarial"),
        ("no-decoupling", "w/o decoupling"),
        ("no-gate-regularisation", "w/o gate regularisation"),
    ),
    "table4": (
        ("style-none", "Baseline (w/o style)"),
        ("style-random", "Random"),
        ("style-kmeans", "K-means"),
        ("style-gmm", "GMM"),
        ("style-agglomerative", "Agglomerative"),
        ("style-hdbscan", "HDBSCAN"),
        ("style-dbscan", "DBSCAN"),
    ),
    "readings": (
        (FULL, "Full model (adversary by ridge regression, CKA)"),
        ("adversary-paper", "adversary as printed, no matching"),
        ("adversary-intent", "adversary as printed, on identity"),
        ("adversary-odds", "log-odds, no critic"),
        ("adversary-minimax", "gradient reversal"),
        ("decoupling-hsic", "HSIC in place of CKA"),
        ("captions-of-identity", "captions match the identity alone"),
        ("captions-of-everybody", "captions match every image of the person"),
    ),
    "fig5": ((FULL, "Mamba"), ("transformer", "Transformer, 4 layers"), ("no-mamba", "Simple")),
}
# Protocols beside dual in which the rows of a table can differ: only rerank lets the fusion meet a query.
PROTOCOLS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("table1", "table3", "readings"), ("identity", "other-outfit")),
    **dict.fromkeys(("table2", "fig5", "table5"), ("rerank",)),
    "table4": ("identity",),
}
# The row that the other rows of a table are compared with, where it is not FULL.
REFERENCES = {"table4": "style-dbscan"}
# Tables whose runs are also measured for disentanglement, where the factors of the images are known.
DISENTANGLED = ("table1", "table3", "readings")
# Further rows of tables, by name: label, tables, and the recipe that the row is of by that of the base; other bases lack it.
PRINTED, PLAIN = "as-printed", "plain"
FURTHER: dict[str, tuple[str, tuple[str, ...], dict[str, str]]] = {
    PRINTED: (
        "The method as printed",
        ("table1", "table2", "table3"),
        {"synthetic-tables": "synthetic-paper"},
    ),
    PLAIN: (
        "Floor: plain dual encoder",
        ("table1", "table2", "table3", "readings"),
        {"synthetic-tables": "synthetic-baseline"},
    ),
}
# The paper's data sets, and the usual name of each one's folder.
DataSet = Literal["cuhk-pedes", "icfg-pedes", "rstpreid"]
FOLDERS: dict[DataSet, str] = {"cuhk-pedes": "CUHK-PEDES", "icfg-pedes": "ICFG-PEDES", "rstpreid": "RSTPReid"}


@dataclass(frozen=True)
class Row:
    """One row of one table; `name` is one of recipes.ROWS, FULL, FURTHER, or a data set."""

    table: str
    name: str
    label: str
    config: Config

    @property
    def key(self) -> str:
        """Key of the run: equal for rows of any tables with the same configuration."""
        return run_key(self.config)


def run_key(config: Config) -> str:
    """Twelve hexadecimal digits of the configuration without its name, its seed and the folder of its data."""
    return stored_key(to_dict(config))


def stored_key(values: dict[str, Any]) -> str:
    """`run_key` of a configuration as `to_dict` returns it and result files hold it."""
    kept = {name: value for name, value in without_places(values).items() if name not in ("recipe", "seed")}
    # A run without an average is the run that early versions trained, and keeps its key.
    kept["optim"] = {name: value for name, value in kept["optim"].items() if (name, value) != ("ema", 0.0)}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:12]


def table_rows(
    tables: Sequence[str], base: Config, data_sets: Path | None = None, out: Path | None = None
) -> list[Row]:
    """The rows of the named tables (keys of TITLES) of the recipe `base`, in order.

    data_sets: for table5, the parent folder of the data sets; by default that of base.data.root.
    out: for table4, the folder of the experiment with the generated texts; by default runs/RECIPE.
    Raises ValueError when `base` lacks the part that a row changes.
    """
    rows = []
    for table in tables:
        if table == "table5":
            parent = data_sets or Path(base.data.root).parent
            for data_set, folder in FOLDERS.items():
                data = replace(base.data, dataset=data_set, root=str(parent / folder), descriptions="")
                rows.append(Row(table, data_set, folder, replace(base, data=data)))
        else:
            for name, label in ABLATIONS[table]:
                config = base if name == FULL else with_row(base, name)
                if table == "table4" and out is not None:
                    texts = str(texts_of(out, name.removeprefix("style-")))
                    config = replace(config, data=replace(config.data, descriptions=texts))
                rows.append(Row(table, name, label, config))
            for name, (label, tables_of_row, recipes) in FURTHER.items():
                if table in tables_of_row and base.recipe in recipes:
                    rows.append(Row(table, name, label, alongside(base, recipes[base.recipe])))
    return rows


def alongside(base: Config, recipe: str) -> Config:
    """The recipe named `recipe` on the data and for the epochs of `base`."""
    config = get_recipe(recipe)
    files = {name: getattr(base.data, name) for name in ("dataset", "root", "descriptions", "cache")}
    data = replace(config.data, **files)
    warmup = min(config.optim.warmup_epochs, base.optim.epochs - 1)
    return replace(config, data=data, optim=replace(config.optim, epochs=base.optim.epochs, warmup_epochs=warmup))
