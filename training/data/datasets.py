"""Data sets as records: one record type for all of them (readers.py), everything checked before anything is trained."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from training.config import DataConfig
from training.data.checks import absent_splits, examples, missing_images, require_sound
from training.data.readers import LAYOUTS, SPLITS, read_source
from training.data.splits import hold_out

REMEDY = 'one JSON object a line with "file_path", "identity", "clothing" and "status": "ok" for every train image'
GALLERY_REMEDY = (
    "`python -m training.describe generate NAME ROOT --out OUT --split test --for-gallery` writes them for --texts"
)


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
    """All records of a data set by split, in the order of its annotation file."""

    name: str
    root: Path
    splits: dict[str, list[Record]]
    num_train_ids: int
    # SHA-256 (hex) over the bytes of the annotation file and of the file of generated texts, and over `split` where it is
    # not what the file says.
    fingerprint: str
    # Where the splits come from, in words.
    split: str
    # Train images that are left out because generation gave their texts up: status "rejected", a reason beside it.
    left_out: int


@dataclass(frozen=True)
class TextFile:
    """A file of generated texts, read once: what the digest says is what is used."""

    # As it was given.
    path: Path
    content: bytes

    @property
    def sha256(self) -> str:
        """Hexadecimal, over the bytes of the file."""
        return hashlib.sha256(self.content).hexdigest()


def read_records(config: DataConfig) -> dict[str, list[Record]]:
    """The checked records of the data set of `config` by split, without generated texts; images are looked up, not opened.

    Raises FileNotFoundError for a missing folder, annotation file or image, and ValueError for anything wrong inside the
    file; each error is one sentence with up to five examples and their number.
    """
    return _read(config).splits


@dataclass(frozen=True)
class _Read:
    splits: dict[str, list[Record]]
    # The annotation file, and the sentence about a split that it does not have; "" if it has all.
    raw: bytes
    held_out: str


def _read(config: DataConfig) -> _Read:
    source, layout, images = (
        read_source(config.dataset, config.root),
        LAYOUTS[config.dataset],
        Path(config.root) / "imgs",
    )
    if not images.is_dir():
        raise FileNotFoundError(
            f"data.root={config.root}: there is no folder {images}; a data folder holds {source.file.name} and imgs/"
        )
    rows, held_out = require_sound(source, layout.splits), ""
    missing = missing_images(rows, images)
    if missing:
        raise FileNotFoundError(f"images named in {source.file} are not under {images}: {examples(missing)}")
    if absent_splits(rows, SPLITS):
        rows, held_out = hold_out(rows)
    splits: dict[str, list[Record]] = {split: [] for split in SPLITS}
    for row in rows:
        key, split = row["file_path"], row["split"]
        captions = tuple(caption.strip() for caption in row["captions"])
        splits[split].append(Record(key, images / key, row["id"], split, captions))
    return _Read(splits, source.raw, held_out)


def read_dataset(config: DataConfig) -> Dataset:
    """Reads and checks the data set of `config` with its generated texts; images are looked up, not opened.

    Train images whose texts were rejected are left out and counted; one without any record, or with another status, is an
    error. Raises what `read_records` does, FileNotFoundError for a missing file of generated texts, and ValueError for
    anything wrong in it.
    """
    descriptions = descriptions_path(config)
    read = _read(config)
    splits = read.splits
    if not descriptions.is_file():
        raise FileNotFoundError(f"there is no file of generated texts {descriptions}; it needs {REMEDY}")
    generated = descriptions.read_bytes()
    texts, rejected = _read_descriptions(generated, descriptions)
    train = splits["train"]
    without = [r.file_path for r in train if r.file_path not in texts and r.file_path not in rejected]
    if without:
        raise ValueError(
            f"train images have no generated texts in {descriptions}: {examples(without)}; it needs {REMEDY}"
        )
    splits["train"] = [
        replace(record, identity=texts[record.file_path][0], clothing=texts[record.file_path][1])
        for record in train
        if record.file_path in texts
    ]
    left_out = len(train) - len(splits["train"])
    if not splits["train"]:
        raise ValueError(f"the texts of all {left_out} train images in {descriptions} were rejected")
    num_train_ids = len({record.id for record in splits["train"]})
    fingerprint = hashlib.sha256(read.raw + generated + read.held_out.encode()).hexdigest()
    split = read.held_out or "train, val and test as the file has them"
    return Dataset(config.dataset, Path(config.root), splits, num_train_ids, fingerprint, split, left_out)


def descriptions_path(config: DataConfig) -> Path:
    """Where the generated texts of a data set are."""
    return Path(config.descriptions) if config.descriptions else Path(config.root) / "descriptions.jsonl"


def read_gallery_texts(path: Path) -> TextFile:
    """The file that `identity_texts` looks into. Raises FileNotFoundError."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no file of generated texts {path}; {GALLERY_REMEDY}")
    return TextFile(path, path.read_bytes())


def identity_texts(file: TextFile, records: Sequence[Record]) -> list[str]:
    """The generated identity text of each image, whatever its split: for the protocol `gallery-text`, which says what a
    gallery knows about its own images. Raises ValueError for anything wrong in the file, or when an image has no text
    with status "ok": the gallery is the whole split, so none is left out."""
    texts, rejected = _read_descriptions(file.content, file.path)
    without = [record.file_path for record in records if record.file_path not in texts]
    if without:
        raise ValueError(
            f"protocol gallery-text needs an identity text of every gallery image; {file.path} has none with status ok "
            f"for {examples(without)}, {len(rejected.intersection(without))} of them rejected; {GALLERY_REMEDY}"
        )
    return [texts[record.file_path][0] for record in records]


def _read_descriptions(raw: bytes, file: Path) -> tuple[dict[str, tuple[str, str]], set[str]]:
    """file_path -> (identity text, clothing text) of the lines with status "ok", and the file_paths of those with status
    "rejected"; other lines count as absent."""
    texts: dict[str, tuple[str, str]] = {}
    rejected: set[str] = set()
    for number, line in enumerate(raw.split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            item = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{file}, line {number} is not valid JSON: {error}") from error
        if not isinstance(item, dict) or not all(isinstance(item.get(key), str) for key in ("file_path", "status")):
            raise ValueError(f"{file}, line {number} must be an object with the texts file_path and status")
        if item["status"] == "rejected":
            rejected.add(item["file_path"])
        if item["status"] != "ok":
            continue
        key, pair = item["file_path"], (item.get("identity"), item.get("clothing"))
        if not all(isinstance(text, str) and text.strip() for text in pair):
            raise ValueError(f"{file}, line {number} has status ok, but no identity or no clothing text for {key}")
        if key in texts:
            raise ValueError(f"{file}, line {number} is a second description of {key} with status ok")
        texts[key] = (str(pair[0]).strip(), str(pair[1]).strip())
    return texts, rejected
