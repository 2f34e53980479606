"""The reader of CUHK-PEDES: what it returns, and one clear error for each way in which a data folder can be wrong."""

import hashlib
import json
import re
import time
from dataclasses import replace

import pytest

from tests.support.pedes_dataset import make_pedes
from training.config import DataConfig
from training.data.datasets import Dataset, read_dataset
from training.engine.train_run import describe


@pytest.fixture
def root(tmp_path):
    return make_pedes(tmp_path / "pedes")


def read(root, **options) -> Dataset:
    return read_dataset(DataConfig(root=str(root), **options))


def edit(root, change) -> None:
    """Applies `change` to the list of records of reid_raw.json in place."""
    file = root / "reid_raw.json"
    records = json.loads(file.read_text())
    change(records)
    file.write_text(json.dumps(records))


def edit_line(root, number: int, **values) -> None:
    """Overwrites fields of one line of descriptions.jsonl, counted from 1."""
    file = root / "descriptions.jsonl"
    lines = file.read_text().splitlines()
    lines[number - 1] = json.dumps({**json.loads(lines[number - 1]), **values})
    file.write_text("\n".join(lines) + "\n")


def test_records_are_those_of_the_files(root):
    dataset = read(root)
    raw = json.loads((root / "reid_raw.json").read_text())
    assert dataset.name == "cuhk-pedes" and dataset.root == root and dataset.num_train_ids == 6
    assert {split: len(records) for split, records in dataset.splits.items()} == {"train": 18, "val": 6, "test": 6}
    records = [record for split in ("train", "val", "test") for record in dataset.splits[split]]
    assert [(r.file_path, r.id, r.split, list(r.captions)) for r in records] == [
        (item["file_path"], item["id"], item["split"], item["captions"]) for item in raw
    ]
    assert all(r.path == root / "imgs" / r.file_path and r.path.is_file() for r in records)
    made = [json.loads(line) for line in (root / "descriptions.jsonl").read_text().splitlines()]
    texts = {item["file_path"]: (item["identity"], item["clothing"]) for item in made}
    assert all((r.identity, r.clothing) == texts[r.file_path] for r in dataset.splits["train"])


def test_generated_texts_stay_out_of_validation_and_test(root):
    file_path = read(root).splits["test"][0].file_path
    line = {"file_path": file_path, "identity": "leaked", "clothing": "leaked", "status": "ok"}
    with (root / "descriptions.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
    dataset = read(root)
    assert {(r.identity, r.clothing) for split in ("val", "test") for r in dataset.splits[split]} == {("", "")}


def test_fingerprint_covers_both_files(root):
    bytes_of = [(root / name).read_bytes() for name in ("reid_raw.json", "descriptions.jsonl")]
    before = read(root).fingerprint
    assert before == hashlib.sha256(b"".join(bytes_of)).hexdigest()
    edit_line(root, 1, identity="somebody else")
    after = read(root).fingerprint
    assert after != before
    edit(root, lambda records: records[0].update(captions=["another caption"]))
    assert read(root).fingerprint not in (before, after)


def test_descriptions_may_lie_elsewhere(root, tmp_path):
    moved = (root / "descriptions.jsonl").rename(tmp_path / "texts.jsonl")
    assert read(root, descriptions=str(moved)).splits["train"][0].identity == "a stout adult"


def test_images_are_not_opened_and_texts_are_stripped(root):
    for path in (root / "imgs").rglob("*.jpg"):
        path.write_bytes(b"not an image")
    edit(root, lambda records: records[0].update(captions=["  a man \n"]))
    assert read(root).splits["train"][0].captions == ("a man",)


@pytest.mark.parametrize("name", ["", "reid_raw.json", "imgs"])
def test_missing_folder_or_file(root, name):
    (root / name).rename(root.parent / "away")
    kind = "file" if name.endswith("json") else "folder"
    with pytest.raises(FileNotFoundError, match=f"data.root={re.escape(str(root))}: there is no {kind} .*{name}; a "):
        read(root)


def test_missing_descriptions_name_the_remedy(root):
    (root / "descriptions.jsonl").unlink()
    text = (
        r'there is no file of generated texts .*descriptions.jsonl; it needs one JSON object per line with "file_path"'
    )
    with pytest.raises(FileNotFoundError, match=text):
        read(root)


def test_missing_images_are_counted(root):
    for path in (root / "imgs" / "val").iterdir():
        path.unlink()
    (root / "imgs" / "train" / "0001_0.jpg").unlink()
    (root / "imgs" / "train" / "0001_0.jpg").mkdir()
    text = r"images named in .*reid_raw.json are not under .*imgs: train/0001_0.jpg, val/.*, \.\.\. \(7 in all\)$"
    with pytest.raises(FileNotFoundError, match=text) as error:
        read(root)
    assert str(error.value).count(".jpg") == 5


def test_missing_image_folder(root):
    (root / "imgs" / "test").rename(root / "imgs" / "tset")
    with pytest.raises(FileNotFoundError, match=r"are not under .*imgs: test/0009_0.jpg, .* \(6 in all\)"):
        read(root)


@pytest.mark.parametrize("content", [b"[{", b"\xff\xfe", b""])
def test_invalid_json(root, content):
    (root / "reid_raw.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"reid_raw.json is not valid JSON: "):
        read(root)


def test_json_of_another_shape(root):
    (root / "reid_raw.json").write_text('{"train": []}')
    with pytest.raises(ValueError, match=r"reid_raw.json must hold a list of records, got dict"):
        read(root)


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"id": "7"}, "'id' must be of type int, got '7'"),
        ({"id": True}, "'id' must be of type int, got True"),
        ({"id": -1}, "'id' must not be negative, got -1"),
        ({"captions": 7}, "'captions' must be of type list, got 7"),
        ({"captions": []}, r"'captions' must be texts, at least one, got \[\]"),
        ({"captions": ["a man", None]}, "'captions' must be texts, at least one, got "),
        ({"file_path": 3}, "'file_path' must be of type str, got 3"),
        ({"file_path": ""}, "'file_path' must be a path below imgs/, got ''"),
        ({"file_path": "/etc/passwd"}, "'file_path' must be a path below imgs/, got '/etc/passwd'"),
        ({"file_path": "../a.jpg"}, "'file_path' must be a path below imgs/, got '../a.jpg'"),
        ({"split": None}, "'split' must be of type str, got None"),
    ],
)
def test_malformed_record(root, values, text):
    edit(root, lambda records: records[4].update(values))
    with pytest.raises(ValueError, match=rf"reid_raw.json has malformed records: record 4: {text}.* \(1 in all\)"):
        read(root)


def test_record_without_a_key_and_record_that_is_none(root):
    def change(records):
        del records[0]["captions"]
        records[2] = "train"

    edit(root, change)
    text = r"record 0: 'captions' is missing, record 2: expected an object, got str \(2 in all\)"
    with pytest.raises(ValueError, match=text):
        read(root)


def test_unknown_split(root):
    edit(root, lambda records: records[0].update(split="training"))
    text = r"names unknown splits, expected train, val or test: train/0001_0.jpg: 'training' \(1 in all\)"
    with pytest.raises(ValueError, match=text):
        read(root)


@pytest.mark.parametrize("caption", ["", " \n\t"])
def test_empty_caption(root, caption):
    edit(root, lambda records: records[5].update(captions=["a man", caption]))
    with pytest.raises(ValueError, match=r"has an empty caption for the images train/0002_2.jpg \(1 in all\)"):
        read(root)


def test_duplicate_file_path(root):
    edit(root, lambda records: records.append(records[0]))
    with pytest.raises(ValueError, match=r"names the same file_path more than once: train/0001_0.jpg \(1 in all\)"):
        read(root)


def test_identity_in_two_splits(root):
    edit(root, lambda records: records[-1].update(id=1))
    with pytest.raises(ValueError, match=r"has identities in more than one split: 1 in test and train \(1 in all\)"):
        read(root)


def test_empty_split(root):
    edit(root, lambda records: records.__setitem__(slice(None), [r for r in records if r["split"] != "val"]))
    with pytest.raises(ValueError, match=r"has no record in the splits val \(1 in all\)"):
        read(root)


def test_train_image_without_usable_texts(root):
    edit_line(root, 2, status="refused", identity=None)
    text = r'training images have no generated texts in .*: train/0001_1.jpg \(1 in all\); it needs .*"status": "ok"'
    with pytest.raises(ValueError, match=text):
        read(root)


def test_train_images_whose_texts_were_rejected_are_left_out_and_counted(root):
    edit_line(root, 2, status="rejected", reason="identity.leak: names a coat")
    dataset = read(root)
    assert describe(dataset).endswith("; 1 training image skipped: its generated texts were rejected")
    assert dataset.skipped_images == 1 and len(dataset.splits["train"]) == 17
    assert "train/0001_1.jpg" not in {record.file_path for record in dataset.splits["train"]}
    # A later attempt that went well counts.
    with (root / "descriptions.jsonl").open("a") as file:
        again = {"file_path": "train/0001_1.jpg", "identity": "a man", "clothing": "a coat", "status": "ok"}
        file.write(json.dumps(again) + "\n")
    assert read(root).skipped_images == 0 and "skipped" not in describe(read(root))
    assert describe(replace(dataset, skipped_images=3)).endswith(
        "; 3 training images skipped: their generated texts were rejected"
    )
    for line in range(1, 20):
        edit_line(root, line, status="rejected")
    with pytest.raises(ValueError, match=r"the texts of all 18 training images in .*descriptions.jsonl were rejected"):
        read(root)


@pytest.mark.parametrize("key", ["identity", "clothing"])
@pytest.mark.parametrize("value", ["  ", None])
def test_empty_generated_text(root, key, value):
    edit_line(root, 3, **{key: value})
    text = "descriptions.jsonl, line 3 has status ok, but no identity or no clothing text for train/0001_2.jpg"
    with pytest.raises(ValueError, match=text):
        read(root)


def test_second_description(root):
    edit_line(root, 2, file_path="train/0001_0.jpg")
    with pytest.raises(ValueError, match="line 2 is a second description of train/0001_0.jpg with status ok"):
        read(root)


def test_failed_attempt_beside_a_good_one_and_blank_lines_are_fine(root):
    with (root / "descriptions.jsonl").open("a") as file:
        file.write("\n" + json.dumps({"file_path": "train/0001_0.jpg", "status": "failed"}) + "\n")
    assert len(read(root).splits["train"]) == 18


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("{", "line 19 is not valid JSON: "),
        ("[]", "line 19 must be an object with the texts file_path and status"),
        ('{"file_path": "a.jpg"}', "line 19 must be an object with the texts file_path and status"),
    ],
)
def test_malformed_description(root, line, text):
    with (root / "descriptions.jsonl").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(ValueError, match=text):
        read(root)


def test_forty_thousand_records_take_seconds(tmp_path):
    # As many records as CUHK-PEDES has; the real time is about a second, the limit leaves room for a busy machine.
    records, lines = [], []
    for folder in range(40):
        (tmp_path / "imgs" / str(folder)).mkdir(parents=True)
        for image in range(1000):
            file_path = f"{folder}/{image}.jpg"
            (tmp_path / "imgs" / file_path).touch()
            split = "test" if folder == 39 else "val" if folder == 38 else "train"
            id = folder * 1000 + image // 4
            records.append({"split": split, "captions": ["a man"] * 2, "file_path": file_path, "id": id})
            lines.append({"file_path": file_path, "identity": "a man", "clothing": "a shirt", "status": "ok"})
    (tmp_path / "reid_raw.json").write_text(json.dumps(records))
    (tmp_path / "descriptions.jsonl").write_text("\n".join(map(json.dumps, lines)))
    start = time.perf_counter()
    dataset = read(tmp_path)
    assert time.perf_counter() - start < 15
    assert [len(dataset.splits[split]) for split in ("train", "val", "test")] == [38_000, 1000, 1000]
    assert dataset.num_train_ids == 9500
