"""reid_raw.json of CUHK-PEDES from caption_all.json, which has no splits, and a file that says the split of each identity."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from training.data.checks import examples
from training.data.readers import LAYOUTS, SPLITS
from training.utils.io import read_json, write_json

CAPTIONS, RAW = "caption_all.json", LAYOUTS["cuhk-pedes"].files[0]
# For whoever has no such file.
SOURCE = (
    "the split of the authors is in the reid_raw.json of their whole archive, which is sent on request, and published methods "
    "list its ids beside their code"
)
FORMS = (
    'a JSON object {"train": [ids], "val": [ids], "test": [ids]}, a JSON list of objects with "id" and "split", or lines '
    "ID,SPLIT"
)


def write_reid_raw(root: Path, split_file: Path) -> dict[str, int]:
    """Writes ROOT/reid_raw.json, the records of ROOT/caption_all.json with their splits; returns the images of each split.

    Raises FileExistsError for a reid_raw.json that exists, FileNotFoundError for a missing file, and ValueError for a file of
    another form, an identity without a split or with two, and a split of an identity that has no record.
    """
    if (root / RAW).exists():
        raise FileExistsError(f"{root / RAW} exists and has the splits; it is not overwritten")
    captions = read_json(root / CAPTIONS)
    rows = captions if isinstance(captions, list) else []
    if not rows or not all(isinstance(row, dict) and type(row.get("id")) is int for row in rows):
        raise ValueError(f"{root / CAPTIONS} must hold a list of records with whole numbers as ids")
    split_of = read_splits(split_file)
    ids = {row["id"] for row in rows}
    for what, found in (
        (f"identities of {CAPTIONS} have no split in {split_file}", ids - split_of.keys()),
        (f"identities of {split_file} have no record in {CAPTIONS}", split_of.keys() - ids),
    ):
        if found:
            raise ValueError(f"{what}: {examples(sorted(found))}; {SOURCE}")
    write_json(root / RAW, [{**row, "split": split_of[row["id"]]} for row in rows])
    return dict(Counter(split_of[row["id"]] for row in rows))


def read_splits(path: Path) -> dict[int, str]:
    """Split of each identity. Raises FileNotFoundError and ValueError for a file that is none of FORMS."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no split file {path}, expected {FORMS}; {SOURCE}")
    split_of: dict[int, str] = {}
    twice = []
    for identity, split in _pairs(path):
        if split_of.setdefault(identity, split) != split:
            twice.append(identity)
    if twice:
        raise ValueError(f"{path} has two splits for the identities {examples(sorted(set(twice)))}")
    return split_of


def _pairs(path: Path) -> Iterator[tuple[int, str]]:
    pairs: list[Any]
    text = path.read_text(encoding="utf-8-sig")
    if text.lstrip()[:1] in ("{", "["):
        try:
            values = json.loads(text)
        except ValueError as error:
            raise ValueError(f"{path} is not valid JSON: {error}") from error
        items = [(i, split) for split, ids in values.items() for i in ids] if isinstance(values, dict) else values
        pairs = [(item.get("id"), item.get("split")) if isinstance(item, dict) else item for item in items]
    else:
        lines = [line for line in text.splitlines() if line.strip()]
        pairs = [tuple(re.split(r"[,;\s]+", line.strip())) for line in lines]
        # A table may have a heading.
        pairs = pairs[1:] if pairs and pairs[0][0].lower() == "id" else pairs
    for number, pair in enumerate(pairs, 1):
        yield _checked(pair, f"{path}, entry {number}")


def _checked(pair: Any, place: str) -> tuple[int, str]:
    identity, split = pair if isinstance(pair, tuple) and len(pair) == 2 else (None, None)
    if isinstance(identity, str) and identity.isascii() and identity.isdigit():
        identity = int(identity)
    if type(identity) is not int or split not in SPLITS:
        raise ValueError(
            f"{place} must be an identity and its split, train, val or test, got {pair!r:.100}; expected {FORMS}"
        )
    return identity, split
