"""Data sets as records: one record type, one reader per data set, everything checked before anything is trained.

CUHK-PEDES (Li et al., Person Search with Natural Language Description, CVPR 2017): `reid_raw.json` is a list of
`{split, captions, file_path, id, processed_tokens}`; `file_path` is relative to the folder `imgs/` beside it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from training.config import DataConfig

SPLITS = ("train", "val", "test")
REMEDY = 'one JSON object a line with "file_path", "identity", "clothing" and "status": "ok" for every train image'


@dataclass(frozen=True)
class Record:
    """One image with its texts."""

    # Relative to imgs/; the key of the generated texts.
    file_path: str
    path: Path
    # Person id as the data set numbers it (not necessarily contiguous).
    id: int
    split: str
    # Human captions, at least one.
    captions: tuple[str, ...]
    # Generated texts; "" outside the train split, whose images never get any.
    identity: str = ""
    clothing: str = ""


@dataclass(frozen=True)
class Dataset:
    """All records of a data set by split, in the order of its JSON file."""

    name: str
    root: Path
    splits: dict[str, list[Record]]
    num_train_ids: int
    # SHA-256 (hex) over the bytes of the JSON file and of the file of generated texts.
    fingerprint: str


def read_records(config: DataConfig) -> dict[str, list[Record]]:
    """The checked records of the data set of `config` by split, without generated texts; images are looked up, not opened.

    Raises FileNotFoundError for a missing folder, JSON file or image, and ValueError for anything wrong inside the file;
    each error is one sentence with up to five examples and their number.
    """
    return _read(config)[0]


def _read(config: DataConfig) -> tuple[dict[str, list[Record]], bytes]:
    """Records by split, and the bytes that they come from."""
    root = Path(config.root)
    file, images = root / "reid_raw.json", root / "imgs"
    for path, what in ((root, "folder"), (file, "file"), (images, "folder")):
        if not (path.is_dir() if what == "folder" else path.is_file()):
            raise FileNotFoundError(
                f"data.root={config.root}: there is no {what} {path}; a data folder holds reid_raw.json and imgs/"
            )
    raw = file.read_bytes()
    items = _check_items(_parse(raw, file), file)
    missing = _missing_images(items, images)
    if missing:
        raise FileNotFoundError(f"images named in {file} are not under {images}: {_examples(missing)}")
    splits: dict[str, list[Record]] = {split: [] for split in SPLITS}
    for item in items:
        key, split = item["file_path"], item["split"]
        captions = tuple(caption.strip() for caption in item["captions"])
        splits[split].append(Record(key, images / key, item["id"], split, captions))
    return splits, raw


def read_dataset(config: DataConfig) -> Dataset:
    """Reads and checks the data set of `config` with its generated texts; images are looked up, not opened.

    Raises what `read_records` does, FileNotFoundError for a missing file of generated texts, and ValueError for anything
    wrong in it.
    """
    descriptions = Path(config.descriptions) if config.descriptions else Path(config.root) / "descriptions.jsonl"
    splits, raw = _read(config)
    if not descriptions.is_file():
        raise FileNotFoundError(f"there is no file of generated texts {descriptions}; it needs {REMEDY}")
    generated = descriptions.read_bytes()
    texts = _read_descriptions(generated, descriptions)
    without = [record.file_path for record in splits["train"] if record.file_path not in texts]
    if without:
        raise ValueError(
            f"train images have no generated texts in {descriptions}: {_examples(without)}; it needs {REMEDY}"
        )
    for i, record in enumerate(splits["train"]):
        identity, clothing = texts[record.file_path]
        splits["train"][i] = replace(record, identity=identity, clothing=clothing)
    num_train_ids = len({record.id for record in splits["train"]})
    return Dataset(
        config.dataset, Path(config.root), splits, num_train_ids, hashlib.sha256(raw + generated).hexdigest()
    )


def identity_texts(config: DataConfig, records: Sequence[Record]) -> list[str]:
    """The generated identity text of each image, whatever its split: for the protocol `gallery-text`, which says what a
    gallery knows about its own images. Raises FileNotFoundError, or ValueError when an image has none."""
    path = Path(config.descriptions) if config.descriptions else Path(config.root) / "descriptions.jsonl"
    if not path.is_file():
        raise FileNotFoundError(f"there is no file of generated texts {path}; it needs {REMEDY}")
    texts = _read_descriptions(path.read_bytes(), path)
    without = [record.file_path for record in records if record.file_path not in texts]
    if without:
        raise ValueError(
            f"protocol gallery-text needs an identity text of every gallery image; {path} has none for "
            f"{_examples(without)}"
        )
    return [texts[record.file_path][0] for record in records]


def _examples(offenders: Sequence[Any]) -> str:
    """'a, b (2 in all)': up to five offenders and their number."""
    return ", ".join(map(str, offenders[:5])) + f"{', ...' if len(offenders) > 5 else ''} ({len(offenders)} in all)"


def _parse(raw: bytes, file: Path) -> list[Any]:
    try:
        items = json.loads(raw.decode("utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is not valid JSON: {error}") from error
    if not isinstance(items, list):
        raise ValueError(f"{file} must hold a list of records, got {type(items).__name__}")
    return items


def _check_items(items: list[Any], file: Path) -> list[dict[str, Any]]:
    """The records of the JSON file, all conditions on them alone checked."""
    malformed = [f"record {i}: {problem}" for i, item in enumerate(items) if (problem := _problem(item))]
    if malformed:
        raise ValueError(f"{file} has malformed records: {_examples(malformed)}")
    unknown = [f"{item['file_path']}: {item['split']!r}" for item in items if item["split"] not in SPLITS]
    if unknown:
        raise ValueError(f"{file} names unknown splits, expected train, val or test: {_examples(unknown)}")
    empty = [item["file_path"] for item in items if not all(caption.strip() for caption in item["captions"])]
    if empty:
        raise ValueError(f"{file} has an empty caption for the images {_examples(empty)}")
    twice = [path for path, count in Counter(item["file_path"] for item in items).items() if count > 1]
    if twice:
        raise ValueError(f"{file} names the same file_path more than once: {_examples(twice)}")
    split_of: dict[int, set[str]] = {}
    for item in items:
        split_of.setdefault(item["id"], set()).add(item["split"])
    shared = [f"{id} in {' and '.join(sorted(names))}" for id, names in split_of.items() if len(names) > 1]
    if shared:
        raise ValueError(f"{file} has identities in more than one split: {_examples(shared)}")
    used = {item["split"] for item in items}
    absent = [split for split in SPLITS if split not in used]
    if absent:
        raise ValueError(f"{file} has no record in the splits {_examples(absent)}")
    return items


def _problem(item: Any) -> str:
    """What is wrong with the form of one record; "" if nothing."""
    if not isinstance(item, dict):
        return f"expected an object, got {type(item).__name__}"
    for key, kind in (("split", str), ("captions", list), ("file_path", str), ("id", int)):
        if key not in item:
            return f"{key!r} is missing"
        if not isinstance(item[key], kind) or isinstance(item[key], bool):
            return f"{key!r} must be of type {kind.__name__}, got {item[key]!r}"
    if not item["captions"] or not all(isinstance(caption, str) for caption in item["captions"]):
        return f"'captions' must be texts, at least one, got {item['captions']!r}"
    path = PurePosixPath(item["file_path"])
    if path.is_absolute() or not path.parts or ".." in path.parts:
        return f"'file_path' must be a path below imgs/, got {item['file_path']!r}"
    return ""


def _missing_images(items: list[dict[str, Any]], images: Path) -> list[str]:
    """File paths without a file; one listing per folder, since 40,000 stat calls take long on a network drive."""
    listed: dict[str, set[str]] = {}
    missing = []
    for item in items:
        folder, _, name = item["file_path"].rpartition("/")
        if folder not in listed:
            listed[folder] = set(_files(images / folder))
        if name not in listed[folder]:
            missing.append(item["file_path"])
    return missing


def _files(folder: Path) -> Iterator[str]:
    if folder.is_dir():
        with os.scandir(folder) as entries:
            yield from (entry.name for entry in entries if entry.is_file())


def _read_descriptions(raw: bytes, file: Path) -> dict[str, tuple[str, str]]:
    """file_path -> (identity text, clothing text) of the lines with status "ok"; other lines count as absent."""
    texts: dict[str, tuple[str, str]] = {}
    for number, line in enumerate(raw.split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            item = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{file}, line {number} is not valid JSON: {error}") from error
        if not isinstance(item, dict) or not all(isinstance(item.get(key), str) for key in ("file_path", "status")):
            raise ValueError(f"{file}, line {number} must be an object with the texts file_path and status")
        if item["status"] != "ok":
            continue
        key, pair = item["file_path"], (item.get("identity"), item.get("clothing"))
        if not all(isinstance(text, str) and text.strip() for text in pair):
            raise ValueError(f"{file}, line {number} has status ok, but no identity or no clothing text for {key}")
        if key in texts:
            raise ValueError(f"{file}, line {number} is a second description of {key} with status ok")
        texts[key] = (str(pair[0]).strip(), str(pair[1]).strip())
    return texts
