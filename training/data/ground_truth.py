"""The truth about a rendered picture, from `factors.jsonl`: what evaluation may measure against and no model may read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.data.datasets import Record

FACTORS = "factors.jsonl"
# What stays when a person changes clothes, and what changes. Left out: what is drawn too small to see at 64 x 32 pixels
# as a label of its own (colours of a pattern, of a bag, of a hat), and the side of a bag.
IDENTITY = ("sex", "age", "build", "height", "skin", "hair", "hair_colour", "beard", "glasses")
CLOTHING = ("upper", "upper_colour", "pattern", "lower", "lower_colour", "shoes", "shoes_colour", "bag", "hat")


@dataclass(frozen=True)
class Truth:
    """Factors of the images of a split, in the order of its records."""

    # Number of the outfit among those of its person.
    outfits: tuple[int, ...]
    # Value of each factor of IDENTITY and CLOTHING for each image, as a word.
    identity: dict[str, tuple[str, ...]]
    clothing: dict[str, tuple[str, ...]]


def read_factors(root: Path, records: Sequence[Record]) -> Truth:
    """The truth about the images of `records`.

    Raises FileNotFoundError for data without a factors.jsonl (every real set), ValueError for a broken line or an image
    that has none.
    """
    path = Path(root) / FACTORS
    if not path.is_file():
        raise FileNotFoundError(
            f"there is no {path}: which factors an image shows is known of synthetic sets only, so neither probes nor "
            "retrieval in other clothes can be measured; --dependence-only measures HSIC and CKA"
        )
    wanted = {record.file_path for record in records}
    rows: dict[str, dict[str, Any]] = {}
    with open(path, encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            row = _row(line, f"{path}, line {number}")
            if row["file_path"] in wanted:
                rows[row["file_path"]] = row
    without = sorted(wanted - set(rows))
    if without:
        raise ValueError(f"{path} has no factors of {', '.join(without[:5])} ({len(without)} in all)")
    ordered = [rows[record.file_path] for record in records]
    return Truth(
        tuple(row["outfit_number"] for row in ordered),
        {name: tuple(_word(row["identity"][name]) for row in ordered) for name in IDENTITY},
        {name: tuple(_word(row["outfit"][name]) for row in ordered) for name in CLOTHING},
    )


def read_caption_styles(root: Path, records: Sequence[Record]) -> list[int] | None:
    """Number of the writer of each caption of the records, one image after the other; None for data without a
    factors.jsonl. Raises ValueError for a broken line, or an image with other captions than the file says."""
    path = Path(root) / FACTORS
    if not path.is_file():
        return None
    known: dict[str, list[int]] = {}
    with open(path, encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            row = _row(line, f"{path}, line {number}")
            known[row["file_path"]] = [caption["style"] for caption in row.get("captions", [])]
    other = [r.file_path for r in records if len(known.get(r.file_path, [])) != len(r.captions)]
    if other:
        raise ValueError(f"{path} does not say who wrote the captions of {', '.join(other[:5])} ({len(other)} in all)")
    return [style for record in records for style in known[record.file_path]]


def _word(value: Any) -> str:
    return ("yes" if value else "no") if isinstance(value, bool) else str(value)


def _row(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{where} is not valid JSON: {error}") from error
    fields = {"file_path": str, "outfit_number": int, "identity": dict, "outfit": dict}
    if not isinstance(row, dict) or not all(isinstance(row.get(key), kind) for key, kind in fields.items()):
        raise ValueError(f"{where} must be an object with the fields {', '.join(fields)}")
    lacking = [
        name for key, names in (("identity", IDENTITY), ("outfit", CLOTHING)) for name in names if name not in row[key]
    ]
    if lacking:
        raise ValueError(f"{where} lacks the factors {', '.join(lacking)}")
    return row
