"""Inputs of a generation: styles, the images with the style of their texts, and the recorded settings of a folder."""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from training.data.datasets import Record
from training.describe.generation import ImageItem
from training.describe.llm.answer_store import JsonLines, json_line
from training.utils import io

# The only style where no folder of styles is given.
NEUTRAL = 0


@dataclass(frozen=True)
class StyleTable:
    """Styles of captions, as `python -m training.describe styles` writes them."""

    # Image -> style of its first caption.
    of_image: Mapping[str, int]
    # Style -> example captions.
    examples: Mapping[int, tuple[str, ...]]
    # Style -> number of captions.
    sizes: Mapping[int, int]
    # SHA-256 (hex) over both files; "" without any.
    digest: str

    def style_of(self, file_path: str) -> int:
        """Style of an image; one whose captions were not clustered gets a style drawn by size, the same in every call."""
        if file_path in self.of_image:
            return self.of_image[file_path]
        styles = sorted(self.sizes)
        ends = list(accumulate(self.sizes[style] for style in styles))
        draw = int(hashlib.sha256(file_path.encode()).hexdigest(), 16) % ends[-1]
        return styles[bisect_right(ends, draw)]


def neutral_style() -> StyleTable:
    """A single neutral style without examples."""
    return StyleTable({}, {NEUTRAL: ()}, {NEUTRAL: 1}, "")


def read_styles(folder: Path, examples: int) -> StyleTable:
    """Reads styles.json and styles.jsonl in a folder, with at most `examples` captions of each style.

    Raises FileNotFoundError, or ValueError for a malformed file.
    """
    table, lines = Path(folder) / "styles.json", Path(folder) / "styles.jsonl"
    value = io.read_json(table)
    if not lines.is_file():
        raise FileNotFoundError(f"{lines} does not exist; `python -m training.describe styles` writes it")
    shown_examples: dict[int, tuple[str, ...]] = {}
    sizes: dict[int, int] = {}
    for entry in _styles(value, table):
        shown_examples[entry["style"]] = tuple(entry["examples"][:examples])
        sizes[entry["style"]] = entry["size"]
    of_image: dict[str, int] = {}
    raw = lines.read_bytes()
    for number, line in enumerate(raw.splitlines(), 1):
        try:
            row = json.loads(line)
            file_path, caption, style = row["file_path"], row["caption"], row["style"]
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise ValueError(f"{lines}, line {number} must be an object with file_path, caption and style") from error
        if style not in shown_examples:
            raise ValueError(f"{lines}, line {number} names style {style}, which {table} lacks")
        if caption == 0:
            of_image[file_path] = style
    return StyleTable(of_image, shown_examples, sizes, hashlib.sha256(table.read_bytes() + raw).hexdigest())


def _styles(value: Any, table: Path) -> list[dict[str, Any]]:
    entries = value.get("styles") if isinstance(value, dict) else None
    valid = isinstance(entries, list) and entries and all(map(_is_style, entries))
    if not isinstance(entries, list) or not valid:
        raise ValueError(f"{table} must contain `styles`, a list of objects with style, size (at least 1) and examples")
    return entries


def _is_style(entry: Any) -> bool:
    if not isinstance(entry, dict) or not isinstance(entry.get("examples"), list):
        return False
    numbers = (entry.get("style"), entry.get("size"))
    integers = all(isinstance(n, int) and not isinstance(n, bool) for n in numbers)
    return integers and entry["size"] > 0 and all(isinstance(text, str) for text in entry["examples"])


def make_items(records: Sequence[Record], styles: StyleTable) -> list[ImageItem]:
    """Converts records of the data set to items of a generation."""
    return [
        ImageItem(record.file_path, record.path, record.id, styles.style_of(record.file_path)) for record in records
    ]


def record_settings(path: Path, settings: dict[str, Any]) -> None:
    """Writes the settings of the texts in a folder, or compares them with those written before; a folder without an answer, a
    record or an exported request takes other settings.

    Raises ValueError naming what differs: texts of different settings must not share a file.
    """
    # All that is made by the settings is in such a file.
    made = any(rows.stat().st_size for rows in path.parent.glob("*.jsonl"))
    if not (made and path.exists()):
        io.write_json(path, settings)
        return
    stored = io.read_json(path)
    known = stored if isinstance(stored, dict) else {}
    differing = [name for name in {**known, **settings} if known.get(name) != settings.get(name)]
    if differing:
        changes = ", ".join(f"{name} {settings.get(name)!r} instead of {known.get(name)!r}" for name in differing)
        raise ValueError(f"{path.parent} holds texts with different settings: {changes}; choose another folder")


def drop_failed_records(path: Path) -> int:
    """Removes the records that are not "ok" from a file of descriptions and returns their number."""
    lines = JsonLines(path)
    try:
        rows = [row for _, row in lines.rows()]
        kept = [row for row in rows if row.get("status") == "ok"]
        with io.atomic(path) as file:
            file.writelines(map(json_line, kept))
    finally:
        lines.close()
    return len(rows) - len(kept)
