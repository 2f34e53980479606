"""The validator: what it says of sound sets, of the official numbers, and of what is known about each set."""

import json
from dataclasses import replace

import pytest
from PIL import Image

from tests.support.pedes_dataset import (
    ALLOW_COUNTS,
    FILES,
    TEST,
    TRAIN,
    VAL,
    copy_image,
    edit_records,
    finding_texts,
    make_valid,
    problem_levels,
)
from training.data.readers import LAYOUTS
from training.data.validation.validate import ValidationOptions, validate_dataset


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_sound_set_of_every_layout(tmp_path, name):
    root = make_valid(tmp_path / "set", name)
    result = validate_dataset(name, root, ALLOW_COUNTS)
    assert problem_levels(result) == {} and result.verdict == "yes"
    val = {} if name == "icfg-pedes" else {"val": (2, 6, 12)}
    train = (8, 24, 24) if name == "icfg-pedes" else (6, 18, 36)
    assert result.counts == {"train": train} | val | {"test": (2, 6, 6 if name == "icfg-pedes" else 12)}
    strict = validate_dataset(name, root, ValidationOptions())
    assert strict.verdict == ("yes" if name == "own" else "no")
    assert (
        len(finding_texts(strict, "official numbers"))
        == {"cuhk-pedes": 3, "icfg-pedes": 3, "rstpreid": 4, "own": 0}[name]
    )


@pytest.mark.parametrize("name", FILES)
def test_only_a_set_of_the_official_size_can_run_the_official_protocol(tmp_path, name, monkeypatch):
    root = make_valid(tmp_path / "set", name)
    counts = validate_dataset(name, root, ALLOW_COUNTS).counts
    monkeypatch.setitem(LAYOUTS, name, replace(LAYOUTS[name], counts=counts))
    result = validate_dataset(name, root, ValidationOptions())
    assert result.verdict == "yes"
    assert finding_texts(result, "official numbers")[-1] == ("ok", "identities, images and captions of every split")
    for split, numbers in counts.items():
        for i in range(3):
            other = counts | {split: tuple(n + (i == j) for j, n in enumerate(numbers))}
            monkeypatch.setitem(LAYOUTS, name, replace(LAYOUTS[name], counts=other))
            result = validate_dataset(name, root, ValidationOptions(contents=False))
            assert result.verdict == "no" and problem_levels(result) == {"official numbers": "error"}


def official(name, ids):
    """Records of the official form: so many identities per split, five images each (RSTPReid), without image files."""
    people = iter(range(sum(ids.values())))
    return [
        {
            "id": person,
            "img_path": f"{person:04d}_{image}.jpg",
            "captions": [f"a {person}", f"b {person}"],
            "split": split,
        }
        for split, count in ids.items()
        for person in (next(people) for _ in range(count))
        for image in range(5)
    ]


@pytest.mark.parametrize("train", [3701, 3901])
def test_both_splits_of_rstpreid_at_full_size(tmp_path, train):
    held = (4101 - train) // 2
    records = official("rstpreid", {"train": train, "val": held, "test": held})
    (tmp_path / "data_captions.json").write_text(json.dumps(records))
    result = validate_dataset("rstpreid", tmp_path, ValidationOptions(contents=False))
    numbers, old = finding_texts(result, "official numbers"), finding_texts(result, "old RSTPReid split")
    assert ("note", "the paper prints 4,104 identities for RSTPReid; its splits sum to 4,101") in numbers
    if train == 3701:
        assert numbers[-1][0] == "ok" and old == []
    else:
        assert [level for level, _ in numbers] == ["note", "error", "error", "error"]
        assert old[0][0] == "error" and old[0][1].startswith("this is the older split of RSTPReid (3,901 / 100 / 100")
        accepted = validate_dataset("rstpreid", tmp_path, ValidationOptions(allow_counts=True, contents=False))
        assert finding_texts(accepted, "old RSTPReid split")[0][0] == "warning"


def test_the_mailed_archive_of_cuhk_pedes_is_named(tmp_path):
    root = make_valid(tmp_path / "set")

    def change(records):
        folders = ("cam_a", "Market", "CUHK01")
        for i, record in enumerate(records):
            record["file_path"] = f"{folders[i % 3]}/{i}.bmp"

    edit_records(root, change)
    (root / "imgs" / "cam_a").mkdir()
    for i in range(0, 30, 3):
        Image.new("RGB", (24, 48), (i, 0, 0)).save(root / "imgs" / "cam_a" / f"{i}.bmp")
    result = validate_dataset("cuhk-pedes", root, ALLOW_COUNTS)
    (level, text), *_ = finding_texts(result, "missing images")
    assert level == "error"
    assert text.startswith("20 images are missing, by sub-folder: CUHK01 10 of 10, Market 10 of 10; e.g. ")
    assert "CUHK01, Market missing entirely: the archive of CUHK-PEDES sent by the authors may lack sub-folders" in text
    (level, text), *_ = finding_texts(result, "BMP files")
    assert (level, text) == (
        "note",
        "30 images are BMP files (in CUHK01, Market, cam_a); they are read like the others",
    )


def test_the_two_names_of_the_icfg_file_and_the_held_out_split(tmp_path):
    root = make_valid(tmp_path / "set", "icfg-pedes")
    (root / "ICFG_PEDES.json").write_bytes((root / "ICFG-PEDES.json").read_bytes())
    result = validate_dataset("icfg-pedes", root, ALLOW_COUNTS)
    both = "ICFG-PEDES.json and ICFG_PEDES.json both exist and are equal; ICFG-PEDES.json is read"
    assert ("note", both) in finding_texts(result, "annotation file") and result.verdict == "yes"
    assert finding_texts(result, "validation split")[0][1].startswith("val: 1 of 8 training ids held out (seed 0, ids ")
    assert [text for _, text in finding_texts(result, "official numbers")][0].startswith(
        "the paper prints 54,552 images"
    )
    assert "both drawn from MSMT17" in finding_texts(result, "source")[0][1]


def test_a_copy_across_splits_of_own_data_is_an_error(tmp_path):
    root = make_valid(tmp_path / "set", "own", "records.csv")
    copy_image(TRAIN, TEST)(root)
    result = validate_dataset("own", root, ValidationOptions())
    assert problem_levels(result) == {"duplicates across splits": "error"} and result.verdict == "no"
    (_, text), *_ = finding_texts(result, "duplicates across splits")
    assert f"{TRAIN} (train, id 1) = {TEST} (test, id 9)" in text


def test_images_of_another_set_are_found(tmp_path):
    root, other = make_valid(tmp_path / "set", "rstpreid"), make_valid(tmp_path / "other", "icfg-pedes")
    for path in (other / "imgs").rglob("*.jpg"):
        path.write_bytes(path.read_bytes() + b"other")
    options = replace(ALLOW_COUNTS, against=(("icfg-pedes", other),))
    result = validate_dataset("rstpreid", root, options)
    assert finding_texts(result, "duplicates in ICFG-PEDES")[0][0] == "ok"
    (other / "imgs" / TEST).write_bytes((root / "imgs" / TRAIN).read_bytes())
    (other / "imgs" / VAL).unlink()
    result = validate_dataset("rstpreid", root, options)
    assert finding_texts(result, "duplicates in ICFG-PEDES") == [
        ("warning", "1 image is in both sets; split here/there: 1 train/test")
    ]
    assert result.verdict == "yes"
    with pytest.raises(
        ValueError, match="--against compares the contents of images; it cannot be combined with --no-h"
    ):
        validate_dataset("rstpreid", root, replace(options, contents=False))


def test_without_opening_the_images_the_answer_stays_open(tmp_path):
    root = make_valid(tmp_path / "set")
    (root / "imgs" / TRAIN).write_bytes(b"")
    result = validate_dataset("cuhk-pedes", root, replace(ALLOW_COUNTS, contents=False))
    assert result.verdict == "open" and finding_texts(result, "unreadable images") == []
    assert not (root / ".bdam-hashes.jsonl").exists()
    (root / "imgs" / TRAIN).unlink()
    assert validate_dataset("cuhk-pedes", root, replace(ALLOW_COUNTS, contents=False)).verdict == "no"


def test_a_cache_that_cannot_be_written(tmp_path):
    """A folder in its place stands for a disk that is read-only: the tests may run as root."""
    root = make_valid(tmp_path / "set")
    (root / ".bdam-hashes.jsonl").mkdir()
    result = validate_dataset("cuhk-pedes", root, ALLOW_COUNTS)
    (level, text), *_ = finding_texts(result, "cache of hashes")
    assert level == "note" and ".bdam-hashes.jsonl cannot be written (" in text and result.verdict == "yes"
    with pytest.raises(OSError, match="nowhere"):
        validate_dataset("cuhk-pedes", root, replace(ALLOW_COUNTS, cache=tmp_path / "nowhere" / "cache.jsonl"))
    elsewhere = replace(ALLOW_COUNTS, cache=tmp_path / "cache.jsonl")
    assert finding_texts(validate_dataset("cuhk-pedes", root, elsewhere), "cache of hashes") == []
    assert len((tmp_path / "cache.jsonl").read_text().splitlines()) == 30


def test_progress_counts_the_images_of_each_set(tmp_path):
    root, seen = make_valid(tmp_path / "set", "own"), []
    other = make_valid(tmp_path / "other")
    validate_dataset("own", root, ValidationOptions(against=(("cuhk-pedes", other),)), lambda *step: seen.append(step))
    assert seen == [("own data", 0, 30), ("own data", 30, 30), ("CUHK-PEDES", 0, 30), ("CUHK-PEDES", 30, 30)]
