"""A small example data set in the layout of own data."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Literal

from training.data.readers import COLUMNS, Row
from training.synthetic.dataset import Parameters, new_folder, render_identity

PARAMETERS = Parameters(ids=8, seed=0, images_per_id=2, val_ids=2, test_ids=2, height=192, width=96)
README = """A data set of your own, as the pipeline reads it with --data.dataset own --data.root FOLDER

{file}
    {what}
    file_path   below imgs/
    id          whole number of the person; the same person has the same number in every image and is in one split only
    split       train, val or test; each must have at least one person
    caption     text that describes the image; an image may have several
imgs/
    the images: JPEG, PNG, BMP, ...; any size
descriptions.jsonl
    one identity and one clothing text per train image; python -m training.describe generate writes it for your images

Replace everything with your own data, then: python -m training.prepare validate own FOLDER
"""
FORMS = {
    "csv": ("records.csv", "one line per caption: file_path,id,split,caption"),
    "jsonl": ("records.jsonl", 'one line per image: {"file_path", "id", "split", "captions": [...]}'),
}


def write_example(out: Path, form: Literal["csv", "jsonl"] = "csv") -> None:
    """Writes eight rendered people with two images each to the folder `out`, which appears complete or not at all.

    Raises FileExistsError when `out` exists and is not an empty folder.
    """
    records: list[Row] = []
    descriptions = []
    file, what = FORMS[form]
    with new_folder(out) as folder:
        imgs = folder / "imgs"
        for person in range(1, PARAMETERS.ids + 1):
            for record, description, _ in render_identity(person, imgs, PARAMETERS):
                records.append({key: record[key] for key in ("file_path", "id", "split", "captions")})
                if record["split"] == "train":
                    descriptions.append(description)
        text = _table(records) if form == "csv" else "".join(json.dumps(record) + "\n" for record in records)
        (folder / file).write_text(text, encoding="utf-8", newline="")
        lines = "".join(json.dumps(line) + "\n" for line in descriptions)
        (folder / "descriptions.jsonl").write_text(lines, encoding="utf-8")
        (folder / "README.txt").write_text(README.format(file=file, what=what), encoding="utf-8")


def _table(records: list[Row]) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(COLUMNS)
    for record in records:
        writer.writerows((*(record[key] for key in COLUMNS[:3]), caption) for caption in record["captions"])
    return stream.getvalue()
