"""The reader of CUHK-PEDES: what it returns, and one clear error for each way in which a data folder can be wrong."""

import hashlib
import json
import re
import time
from dataclasses import replace

import pytest

from tests.support.pedes_dataset import edit_records, make_pedes
from training.config import DataConfig
from training.data.datasets import Dataset, read_dataset
from training.engine.train_run import describe


@pytest.fixture
def pedes(tmp_path):
    return make_pedes(tmp_path / "pedes")


def read(pedes, **options) -> Dataset:
    return read_dataset(DataConfig(root=str(pedes), **options))


def edit_line(pedes, number: int, **values) -> None:
    """Overwrites fields of one line of descriptions.jsonl, counted from 1."""
    file = pedes / "descriptions.jsonl"
    lines = file.read_text().splitlines()
    lines[number - 1] = json.dumps({**json.loads(lines[number - 1]), **values})
    file.write_text("\n".join(lines) + "\n")


def test_records_are_those_of_the_files(pedes):
    dataset = read(pedes)
    raw = json.loads((pedes / "reid_raw.json").read_text())
    assert dataset.name == "cuhk-pedes" and dataset.root == pedes and dataset.num_train_ids == 6
    assert {split: len(records) for split, records in dataset.splits.items()} == {"train": 18, "val": 6, "test": 6}
    records = [record for split in ("train", "val", "test") for record in dataset.splits[split]]
    assert [(r.file_path, r.id, r.split, list(r.captions)) for r in records] == [
        (item["file_path"], item["id"], item["split"], item["captions"]) for item in raw
    ]
    assert all(r.path == pedes / "imgs" / r.file_path and r.path.is_file() for r in records)
    made = [json.loads(line) for line in (pedes / "descriptions.jsonl").read_text().splitlines()]
    texts = {item["file_path"]: (item["identity"], item["clothing"]) for item in made}
    assert all((r.identity, r.clothing) == texts[r.file_path] for r in dataset.splits["train"])


def test_generated_texts_stay_out_of_validation_and_test(pedes):
    file_path = read(pedes).splits["test"][0].file_path
    line = {"file_path": file_path, "identity": "leaked", "clothing": "leaked", "status": "ok"}
    with (pedes / "descriptions.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
    dataset = read(pedes)
    assert {(r.identity, r.clothing) for split in ("val", "test") for r in dataset.splits[split]} == {("", "")}


def test_fingerprint_covers_both_files(pedes):
    bytes_of = [(pedes / name).read_bytes() for name in ("reid_raw.json", "descriptions.jsonl")]
    before = read(pedes).fingerprint
    assert before == hashlib.sha256(b"".join(bytes_of)).hexdigest()
    edit_line(pedes, 1, identity="somebody else")
    after = read(pedes).fingerprint
    assert after != before
    edit_records(pedes, lambda records: records[0].update(captions=["another caption"]))
    assert read(pedes).fingerprint not in (before, after)


def test_descriptions_may_lie_elsewhere(pedes, tmp_path):
    moved = (pedes / "descriptions.jsonl").rename(tmp_path / "texts.jsonl")
    assert read(pedes, descriptions=str(moved)).splits["train"][0].identity == "a stout adult"


def test_images_are_not_opened_and_texts_are_stripped(pedes):
    for path in (pedes / "imgs").rglob("*.jpg"):
        path.write_bytes(b"not an image")
    edit_records(pedes, lambda records: records[0].update(captions=["  a man \n"]))
    assert read(pedes).splits["train"][0].captions == ("a man",)


@pytest.mark.parametrize("name", ["", "reid_raw.json", "imgs"])
def test_missing_folder_or_file(pedes, name):
    (pedes / name).rename(pedes.parent / "away")
    kind = "file" if name.endswith("json") else "folder"
    with pytest.raises(FileNotFoundError, match=f"data.root={re.escape(str(pedes))}: there is no {kind} .*{name}; a "):
        read(pedes)


def test_missing_descriptions_name_the_remedy(pedes):
    (pedes / "descriptions.jsonl").unlink()
    text = (
        r'there is no file of generated texts .*descriptions.jsonl; it needs one JSON object per line with "file_path"'
    )
    with pytest.raises(FileNotFoundError, match=text):
        read(pedes)


def test_missing_images_are_counted(pedes):
    for path in (pedes / "imgs" / "val").iterdir():
        path.unlink()
    (pedes / "imgs" / "train" / "0001_0.jpg").unlink()
    (pedes / "imgs" / "train" / "0001_0.jpg").mkdir()
    text = r"images named in .*reid_raw.json are not under .*imgs: train/0001_0.jpg, val/.*, \.\.\. \(7 in all\)$"
    with pytest.raises(FileNotFoundError, match=text) as error:
        read(pedes)
    assert str(error.value).count(".jpg") == 5


def test_missing_image_folder(pedes):
    (pedes / "imgs" / "test").rename(pedes / "imgs" / "tset")
    with pytest.raises(FileNotFoundError, match=r"are not under .*imgs: test/0009_0.jpg, .* \(6 in all\)"):
        read(pedes)


@pytest.mark.parametrize("content", [b"[{", b"\xff\xfe", b""])
def test_invalid_json(pedes, content):
    (pedes / "reid_raw.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"reid_raw.json is not valid JSON: "):
        read(pedes)


def test_json_of_another_shape(pedes):
    (pedes / "reid_raw.json").write_text('{"train": []}')
    with pytest.raises(ValueError, match=r"reid_raw.json must hold a list of records, got dict"):
        read(pedes)


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"id": "7"}, "'id' must be of type int, got '7'"),
        ({"id": True}, "'id' must be of type int, got True"),
        ({"id": -1}, "'id' must be from 0 to 9223372036854775807, got -1"),
        ({"id": 2**63}, "'id' must be from 0 to 9223372036854775807, got 9223372036854775808"),
        ({"captions": 7}, "'captions' must be of type list, got 7"),
        ({"captions": []}, r"'captions' must be texts, at least one, got \[\]"),
        ({"captions": ["a man", None]}, "'captions' must be texts, at least one, got "),
        ({"file_path": 3}, "'file_path' must be of type str, got 3"),
        ({"file_path": ""}, "'file_path' must be a path below imgs/, got ''"),
        ({"file_path": "/etc/passwd"}, "'file_path' must be a path below imgs/, got '/etc/passwd'"),
        ({"file_path": "./a.jpg"}, "'file_path' must be written as 'a.jpg', got './a.jpg'"),
        ({"file_path": "cam//a.jpg"}, "'file_path' must be written as 'cam/a.jpg', got 'cam//a.jpg'"),
        ({"file_path": "cam/./a.jpg"}, "'file_path' must be written as 'cam/a.jpg', got 'cam/./a.jpg'"),
        ({"file_path": "cam/a.jpg/"}, "'file_path' must be written as 'cam/a.jpg', got 'cam/a.jpg/'"),
        ({"file_path": "cam/../a.jpg"}, "'file_path' must be a path below imgs/, got 'cam/../a.jpg'"),
        ({"file_path": "../a.jpg"}, "'file_path' must be a path below imgs/, got '../a.jpg'"),
        ({"split": None}, "'split' must be of type str, got None"),
    ],
)
def test_malformed_record(pedes, values, text):
    edit_records(pedes, lambda records: records[4].update(values))
    with pytest.raises(ValueError, match=rf"reid_raw.json has malformed records: record 4: {text}.* \(1 in all\)"):
        read(pedes)


def test_record_without_a_key_and_record_that_is_none(pedes):
    def change(records):
        del records[0]["captions"]
        records[2] = "train"

    edit_records(pedes, change)
    text = r"record 0: 'captions' is missing, record 2: expected an object, got str \(2 in all\)"
    with pytest.raises(ValueError, match=text):
        read(pedes)


def test_unknown_split(pedes):
    edit_records(pedes, lambda records: records[0].update(split="training"))
    text = r"names unknown splits, expected train, val or test: train/0001_0.jpg: 'training' \(1 in all\)"
    with pytest.raises(ValueError, match=text):
        read(pedes)


@pytest.mark.parametrize("caption", ["", " \n\t"])
def test_empty_caption(pedes, caption):
    edit_records(pedes, lambda records: records[5].update(captions=["a man", caption]))
    with pytest.raises(ValueError, match=r"has an empty caption for the images train/0002_2.jpg \(1 in all\)"):
        read(pedes)


def test_duplicate_file_path(pedes):
    edit_records(pedes, lambda records: records.append(records[0]))
    with pytest.raises(ValueError, match=r"names the same file_path more than once: train/0001_0.jpg \(1 in all\)"):
        read(pedes)


def test_identity_in_two_splits(pedes):
    edit_records(pedes, lambda records: records[-1].update(id=1))
    with pytest.raises(ValueError, match=r"has identities in more than one split: 1 in test and train \(1 in all\)"):
        read(pedes)


def test_empty_split(pedes):
    edit_records(pedes, lambda records: records.__setitem__(slice(None), [r for r in records if r["split"] != "val"]))
    with pytest.raises(ValueError, match=r"has no record in the splits val \(1 in all\)"):
        read(pedes)


def test_train_image_without_usable_texts(pedes):
    edit_line(pedes, 2, status="refused", identity=None)
    text = r'training images have no generated texts in .*: train/0001_1.jpg \(1 in all\); it needs .*"status": "ok"'
    with pytest.raises(ValueError, match=text):
        read(pedes)


def test_train_images_whose_texts_were_rejected_are_left_out_and_counted(pedes):
    edit_line(pedes, 2, status="rejected", reason="identity.leak: names a coat")
    dataset = read(pedes)
    assert describe(dataset).endswith("; 1 training image skipped: its generated texts were rejected")
    assert dataset.skipped_images == 1 and len(dataset.splits["train"]) == 17
    assert "train/0001_1.jpg" not in {record.file_path for record in dataset.splits["train"]}
    # A later attempt that went well counts.
    with (pedes / "descriptions.jsonl").open("a") as file:
        again = {"file_path": "train/0001_1.jpg", "identity": "a man", "clothing": "a coat", "status": "ok"}
        file.write(json.dumps(again) + "\n")
    assert read(pedes).skipped_images == 0 and "skipped" not in describe(read(pedes))
    assert describe(replace(dataset, skipped_images=3)).endswith(
        "; 3 training images skipped: their generated texts were rejected"
    )
    for line in range(1, 20):
        edit_line(pedes, line, status="rejected")
    with pytest.raises(ValueError, match=r"the texts of all 18 training images in .*descriptions.jsonl were rejected"):
        read(pedes)


@pytest.mark.parametrize("key", ["identity", "clothing"])
@pytest.mark.parametrize("value", ["  ", None])
def test_empty_generated_text(pedes, key, value):
    edit_line(pedes, 3, **{key: value})
    text = "descriptions.jsonl, line 3 has status ok, but no identity or no clothing text for train/0001_2.jpg"
    with pytest.raises(ValueError, match=text):
        read(pedes)


def test_second_description(pedes):
    edit_line(pedes, 2, file_path="train/0001_0.jpg")
    with pytest.raises(ValueError, match="line 2 is a second description of train/0001_0.jpg with status ok"):
        read(pedes)


def test_failed_attempt_beside_a_good_one_and_blank_lines_are_fine(pedes):
    with (pedes / "descriptions.jsonl").open("a") as file:
        file.write("\n" + json.dumps({"file_path": "train/0001_0.jpg", "status": "failed"}) + "\n")
    assert len(read(pedes).splits["train"]) == 18


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("{", "line 19 is not valid JSON: "),
        ("[]", "line 19 must be an object with the texts file_path and status"),
        ('{"file_path": "a.jpg"}', "line 19 must be an object with the texts file_path and status"),
    ],
)
def test_malformed_description(pedes, line, text):
    with (pedes / "descriptions.jsonl").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(ValueError, match=text):
        read(pedes)


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
