"""Data sets as records: one record type for all layouts (readers.py), checked before training starts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from training.config import DataConfig
from training.data.checks import BROKEN, absent_splits, examples, links_outside, missing_images, require_valid
from training.data.readers import LAYOUTS, SPLITS, read_source
from training.data.splits import hold_out

TEXTS_HINT = (
    'one JSON object per line with "file_path", "identity", "clothing" and "status": "ok" for every training image'
)
GALLERY_TEXTS_HINT = (
    "`python -m training.describe generate NAME ROOT --out OUT --split test --for-gallery` writes them for --texts"
)


class TextsMissing(ValueError):
    """Raised where a file of texts, with nothing wrong in it, has none for some images."""


@dataclass(frozen=True)
class Record:
    """One image with its texts."""

    # Relative to imgs/; the key of the generated texts.
    file_path: str
    path: Path
    # Person id of the data set (not necessarily contiguous).
    id: int
    split: str
    # Human captions, at least one.
    captions: tuple[str, ...]
    # Generated texts; "" outside the train split, whose images alone have some, and where the configuration uses none.
    identity: str = ""
    clothing: str = ""


@dataclass(frozen=True)
class Dataset:
    """All records of a data set by split, in the order of its annotation file."""

    name: str
    root: Path
    splits: dict[str, list[Record]]
    num_train_ids: int
    # SHA-256 (hex) over the bytes of the annotation file and of the file of generated texts, and over `split` where it is
    # not taken from the file.
    fingerprint: str
    # Origin of the splits, in words.
    split: str
    # Number of training images without a record here, because their generated texts have the status "rejected".
    skipped_images: int

    def train_texts(self) -> list[str]:
        """All texts of the train split, image by image: captions, identity text, clothing text. The tokenizer is built
        from them."""
        return [text for r in self.splits["train"] for text in (*r.captions, r.identity, r.clothing)]


@dataclass(frozen=True)
class TextFile:
    """A file of generated texts, read once, so that the digest belongs to the texts in use."""

    # As passed by the caller.
    path: Path
    content: bytes

    @property
    def sha256(self) -> str:
        """Hexadecimal digest of the bytes of the file."""
        return hashlib.sha256(self.content).hexdigest()


def read_records(config: DataConfig) -> dict[str, list[Record]]:
    """Reads and checks the records of the data set of `config` by split, without generated texts; no image is opened.

    Raises FileNotFoundError for a missing folder, annotation file or image, and ValueError for anything wrong in the
    file; each error is one sentence with up to five examples and their number.
    """
    return _read_annotations(config).splits


@dataclass(frozen=True)
class _Annotations:
    splits: dict[str, list[Record]]
    # The bytes of the annotation file, and the sentence about the validation split made for it; "" if the file has one.
    raw: bytes
    held_out: str


def _read_annotations(config: DataConfig) -> _Annotations:
    source, layout, images = (
        read_source(config.dataset, config.root),
        LAYOUTS[config.dataset],
        Path(config.root) / "imgs",
    )
    if not images.is_dir():
        raise FileNotFoundError(
            f"data.root={config.root}: there is no folder {images}; a data folder holds {source.file.name} and imgs/"
        )
    rows, held_out = require_valid(source, layout.splits), ""
    missing = missing_images(rows, images)
    if missing:
        raise FileNotFoundError(f"images named in {source.file} are not under {images}: {examples(missing)}")
    if not config.follow_links and (outside := links_outside(rows, images)):
        raise ValueError(
            f"symbolic links lead out of {images}: {examples(outside)}; let {images} itself be the link, which every command "
            "follows; `train --data.follow-links` and `prepare pack --follow-links` follow these too"
        )
    if absent_splits(rows, SPLITS):
        try:
            rows, held_out = hold_out(rows)
        except ValueError as error:
            raise ValueError(f"{source.file}: {error}") from None
    splits: dict[str, list[Record]] = {split: [] for split in SPLITS}
    for row in rows:
        key, split = row["file_path"], row["split"]
        captions = tuple(caption.strip() for caption in row["captions"])
        splits[split].append(Record(key, images / key, row["id"], split, captions))
    return _Annotations(splits, source.raw, held_out)


def read_dataset(config: DataConfig) -> Dataset:
    """Reads and checks the data set of `config` with its generated texts, or without them if it says so; no image is opened.

    Training images whose texts were rejected are skipped and counted; one without any record, or with another status, is
    an error. Raises what `read_records` does, FileNotFoundError for a missing file of generated texts, and ValueError for
    anything wrong in it.
    """
    read = _read_annotations(config)
    if config.captions_only:
        return _dataset(config, read, read.splits, b"", 0)
    descriptions, splits = descriptions_path(config), read.splits
    if not descriptions.is_file():
        raise FileNotFoundError(
            f"there is no file of generated texts {descriptions}; it needs {TEXTS_HINT}: `python -m training.describe generate "
            f"{config.dataset} {config.root} --out OUT` writes it; a recipe NAME-captions trains on the captions alone"
        )
    generated = descriptions.read_bytes()
    texts, rejected = _read_descriptions(generated, descriptions)
    train = splits["train"]
    without = [r.file_path for r in train if r.file_path not in texts and r.file_path not in rejected]
    if without:
        raise ValueError(
            f"training images have no generated texts in {descriptions}: {examples(without)}; it needs {TEXTS_HINT}"
        )
    splits["train"] = [
        replace(record, identity=texts[record.file_path][0], clothing=texts[record.file_path][1])
        for record in train
        if record.file_path in texts
    ]
    skipped_images = len(train) - len(splits["train"])
    if not splits["train"]:
        raise ValueError(f"the texts of all {skipped_images} training images in {descriptions} were rejected")
    return _dataset(config, read, splits, generated, skipped_images)


def _dataset(
    config: DataConfig, read: _Annotations, splits: dict[str, list[Record]], generated: bytes, skipped_images: int
) -> Dataset:
    num_train_ids = len({record.id for record in splits["train"]})
    fingerprint = hashlib.sha256(read.raw + generated + read.held_out.encode()).hexdigest()
    split = read.held_out or "train, val and test as the file has them"
    return Dataset(config.dataset, Path(config.root), splits, num_train_ids, fingerprint, split, skipped_images)


def descriptions_path(config: DataConfig) -> Path:
    """Path of the generated texts of a data set."""
    return Path(config.descriptions) if config.descriptions else Path(config.root) / "descriptions.jsonl"


def fingerprint_of(config: DataConfig) -> str | None:
    """Fingerprint of a data set; None where its folder does not exist."""
    return read_dataset(config).fingerprint if Path(config.root).is_dir() else None


def at_root(config: DataConfig, root: Path | None) -> DataConfig:
    """The configuration of a data set that was moved to `root`, with generated texts that were in its folder; None: not moved.

    Its packed cache is used only where it exists: rows are found by content.
    """
    if root is None:
        return config
    texts, before = Path(config.descriptions), Path(config.root)
    inside = config.descriptions and texts.is_relative_to(before)
    descriptions = str(root / texts.relative_to(before)) if inside else config.descriptions
    cache = config.cache if Path(config.cache).is_dir() else ""
    return replace(config, root=str(root), descriptions=descriptions, cache=cache)


def read_gallery_texts(path: Path) -> TextFile:
    """Reads the file for `identity_texts`. Raises FileNotFoundError."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no file of generated texts {path}; {GALLERY_TEXTS_HINT}")
    return TextFile(path, path.read_bytes())


def identity_texts(file: TextFile, records: Sequence[Record]) -> list[str]:
    """The generated identity text of each image of any split, for the protocol `gallery-text`, whose gallery has texts.

    Raises ValueError for anything wrong in the file, TextsMissing when an image has no text with status "ok": the gallery is
    the whole split, so no image is skipped."""
    texts, rejected = _read_descriptions(file.content, file.path)
    without = [record.file_path for record in records if record.file_path not in texts]
    if without:
        raise TextsMissing(
            f"protocol gallery-text needs an identity text of every gallery image; {file.path} has none with status ok "
            f"for {examples(without)}, {len(rejected.intersection(without))} of them rejected; {GALLERY_TEXTS_HINT}"
        )
    return [texts[record.file_path][0] for record in records]


def with_texts(records: Sequence[Record], config: DataConfig) -> list[Record]:
    """The records of any split that the data set's file of generated texts describes, with these texts: for diagnosis. All
    records where the configuration uses none.

    Raises as `read_dataset` for anything wrong in the file."""
    if config.captions_only:
        return list(records)
    path = descriptions_path(config)
    texts, _ = _read_descriptions(path.read_bytes(), path)
    return [
        replace(record, identity=texts[record.file_path][0], clothing=texts[record.file_path][1])
        for record in records
        if record.file_path in texts
    ]


def described_images(path: Path) -> set[str]:
    """Paths that a file of generated texts has texts of, or rejected ones. Raises ValueError for anything wrong in it."""
    texts, rejected = _read_descriptions(path.read_bytes(), path)
    return texts.keys() | rejected


def text_lines(raw: bytes, file: Path, keys: Sequence[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line numbers and objects of a JSONL file; empty lines do not count. Raises ValueError for a line that is no JSON object
    with a text under each of `keys`."""
    for number, line in enumerate(raw.split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            item = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{file}, line {number} is not valid JSON: {error}") from error
        if not isinstance(item, dict) or not all(isinstance(item.get(key), str) for key in keys):
            raise ValueError(f"{file}, line {number} must be an object with the texts {' and '.join(keys)}")
        yield number, item


def _read_descriptions(raw: bytes, file: Path) -> tuple[dict[str, tuple[str, str]], set[str]]:
    """file_path -> (identity text, clothing text) of the lines with status "ok", and the file_paths of those with status
    "rejected"; other lines are ignored."""
    texts: dict[str, tuple[str, str]] = {}
    rejected: set[str] = set()
    for number, item in text_lines(raw, file, ("file_path", "status")):
        if item["status"] == "rejected":
            rejected.add(item["file_path"])
        if item["status"] != "ok":
            continue
        key, pair = item["file_path"], (item.get("identity"), item.get("clothing"))
        if not all(isinstance(text, str) and text.strip() for text in pair):
            raise ValueError(f"{file}, line {number} has status ok, but no identity or no clothing text for {key}")
        if key in texts:
            raise ValueError(f"{file}, line {number} is a second description of {key} with status ok")
        if BROKEN.search("".join(map(str, pair))):
            raise ValueError(f"{file}, line {number} has a NUL character or a lone surrogate in a text of {key}")
        texts[key] = (str(pair[0]).strip(), str(pair[1]).strip())
    return texts, rejected
