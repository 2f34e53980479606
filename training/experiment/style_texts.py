"""Texts for the rows of Table 4: captions clustered by the row's method, texts generated in those styles."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from rich.console import Console

from training.config.ablations import Row
from training.data.ground_truth import FACTORS
from training.describe.generate import Arguments, Source, Texts
from training.describe.styles.caption_styles import (
    Captions,
    EncodedCaptions,
    encode_captions,
    make_styles,
    read_captions,
    style_settings,
)
from training.describe.styles.neutral import LEXICON, NeutralCaptions
from training.describe.styles.neutral_rules import neutralise
from training.describe.styles.style_options import STYLOMETRIC, StyleOptions
from training.describe.text_generation import generate
from training.utils.io import read_json
from training.utils.terminal import make_console

TABLE = "table4"


def with_texts(rows: Sequence[Row], console: Console) -> list[Row]:
    """The rows, those of Table 4 with the adjusted Rand index of their styles in the label. Generates the texts of Table 4
    that do not exist yet, and continues an interrupted generation.

    Only the texts of a synthetic set are generated here, by the provider `template`. Raises FileNotFoundError for other
    data without them, and what clustering and generating raise.
    """
    data_sets: dict[tuple[str, str], _DataSet] = {}
    found = []
    for row in rows:
        if row.table == TABLE:
            name = (row.config.data.dataset, row.config.data.root)
            row = _with_texts(row, data_sets.setdefault(name, _DataSet(*name)), console)
        found.append(row)
    return found


class _DataSet:
    """Captions and features of a data set, read when the first row needs them."""

    def __init__(self, name: str, root: str) -> None:
        self.name, self.root = name, Path(root)

    @cached_property
    def captions(self) -> Captions:
        return read_captions(self.name, self.root)

    @cached_property
    def encoded(self) -> EncodedCaptions:
        neutral = NeutralCaptions(neutralise(self.captions.texts), LEXICON, 0)
        # The stylometric encoder keeps nothing in a folder.
        return encode_captions(neutral, STYLOMETRIC, self.root, make_console(stderr=True))


def _with_texts(row: Row, data_set: _DataSet, console: Console) -> Row:
    data, method = row.config.data, row.name.removeprefix("style-")
    texts = Path(data.descriptions)
    if (data_set.root / FACTORS).is_file():
        _make(data_set, method, texts.parent, console)
    elif not texts.is_file():
        command = "python -m training.describe"
        raise FileNotFoundError(
            f"{row.name}: there are no texts {texts}; generate them with `{command} styles {data.dataset} {data.root} --method "
            f"{method} --out {texts.parent}` and `{command} generate {data.dataset} {data.root} --out {texts.parent} "
            f"--styles {texts.parent} ...`"
        )
    table = texts.parent / "styles.json"
    ari = read_json(table).get("ari") if table.is_file() else None
    row = row if ari is None else replace(row, label=f"{row.label}, ARI {ari:.3f}")
    console.print(f"{row.label}: {texts}", highlight=False)
    return row


def _make(data_set: _DataSet, method: str, folder: Path, console: Console) -> None:
    options, table = StyleOptions(), folder / "styles.json"
    wanted = style_settings(data_set.captions, LEXICON, STYLOMETRIC, method, options)
    stored: Any = read_json(table) if table.is_file() else {}
    if any(stored.get(name) != value for name, value in wanted.items()):
        with console.status(f"{method}: {len(data_set.captions.texts):,} captions"):
            make_styles(data_set.captions, data_set.encoded, method, options, folder)
    source: Any = Source(data_set.name, data_set.root)  # type: ignore[arg-type]
    texts = Texts(styles=folder)
    generate(
        Arguments(source, folder, provider="template", yes=True, texts=texts), os.environ, console, lambda told: True
    )
