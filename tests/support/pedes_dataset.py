"""Miniature data sets in every layout, with changes that the validator must find."""

import csv
import itertools
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from training.data.validation.validate import Validation, ValidationOptions
from training.synthetic.attributes import sample_identity, sample_outfit, sample_pose
from training.synthetic.rng import KeyedRng
from training.synthetic.text.captions import write_captions

COLOURS = {"red": (200, 30, 30), "green": (30, 160, 40), "blue": (40, 60, 200), "white": (235, 235, 235)}
COLOURS |= {"black": (20, 20, 20), "yellow": (225, 205, 40)}
# Annotation file of each layout.
FILES = {"cuhk-pedes": "reid_raw.json", "icfg-pedes": "ICFG-PEDES.json", "rstpreid": "data_captions.json"}
FILES |= {"own": "records.jsonl"}
ALLOW_COUNTS = ValidationOptions(allow_counts=True)
# An image of each split.
TRAIN, VAL, TEST = "train/0001_0.jpg", "val/0007_0.jpg", "test/0009_0.jpg"
BUILDS = ("slim", "stout", "tall", "short")


def make_pedes(
    root: Path | str,
    ids: Mapping[str, int] | None = None,
    images_per_id: int = 3,
    size: tuple[int, int] = (48, 24),
    seed: int = 0,
) -> Path:
    """Writes `reid_raw.json`, `imgs/` and `descriptions.jsonl` (train images only) under root and returns root.

    `ids` is the number of identities of each split, `size` the height and width of the images in pixels. An image is
    an upper half and a lower half in the colours that its captions name, on noise; ids count from 1.
    """
    root, rng = Path(root), np.random.default_rng(seed)
    records, descriptions, persons = [], [], itertools.count(1)
    for split, count in ({"train": 6, "val": 2, "test": 2} if ids is None else ids).items():
        (root / "imgs" / split).mkdir(parents=True, exist_ok=True)
        for person in itertools.islice(persons, count):
            build = BUILDS[person % len(BUILDS)]
            upper, lower = (str(colour) for colour in rng.choice(list(COLOURS), 2))
            for image in range(images_per_id):
                file_path = f"{split}/{person:04d}_{image}.jpg"
                _draw(upper, lower, size, rng).save(root / "imgs" / file_path, quality=95)
                captions = [
                    f"A {build} person in a {upper} shirt and {lower} trousers.",
                    f"{upper} top, {lower} bottoms, looks {build}",
                ]
                texts = {"identity": f"a {build} adult", "clothing": f"{upper} shirt, {lower} trousers"}
                record = {"split": split, "captions": captions, "file_path": file_path, "id": person}
                records.append({**record, "processed_tokens": [caption.split() for caption in captions]})
                if split == "train":
                    made = {"style": 0, "model": "template", "prompt_hash": "0" * 16, "params": {}, "status": "ok"}
                    descriptions.append({"file_path": file_path, **texts, **made})
    (root / "reid_raw.json").write_text(json.dumps(records))
    (root / "descriptions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in descriptions))
    return root


def _draw(upper: str, lower: str, size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    height, width = size
    pixels = rng.integers(90, 150, (height, width, 3))
    body = slice(width // 4, width - width // 4)
    pixels[height // 6 : height // 2, body] = COLOURS[upper]
    pixels[height // 2 :, body] = COLOURS[lower]
    noise = rng.integers(-10, 11, pixels.shape)
    return Image.fromarray(np.clip(pixels + noise, 0, 255).astype(np.uint8))


def as_layout(root: Path, name: str, file: str) -> Path:
    """Rewrites what `make_pedes` wrote in the layout of the data set `name`, its annotations in `file`; returns root.

    ICFG-PEDES has no validation split (its records join the training split) and one caption per image; RSTPReid says
    img_path; own data is one line per image (.jsonl) or per caption (.csv).
    """
    records = json.loads((root / "reid_raw.json").read_text())
    (root / "reid_raw.json").unlink()
    for record in records:
        del record["processed_tokens"]
        if name == "icfg-pedes":
            record |= {"split": record["split"].replace("val", "train"), "captions": record["captions"][:1]}
        if name == "rstpreid":
            record["img_path"] = record.pop("file_path")
        if name in ("icfg-pedes", "rstpreid"):
            record["id"] -= 1
    if name == "icfg-pedes":
        lines = [json.loads(line) for line in (root / "descriptions.jsonl").read_text().splitlines()]
        texts = {key: value for key, value in lines[0].items() if key != "file_path"}
        made = [{"file_path": record["file_path"], **texts} for record in records if record["split"] == "train"]
        (root / "descriptions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in made))
    write_records(root / file, records)
    return root


def write_records(file: Path, records: list[dict[str, Any]]) -> None:
    """Writes annotations as a JSON list, as JSON lines, or as a CSV of one row per caption, whatever the suffix says."""
    if file.suffix == ".json":
        file.write_text(json.dumps(records))
    elif file.suffix == ".jsonl":
        file.write_text("".join(json.dumps(record) + "\n" for record in records))
    else:
        with file.open("w", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerow(("file_path", "id", "split", "caption"))
            for r in records:
                writer.writerows((r["file_path"], r["id"], r["split"], caption) for caption in r["captions"])


def write_people(root: Path, ids: int, images_per_id: int = 3, seed: int = 5) -> Path:
    """Writes reid_raw.json, imgs/ (of one pixel) and factors.jsonl with captions by the eight writers of the synthetic set:
    `ids` train identities, and one each of val and of test. Returns root."""
    records, factors = [], []
    for person in range(1, ids + 3):
        identity = sample_identity(KeyedRng(seed, "identity", person))
        for image in range(images_per_id):
            rng, path = KeyedRng(seed, person, image), f"cam_a/{person:04d}_{image}.jpg"
            outfit = sample_outfit(rng, identity)
            pose = sample_pose(rng, outfit)
            captions = write_captions(rng, identity, outfit, pose)
            (root / "imgs/cam_a").mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (1, 1)).save(root / "imgs" / path)
            split = {ids + 1: "val", ids + 2: "test"}.get(person, "train")
            texts = [caption.text for caption in captions]
            records.append({"split": split, "captions": texts, "file_path": path, "id": person, "processed_tokens": []})
            row = {"file_path": path, "outfit_number": 0, "identity": asdict(identity), "outfit": asdict(outfit)}
            row |= {"pose": asdict(pose), "captions": [{"style": caption.style} for caption in captions]}
            factors.append(row)
    (root / "reid_raw.json").write_text(json.dumps(records))
    (root / "factors.jsonl").write_text("".join(json.dumps(row) + "\n" for row in factors))
    return root


def make_valid(folder: Path, name: str = "cuhk-pedes", file: str | None = None) -> Path:
    """A data set of the layout `name` without any finding."""
    file, root = file or FILES[name], make_pedes(folder)
    records = json.loads((root / "reid_raw.json").read_text())
    for record in records:
        # By chance make_pedes gives several people the same words.
        record["captions"] = [f"{text} Number {record['id']}." for text in record["captions"]]
    (root / "reid_raw.json").write_text(json.dumps(records))
    return root if name == "cuhk-pedes" else as_layout(root, name, file)


def edit_records(root: Path, change: Callable[[list[Any]], object], file: str = "reid_raw.json") -> None:
    """Applies `change` to the list of records in place."""
    records = json.loads((root / file).read_text())
    change(records)
    (root / file).write_text(json.dumps(records))


def problem_levels(result: Validation) -> dict[str, str]:
    """Errors and warnings: check -> level."""
    return {finding.check: finding.level for finding in result.findings if finding.level in ("error", "warning")}


def finding_texts(result: Validation, check: str) -> list[tuple[str, str]]:
    """(level, text) of the findings of a check."""
    return [(finding.level, finding.text) for finding in result.findings if finding.check == check]


def copy_image(source: str, target: str) -> Callable[[Path], int]:
    """A change of a data set: the image `source` copied to `target`."""
    return lambda root: (root / "imgs" / target).write_bytes((root / "imgs" / source).read_bytes())
