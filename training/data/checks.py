"""Checks of the rows of a data set: one function per condition, which lists the violations in words.

Reading stops at the first violated condition (`require_valid`), the validator reports all of them.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from training.data.readers import SPLITS, Row, Source

# Characters that no text has: they end a name for the system, or cannot be encoded.
NUL = "\0"
BROKEN = re.compile("[\0\ud800-\udfff]")
# Ids are tensors of 64 bits.
LARGEST_ID = 2**63 - 1


def examples(items: Sequence[Any]) -> str:
    """'a, b (2 in all)': up to five items and their number."""
    return ", ".join(map(str, items[:5])) + f"{', ...' if len(items) > 5 else ''} ({len(items)} in all)"


def require_valid(source: Source, splits: Sequence[str]) -> list[Row]:
    """The rows of a source that has all of `splits`. Raises ValueError for the first violated condition, with up to five
    examples and their number."""
    file = source.file
    malformed = malformed_rows(source)
    if malformed:
        raise ValueError(f"{file} has malformed records: {examples(malformed)}")
    rows = source.rows
    unknown = unknown_splits(rows)
    if unknown:
        raise ValueError(f"{file} names unknown splits, expected train, val or test: {examples(unknown)}")
    empty = empty_captions(rows)
    if empty:
        raise ValueError(f"{file} has an empty caption for the images {examples(empty)}")
    twice = repeated_paths(rows)
    if twice:
        raise ValueError(f"{file} names the same file_path more than once: {examples(twice)}")
    shared = shared_ids(rows)
    if shared:
        raise ValueError(f"{file} has identities in more than one split: {examples(shared)}")
    absent = absent_splits(rows, splits)
    if absent:
        raise ValueError(f"{file} has no record in the splits {examples(absent)}")
    return rows


def malformed_rows(source: Source) -> list[str]:
    """'record 4: problem' for each row that does not have the common form."""
    pairs = zip(source.rows, source.places, strict=True)
    return [f"{place}: {problem}" for row, place in pairs if (problem := _problem(row))]


def well_formed(rows: Sequence[Any]) -> list[Row]:
    """The rows that `malformed_rows` does not list."""
    return [row for row in rows if not _problem(row)]


def unknown_splits(rows: Sequence[Row]) -> list[str]:
    """'path: split' for each row whose split is none of SPLITS."""
    return [f"{row['file_path']}: {row['split']!r}" for row in rows if row["split"] not in SPLITS]


def empty_captions(rows: Sequence[Row]) -> list[str]:
    """Paths of rows with an empty caption or one of white space only."""
    return [row["file_path"] for row in rows if not all(caption.strip() for caption in row["captions"])]


def repeated_paths(rows: Sequence[Row]) -> list[str]:
    """Paths that occur in more than one row."""
    return [path for path, count in Counter(row["file_path"] for row in rows).items() if count > 1]


def shared_ids(rows: Sequence[Row]) -> list[str]:
    """'id in split and split' for each identity in more than one split."""
    split_of: dict[int, set[str]] = {}
    for row in rows:
        split_of.setdefault(row["id"], set()).add(row["split"])
    return [f"{id} in {' and '.join(sorted(names))}" for id, names in split_of.items() if len(names) > 1]


def absent_splits(rows: Sequence[Row], splits: Sequence[str]) -> list[str]:
    """Members of `splits` without a row."""
    used = {row["split"] for row in rows}
    return [split for split in splits if split not in used]


def missing_images(rows: Sequence[Row], images: Path) -> list[str]:
    """Paths without a file below `images`. Lists each folder once: 40,000 stat calls take long on a network drive."""
    listed: dict[str, set[str]] = {}
    missing = []
    for row in rows:
        folder, _, name = row["file_path"].rpartition("/")
        if folder not in listed:
            listed[folder] = set(_files(images / folder))
        if name not in listed[folder]:
            missing.append(row["file_path"])
    return missing


def _texts(row: Row) -> Iterator[tuple[str, str]]:
    """Name and text of each field of a row that is one."""
    yield from ((repr(key), row[key]) for key in ("file_path", "split"))
    yield from ((f"'captions'[{i}]", caption) for i, caption in enumerate(row["captions"]))


def links_outside(rows: Sequence[Row], images: Path) -> list[str]:
    """Paths below `images` that a symbolic link leads out of it: a link of the image, or of one of its folders."""
    root = images.resolve()
    folders = {row["file_path"].rpartition("/")[0] for row in rows}
    outside = {folder for folder in folders if not (images / folder).resolve().is_relative_to(root)}
    links = {f"{folder}/{name}".lstrip("/") for folder in folders - outside for name in _links(images / folder)}
    paths = [row["file_path"] for row in rows]
    return [
        path
        for path in paths
        if path.rpartition("/")[0] in outside or (path in links and not (images / path).resolve().is_relative_to(root))
    ]


def _problem(row: Any) -> str:
    """The problem with the form of one row; "" if there is none."""
    if not isinstance(row, dict):
        return f"expected an object, got {type(row).__name__}"
    for key, kind in (("split", str), ("captions", list), ("file_path", str), ("id", int)):
        if key not in row:
            return f"{key!r} is missing"
        if not isinstance(row[key], kind) or isinstance(row[key], bool):
            return f"{key!r} must be of type {kind.__name__}, got {row[key]!r}"
    if not 0 <= row["id"] <= LARGEST_ID:
        return f"'id' must be from 0 to {LARGEST_ID}, got {row['id']}"
    if not row["captions"] or not all(isinstance(caption, str) for caption in row["captions"]):
        return f"'captions' must be texts, at least one, got {row['captions']!r}"
    for key, text in _texts(row):
        if (found := BROKEN.search(text)) is not None:
            return (
                f"{key} has a {'NUL character' if found[0] == NUL else 'lone surrogate'} at character {found.start()}"
            )
    path = PurePosixPath(row["file_path"])
    if path.is_absolute() or not path.parts or ".." in path.parts:
        return f"'file_path' must be a path below imgs/, got {row['file_path']!r}"
    if row["file_path"] != str(path):
        # A second spelling of a path would be a second image.
        return f"'file_path' must be written as {str(path)!r}, got {row['file_path']!r}"
    return ""


def _links(folder: Path) -> Iterator[str]:
    if folder.is_dir():
        with os.scandir(folder) as entries:
            yield from (entry.name for entry in entries if entry.is_symlink())


def _files(folder: Path) -> Iterator[str]:
    if folder.is_dir():
        with os.scandir(folder) as entries:
            yield from (entry.name for entry in entries if entry.is_file())
