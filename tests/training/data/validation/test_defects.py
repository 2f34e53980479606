"""The validator on miniature data sets, each with one defect: what it says and how grave that is."""

import re

import pytest
from PIL import Image

from tests.support.pedes_dataset import (
    ALLOW_COUNTS,
    TEST,
    TRAIN,
    VAL,
    copy_image,
    edit_records,
    make_valid,
    problem_levels,
)
from training.data.validation.validate import validate_dataset


def damage(path, content):
    return lambda root: (root / "imgs" / path).write_bytes(content((root / "imgs" / path).read_bytes()))


def captions(*changes):
    def change(records):
        for number, caption in changes:
            records[number]["captions"][0] = caption

    return lambda root: edit_records(root, change)


def values(number, **fields):
    return lambda root: edit_records(root, lambda records: records[number].update(fields))


def person(who, **fields):
    return lambda root: edit_records(root, lambda records: [r.update(fields) for r in records if r["id"] == who])


def picture(path, mode, form="JPEG"):
    def write(root):
        with Image.open(root / "imgs" / path) as image:
            image.convert(mode).save(root / "imgs" / path, form)

    return write


def link(root):
    path = root / "imgs" / TRAIN
    path.rename(root.parent / "elsewhere.jpg")
    path.symlink_to(root.parent / "elsewhere.jpg")


# What is done to a sound CUHK-PEDES, and the check that tells: its level and how its text goes on.
DEFECTS = {
    "malformed": (values(3, id="x"), "record format", "error", "malformed records: record 3: 'id' must be of"),
    "unknown split": (person(1, split="training"), "split names", "error", "unknown splits, .*: 'training'"),
    "empty caption": (captions((0, " ")), "empty captions", "error", f"images with an empty caption: {TRAIN}"),
    "second spelling": (
        values(0, file_path=TRAIN.replace("/", "//")),
        "record format",
        "error",
        f"malformed records: record 0: 'file_path' must be written as '{TRAIN}', got 'train//",
    ),
    "same path": (values(1, file_path=TRAIN), "repeated images", "error", f"images listed more than once: {TRAIN}"),
    "leak": (
        values(0, id=9, captions=["a man in the wrong split"]),
        "identities across splits",
        "error",
        "identities in more than one split: 9 in test and tr",
    ),
    "no val": (
        lambda root: edit_records(
            root, lambda records: [r.update(split="test") for r in records if r["split"] == "val"]
        ),
        "empty splits",
        "error",
        r"no records in the splits: val \(1 in all\)",
    ),
    "ids from 0": (
        person(10, id=0),
        "person ids",
        "warning",
        "the smallest person id is 0; in the file of the authors",
    ),
    "missing": (
        lambda root: (root / "imgs" / VAL).unlink(),
        "missing images",
        "error",
        f"1 image is missing, by sub-folder: val 1 of 6; e.g. {VAL}$",
    ),
    "converted": (
        lambda root: (root / "imgs" / VAL).rename(root / "imgs" / VAL.replace("jpg", "png")),
        "missing images",
        "error",
        "1 image is missing, .*; 1 of them exists with another suffix",
    ),
    "no images": (
        lambda root: (root / "imgs").rename(root / "images"),
        "missing images",
        "error",
        "there is no folder .*imgs: 30 images",
    ),
    "truncated": (
        damage(TRAIN, lambda b: b[:-9]),
        "unreadable images",
        "error",
        r"1 image cannot .* \(truncated: train 1\)",
    ),
    "zero bytes": (damage(VAL, lambda b: b""), "unreadable images", "error", r"1 image cannot .*\(zero bytes: val 1\)"),
    "no image": (
        damage(VAL, lambda b: b"<html>"),
        "unreadable images",
        "error",
        r"1 image cannot .*\(no image: val 1\)",
    ),
    "copy in test": (
        copy_image(TRAIN, TEST),
        "duplicates across splits",
        "warning",
        r"1 content is in more than one split",
    ),
    "copy of another": (
        copy_image(TRAIN, "train/0002_1.jpg"),
        "duplicates across people",
        "warning",
        "1 content is of several",
    ),
    "shared words": (
        captions((0, "A man in red."), (4, "a MAN  in red"), (-1, "a man in red!")),
        "captions shared between people",
        "warning",
        "1 text describes several people, 3 of 60 captions .5.0%.; 0 test queries have more .* .3 people.: 'a man in red'",
    ),
    "shared queries": (
        captions((-1, "A man in red."), (-4, "a man in red"), (-5, "a man in red")),
        "captions shared between people",
        "warning",
        "1 text describes several people, 3 of 60 captions .*; 3 test queries have more than one correct person; .*2 people",
    ),
    "line break": (
        captions((0, "a man\nin red")),
        "suspicious captions",
        "warning",
        f"1 caption with control .*, e.g. of {TRAIN}",
    ),
    "mojibake": (
        captions((0, "a man\u00e2\u20ac\u2122s coat")),
        "suspicious captions",
        "warning",
        "1 caption with wrongly decoded",
    ),
    "script": (
        captions((0, "a man\uff0cin red"), (1, "\u4e00 man")),
        "suspicious captions",
        "warning",
        "2 captions with another scr",
    ),
    "HTML": (captions((0, "a <b>man</b> in red")), "suspicious captions", "warning", "1 caption with HTML"),
    "entity": (captions((0, "a man &amp; a bag")), "suspicious captions", "warning", "1 caption with HTML"),
    "address": (
        captions((0, "a man, see www.example.org")),
        "suspicious captions",
        "warning",
        "1 caption with a web address",
    ),
    "label": (captions((0, "Caption 2: a man")), "suspicious captions", "warning", "1 caption with a label in front"),
    "code": (
        captions((0, "self.captions.append(man)")),
        "suspicious captions",
        "warning",
        "1 caption with program code",
    ),
    "NUL": (
        captions((0, "a man\0 in red")),
        "record format",
        "error",
        r"malformed records: record 0: 'captions'\[0\] has a NUL character at character 5",
    ),
    "lone surrogate": (
        captions((0, "a man \ud83d in red")),
        "record format",
        "error",
        r"malformed records: record 0: 'captions'\[0\] has a lone surrogate at character 6",
    ),
    "zero width": (
        captions((0, "a man in\u200b a red coat")),
        "suspicious captions",
        "warning",
        r"1 caption with invisible characters, e.g. of .*jpg captions\[0\]",
    ),
    "soft hyphen": (
        captions((0, "a man in a red sweat\u00adshirt")),
        "suspicious captions",
        "warning",
        "1 caption with invisible characters",
    ),
    "hidden tags": (
        captions((0, "a man in a red coat\U000e0041\U000e0042")),
        "suspicious captions",
        "warning",
        "1 caption with invisible characters",
    ),
    "longer than the model reads": (
        captions((0, "a man in a red coat and blue trousers, " * 7)),
        "long captions",
        "note",
        r"1 caption is longer than 64 tokens, and cut there \(data.text_length\); e.g. of ",
    ),
    "a link": (link, "symbolic links", "warning", "1 image is outside of imgs/ by a symbolic link"),
    "one word": (captions((0, "man")), "suspicious captions", "warning", "1 caption with a single word"),
    "very long": (captions((0, "a man " * 61)), "suspicious captions", "warning", "1 caption with more than 120 words"),
    "format": (
        picture(TRAIN, "RGB", "PNG"),
        "formats",
        "note",
        "1 image is of a different format .*: PNG in a .jpg file 1; ",
    ),
    "grey": (
        picture(TRAIN, "L"),
        "colour modes",
        "note",
        f"1 image is not RGB .converted on reading.: L 1; e.g. {TRAIN}",
    ),
    "copy of the person": (
        copy_image(TRAIN, "train/0001_2.jpg"),
        "duplicates within a person",
        "note",
        "1 content is of one per",
    ),
    "extra file": (
        lambda root: (root / "imgs" / "new.jpg").write_bytes(b""),
        "unlisted files",
        "note",
        "1 image without a record, by sub-folder: imgs/ 1",
    ),
}


@pytest.mark.parametrize("name", DEFECTS)
def test_every_defect_is_told(tmp_path, name):
    change, check, level, text = DEFECTS[name]
    root = make_valid(tmp_path / "set")
    change(root)
    result = validate_dataset("cuhk-pedes", root, ALLOW_COUNTS)
    grave = {check: level} if level in ("error", "warning") else {}
    assert problem_levels(result) == grave
    told = [finding for finding in result.findings if finding.check == check and finding.level == level]
    assert any(re.match(text, finding.text) for finding in told), [finding.text for finding in told]
    assert result.verdict == ("no" if level == "error" else "yes")
