"""True attributes of rendered images, from `factors.jsonl`: evaluation may measure against them, no model may read them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.data.datasets import Record
from training.data.readers import Row

FACTORS = "factors.jsonl"
# Factors that stay when a person changes clothes, and factors that change. Not included: factors drawn too small to see
# at 64 x 32 pixels as labels of their own (colours of a pattern, of a bag, of a hat), and the side of a bag.
IDENTITY = ("sex", "age", "build", "height", "skin", "hair", "hair_colour", "beard", "glasses")
CLOTHING = ("upper", "upper_colour", "pattern", "lower", "lower_colour", "shoes", "shoes_colour", "bag", "hat")
_FIELDS = {"file_path": str, "outfit_number": int, "identity": dict, "outfit": dict}


@dataclass(frozen=True)
class GroundTruth:
    """Factors of the images of a split, in the order of its records."""

    # Number of the outfit among those of its person.
    outfits: tuple[int, ...]
    # Value of each factor of IDENTITY and CLOTHING for each image, as a word.
    identity: dict[str, tuple[str, ...]]
    clothing: dict[str, tuple[str, ...]]


def read_factor_rows(root: Path, file_paths: Iterable[str], purpose: str) -> list[Row]:
    """The lines of ROOT/factors.jsonl for these images, in their order.

    purpose: ends the error for data without that file, as every real data set is. Raises FileNotFoundError for such data,
    ValueError for a broken line, and for images without a line (up to five of them and their number).
    """
    path, names = Path(root) / FACTORS, list(file_paths)
    if not path.is_file():
        raise FileNotFoundError(f"there is no {path}: {purpose}")
    wanted, rows = set(names), dict[str, Row]()
    with open(path, encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            row = _parse(line, f"{path}, line {number}")
            if row["file_path"] in wanted:
                rows[row["file_path"]] = row
    missing = sorted(wanted - set(rows))
    if missing:
        raise ValueError(f"{path} has no factors of {', '.join(missing[:5])} ({len(missing)} in all)")
    return [rows[name] for name in names]


def read_factors(root: Path, records: Sequence[Record]) -> GroundTruth:
    """The factors of the images of `records`. Raises what `read_factor_rows` does."""
    purpose = (
        "the true attributes are known for synthetic data only, so neither linear probes nor cloth-changing retrieval can "
        "be measured; --dependence-only measures HSIC and CKA"
    )
    rows = read_factor_rows(root, (record.file_path for record in records), purpose)
    return GroundTruth(
        tuple(row["outfit_number"] for row in rows),
        {name: tuple(_label(row["identity"][name]) for row in rows) for name in IDENTITY},
        {name: tuple(_label(row["outfit"][name]) for row in rows) for name in CLOTHING},
    )


def read_caption_styles(root: Path, records: Sequence[Record]) -> list[int] | None:
    """Number of the writer of each caption of the records, one image after the other; None without a factors.jsonl.

    Raises ValueError as `read_factor_rows` does, and for images with another number of captions than the file has.
    """
    path = Path(root) / FACTORS
    if not path.is_file():
        return None
    rows = read_factor_rows(root, (record.file_path for record in records), "")
    styles = [[caption["style"] for caption in row.get("captions", [])] for row in rows]
    different = [r.file_path for r, numbers in zip(records, styles, strict=True) if len(numbers) != len(r.captions)]
    if different:
        raise ValueError(
            f"{path} does not name the writer of every caption of {', '.join(different[:5])} ({len(different)} in all)"
        )
    return [number for numbers in styles for number in numbers]


def _label(value: Any) -> str:
    return ("yes" if value else "no") if isinstance(value, bool) else str(value)


def _parse(line: str, place: str) -> Row:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{place} is not valid JSON: {error}") from error
    if not isinstance(row, dict) or not all(isinstance(row.get(key), kind) for key, kind in _FIELDS.items()):
        raise ValueError(f"{place} must be an object with the fields {', '.join(_FIELDS)}")
    missing = [
        name for key, names in (("identity", IDENTITY), ("outfit", CLOTHING)) for name in names if name not in row[key]
    ]
    if missing:
        raise ValueError(f"{place} lacks the factors {', '.join(missing)}")
    return row
