"""Readers of the annotation files: rows of one common form, `{"file_path", "id", "split", "captions"}`.

| set | file | particularity |
|---|---|---|
| CUHK-PEDES (Li et al., CVPR 2017) | reid_raw.json | caption_all.json, which the authors send too, has no splits |
| ICFG-PEDES (Ding et al., 2021) | ICFG-PEDES.json or ICFG_PEDES.json | no validation split |
| RSTPReid (Zhu et al., ACM MM 2021) | data_captions.json | `img_path` in place of `file_path` |
| own | records.jsonl or records.csv | one line per image or per caption |

Paths are relative to the folder `imgs/` beside the file.
"""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SPLITS = ("train", "val", "test")
COLUMNS = ("file_path", "id", "split", "caption")
# Identities, images, captions.
Counts = tuple[int, int, int]
Row = dict[str, Any]


@dataclass(frozen=True)
class Layout:
    """Facts about a data set as published by its authors."""

    title: str
    # Names of the annotation file, the usual one first.
    files: tuple[str, ...]
    # Official numbers of each split; empty where any number is valid.
    counts: dict[str, Counts]
    # Smallest person id; None where any is valid.
    first_id: int | None
    # Splits that the file must have; a set without "val" gets a held-out one (splits.py).
    splits: tuple[str, ...] = SPLITS


LAYOUTS = {
    "cuhk-pedes": Layout(
        "CUHK-PEDES",
        ("reid_raw.json",),
        {"train": (11_003, 34_054, 68_126), "val": (1000, 3078, 6158), "test": (1000, 3074, 6156)},
        first_id=1,
    ),
    "icfg-pedes": Layout(
        "ICFG-PEDES",
        ("ICFG-PEDES.json", "ICFG_PEDES.json"),
        {"train": (3102, 34_674, 34_674), "test": (1000, 19_848, 19_848)},
        first_id=0,
        splits=("train", "test"),
    ),
    "rstpreid": Layout(
        "RSTPReid",
        ("data_captions.json",),
        {"train": (3701, 18_505, 37_010), "val": (200, 1000, 2000), "test": (200, 1000, 2000)},
        first_id=0,
    ),
    "own": Layout("own data", ("records.jsonl", "records.csv"), {}, first_id=None),
}


@dataclass(frozen=True)
class Source:
    """An annotation file, read but not checked."""

    file: Path
    raw: bytes
    # Rows in the common form; items that are not records stay as they are.
    rows: list[Any]
    # Position of each row in the file, e.g. "record 3" or "line 3".
    places: list[str]


def read_source(name: str, root: Path | str) -> Source:
    """Reads the annotation file of the data set `name` (a key of LAYOUTS) in the folder `root`.

    Raises FileNotFoundError for a missing folder or file, ValueError for a file that cannot be parsed or for two files with
    different contents.
    """
    layout, folder = LAYOUTS[name], Path(root)
    needs = f"a data folder of {name} holds {' or '.join(layout.files)} and imgs/"
    if not folder.is_dir():
        raise FileNotFoundError(
            f"data.root={root}: there is no folder {folder}; {needs}; --data.root FOLDER says where the data are"
        )
    found = [folder / file for file in layout.files if (folder / file).is_file()]
    if not found:
        captions_only = name == "cuhk-pedes" and (folder / "caption_all.json").is_file()
        hint = (
            "; caption_all.json has no splits: `python -m training.prepare reid-raw ROOT SPLITS` makes reid_raw.json of it and "
            "of a file with the split of each id"
            if captions_only
            else ""
        )
        raise FileNotFoundError(f"data.root={root}: there is no file {folder / layout.files[0]}; {needs}{hint}")
    raw = found[0].read_bytes()
    if any(other.read_bytes() != raw for other in found[1:]):
        names = " and ".join(file.name for file in found)
        raise ValueError(f"{folder} holds {names} with different contents: keep only the right one")
    return PARSERS[name](raw, found[0])


def _json_list(raw: bytes, file: Path) -> Source:
    """Parses a JSON list of records; `img_path` is another name for `file_path`."""
    try:
        items = json.loads(raw.decode("utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"{file} is not valid JSON: {error}") from error
    if not isinstance(items, list):
        raise ValueError(f"{file} must hold a list of records, got {type(items).__name__}")
    return Source(file, raw, _rows(items), [f"record {i}" for i in range(len(items))])


def _own_data(raw: bytes, file: Path) -> Source:
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not UTF-8 text: {error}") from error
    lines = _json_lines(text, file) if file.suffix == ".jsonl" else _table(text, file)
    items, places = _merge_by_image(lines, file)
    return Source(file, raw, _rows(items), places)


def _json_lines(text: str, file: Path) -> list[tuple[int, Any]]:
    lines = []
    # Not splitlines, which also splits at characters that may stand inside a JSON text.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                lines.append((number, json.loads(line)))
            except ValueError as error:
                raise ValueError(f"{file}, line {number} is not valid JSON: {error}") from error
    return lines


def _table(text: str, file: Path) -> list[tuple[int, Any]]:
    """Rows of a CSV file with columns separated by commas, semicolons or tabs (some spreadsheets write the latter two)."""
    header = text.partition("\n")[0]
    delimiter = max(",;\t", key=header.count)
    table = _cells(text, delimiter, file)
    _, names = next(table, (1, []))
    place = _places_of(names, file)
    lines: list[tuple[int, Any]] = []
    for line, cells in table:
        if len(cells) > len(names) or len(cells) <= max(place.values()):
            raise ValueError(
                f"{file}, line {line} has {len(cells)} cells, expected {len(names)} as in its header; a caption that holds "
                f"{delimiter!r} must be in quotes"
            )
        row: Row = {key: cells[i] for key, i in place.items()}
        number = row["id"].strip()
        row["id"] = int(number) if number.isascii() and number.isdigit() else row["id"]
        lines.append((line, row))
    return lines


def _cells(text: str, delimiter: str, file: Path) -> Iterator[tuple[int, list[str]]]:
    """(number of its first line, cells) of each row of a table that is not empty."""
    # Strict: a quote that is never closed would take in the rows after it.
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    line = 1
    try:
        for cells in reader:
            if cells:
                yield line, cells
            line = reader.line_num + 1
    except csv.Error as error:
        raise ValueError(
            f"{file}, line {line} cannot be read as a table: {error}; a cell that begins with a quote must end with one, and "
            "quotes in it are doubled"
        ) from error


def _places_of(names: Sequence[str], file: Path) -> dict[str, int]:
    """Position of each of COLUMNS in a header."""
    count = Counter(names)
    for found, problem in (
        ([column for column in COLUMNS if not count[column]], "missing"),
        ([column for column in COLUMNS if count[column] > 1], "more than once there"),
    ):
        if found:
            raise ValueError(
                f"{file} must have the columns {', '.join(COLUMNS)} once each, {problem}: {', '.join(found)}"
            )
    return {column: names.index(column) for column in COLUMNS}


def _merge_by_image(lines: list[tuple[int, Any]], file: Path) -> tuple[list[Any], list[str]]:
    """(rows, places) with one row per image, from a file that may have one per caption."""
    merged: dict[Any, Any] = {}
    places: dict[Any, str] = {}
    conflicts = []
    for number, item in lines:
        if isinstance(item, dict) and "caption" in item:
            if "captions" in item:
                raise ValueError(f"{file}, line {number} has both 'caption' and 'captions', expected one of them")
            item = {key: value for key, value in item.items() if key != "caption"} | {"captions": item["caption"]}
        whole = isinstance(item, dict) and isinstance(item.get("file_path"), str)
        key: Any = item["file_path"] if whole else number
        before = merged.get(key)
        if before is None:
            merged[key], places[key] = item, f"line {number}"
        elif any(before.get(name) != item.get(name) for name in ("id", "split")):
            conflicts.append(f"{key} in line {number}")
        else:
            merged[key] = before | {"captions": _as_list(before.get("captions")) + _as_list(item.get("captions"))}
    if conflicts:
        more = ", ..." if len(conflicts) > 5 else ""
        raise ValueError(
            f"{file} gives an image a second identity or split: {', '.join(conflicts[:5])}{more} ({len(conflicts)} in all)"
        )
    return list(merged.values()), list(places.values())


def _as_list(captions: Any) -> list[Any]:
    return list(captions) if isinstance(captions, list) else [captions]


def _rows(items: list[Any]) -> list[Any]:
    """Converts items to the common form: one name for the path, captions as a list, paths below imgs/."""
    rows = []
    for item in items:
        if isinstance(item, dict):
            item = {"file_path" if key == "img_path" else key: value for key, value in item.items()}
            if isinstance(item.get("captions"), str):
                item["captions"] = [item["captions"]]
        rows.append(item)
    paths = [row.get("file_path") if isinstance(row, dict) else None for row in rows]
    if paths and all(isinstance(path, str) and path.startswith("imgs/") for path in paths):
        rows = [row | {"file_path": row["file_path"].removeprefix("imgs/")} for row in rows]
    return rows


PARSERS: dict[str, Callable[[bytes, Path], Source]] = {
    "cuhk-pedes": _json_list,
    "icfg-pedes": _json_list,
    "rstpreid": _json_list,
    "own": _own_data,
}
