"""Annotation files of all data sets: what each reader makes of its file, and the errors that are its own."""

import json
import random

import pytest

from tests.support.html import Page
from tests.support.pedes_dataset import ALLOW_COUNTS, as_layout, finding_texts, make_pedes
from tests.support.tiny_run import tiny_options
from training import evaluate, train
from training.config import DataConfig
from training.data.datasets import SPLITS, read_dataset, read_records
from training.data.readers import LAYOUTS
from training.data.splits import hold_out
from training.data.validation.validate import validate_dataset
from training.evaluation.run_folder import read_run
from training.report.run_page import build_page
from training.utils import cli

FILES = [
    ("cuhk-pedes", "reid_raw.json"),
    ("icfg-pedes", "ICFG-PEDES.json"),
    ("icfg-pedes", "ICFG_PEDES.json"),
    ("rstpreid", "data_captions.json"),
    ("own", "records.jsonl"),
    ("own", "records.csv"),
]


def read(root, name):
    return read_records(DataConfig(dataset=name, root=str(root)))


def make(root, name, file):
    return make_pedes(root) if name == "cuhk-pedes" else as_layout(make_pedes(root), name, file)


@pytest.mark.parametrize(("name", "file"), FILES)
def test_records_of_every_layout(tmp_path, name, file):
    original = [r for records in read(make_pedes(tmp_path / "original"), "cuhk-pedes").values() for r in records]
    splits = read(make(tmp_path / "set", name, file), name)
    records = [r for split in SPLITS for r in splits[split]]
    assert sorted(r.file_path for r in records) == sorted(r.file_path for r in original)
    source = {r.file_path: r for r in original}
    for record in records:
        expected = source[record.file_path]
        assert record.path == tmp_path / "set" / "imgs" / record.file_path and record.path.is_file()
        assert record.id == expected.id - (name in ("icfg-pedes", "rstpreid"))
        assert record.captions == (expected.captions[:1] if name == "icfg-pedes" else expected.captions)
        if name != "icfg-pedes":
            assert record.split == expected.split
        assert (record.identity, record.clothing) == ("", "")
    assert len({r.id for r in splits["test"]}) == 2


@pytest.mark.parametrize(("name", "file"), FILES)
def test_a_data_set_of_every_layout(tmp_path, name, file):
    dataset = read_dataset(DataConfig(dataset=name, root=str(make(tmp_path / "set", name, file))))
    assert dataset.name == name and all(r.identity and r.clothing for r in dataset.splits["train"])
    if name == "icfg-pedes":
        assert dataset.split.startswith("val: 1 of 8 training ids held out (seed 0, ids ")
        assert dataset.num_train_ids == 7
    else:
        assert dataset.split == "train, val and test as the file has them"


def test_held_out_identities_do_not_depend_on_the_order_of_the_file():
    rows = [{"id": i // 2, "split": "train" if i < 400 else "test", "file_path": str(i)} for i in range(500)]
    held, sentence = hold_out(rows)
    of = {row["file_path"]: row["split"] for row in held}
    random.Random(0).shuffle(rows)
    again, same = hold_out(rows)
    assert {row["file_path"]: row["split"] for row in again} == of and same == sentence
    splits = {row["id"]: set() for row in held}
    for row in held:
        splits[row["id"]].add(row["split"])
    assert all(len(names) == 1 for names in splits.values())
    assert sum(names == {"val"} for names in splits.values()) == 20
    assert [row["file_path"] for row in held if row["split"] == "test"] == [str(i) for i in range(400, 500)]
    # The choice is part of what a result means: it must never change.
    assert sorted({row["id"] for row in held if row["split"] == "val"})[:5] == FIRST_HELD_OUT


FIRST_HELD_OUT = [10, 16, 31, 46, 74]


def test_the_held_out_split_is_in_the_fingerprint(tmp_path, monkeypatch):
    root = make(tmp_path / "set", "icfg-pedes", "ICFG-PEDES.json")
    config = DataConfig(dataset="icfg-pedes", root=str(root))
    before = read_dataset(config)
    monkeypatch.setattr("training.data.splits.SEED", 1)
    after = read_dataset(config)
    assert before.fingerprint != after.fingerprint and before.split != after.split


def test_two_names_of_the_icfg_file(tmp_path):
    root = make(tmp_path / "set", "icfg-pedes", "ICFG-PEDES.json")
    (root / "ICFG_PEDES.json").write_bytes((root / "ICFG-PEDES.json").read_bytes())
    assert len(read(root, "icfg-pedes")["test"]) == 6
    (root / "ICFG_PEDES.json").write_text("[]")
    with pytest.raises(
        ValueError, match="holds ICFG-PEDES.json and ICFG_PEDES.json with different contents: keep only"
    ):
        read(root, "icfg-pedes")


def test_an_icfg_file_with_a_validation_split_keeps_it(tmp_path):
    root = make_pedes(tmp_path / "set")
    (root / "reid_raw.json").rename(root / "ICFG-PEDES.json")
    dataset = read_dataset(DataConfig(dataset="icfg-pedes", root=str(root)))
    assert len(dataset.splits["val"]) == 6 and dataset.split == "train, val and test as the file has them"


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_folder_without_the_file_names_it(tmp_path, name):
    expected = f"there is no file .*{LAYOUTS[name].files[0]}; a data folder of {name} holds {LAYOUTS[name].files[0]}"
    with pytest.raises(FileNotFoundError, match=expected):
        read(tmp_path, name)


def test_captions_without_splits_cannot_take_the_place_of_the_records(tmp_path):
    (tmp_path / "caption_all.json").write_text("[]")
    with pytest.raises(FileNotFoundError, match="caption_all.json has no splits: `python -m training.prepare reid-raw"):
        read(tmp_path, "cuhk-pedes")


def test_captions_as_one_text_and_paths_below_imgs(tmp_path):
    root = make_pedes(tmp_path / "set")
    records = json.loads((root / "reid_raw.json").read_text())
    for record in records:
        record |= {"captions": record["captions"][0], "file_path": f"imgs/{record['file_path']}"}
    (root / "reid_raw.json").write_text("\ufeff" + json.dumps(records), encoding="utf-8")
    first = read(root, "cuhk-pedes")["train"][0]
    assert first.file_path == "train/0001_0.jpg" and first.captions == (records[0]["captions"],)


def own(tmp_path, name, text):
    root = make_pedes(tmp_path / "set")
    (root / name).write_text(text, encoding="utf-8")
    return root


LINES = {split: f"{split}/{id:04d}_0.jpg" for split, id in (("train", 1), ("val", 7), ("test", 9))}


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_a_table_as_spreadsheets_write_it(tmp_path, delimiter):
    rows = [["caption", "split", "note", "id", "file_path"]]
    for id, (split, path) in enumerate(LINES.items(), 5):
        rows += [
            [f'"a man{delimiter} in a ""red"" coat"', split, "", f"0{id}", path],
            ["short", split, "x", f" {id}", path],
        ]
    text = "\ufeff" + "\r\n".join(delimiter.join(row) for row in rows) + "\r\n"
    records = read(own(tmp_path, "records.csv", text), "own")
    assert [(r.id, r.captions) for split in SPLITS for r in records[split]] == [
        (id, (f'a man{delimiter} in a "red" coat', "short")) for id in (5, 6, 7)
    ]


@pytest.mark.parametrize("form", ["one line an image", "one line a caption"])
def test_json_lines_of_images_or_captions(tmp_path, form):
    lines = []
    for id, (split, path) in enumerate(LINES.items()):
        row = {"file_path": path, "id": id, "split": split}
        if form == "one line an image":
            lines.append(row | {"captions": ["a man", "a man\u2028 in red"]})
        else:
            lines += [row | {"caption": "a man"}, row | {"caption": "a man\u2028 in red"}]
    text = "\n\n".join(json.dumps(line, ensure_ascii=False) for line in lines)
    records = read(own(tmp_path, "records.jsonl", text), "own")
    assert all(records[split][0].captions == ("a man", "a man\u2028 in red") for split in SPLITS)


@pytest.mark.parametrize(
    ("name", "text", "error"),
    [
        (
            "records.csv",
            "file_path,id,caption\n",
            "must have the columns file_path, id, split, caption once each, missing: split",
        ),
        ("records.csv", "", "must have the columns .*, missing: file_path, id, split, caption"),
        (
            "records.csv",
            "file_path,id,split,caption\na.jpg,p12,train,a man\n",
            r"records.csv has malformed records: line 2: 'id' must be of type int, got 'p12' \(1 in all\)",
        ),
        (
            "records.csv",
            "file_path,id,split,caption\na.jpg,1,train\n",
            r"records.csv, line 2 has 3 cells, expected 4 as in its header; a caption that holds ',' must be in quotes",
        ),
        (
            "records.csv",
            "file_path,id,split,caption\na.jpg,1,train,x\n\nb.jpg,1,train,A tall man, in a red coat, with a bag.\n",
            r"records.csv, line 4 has 6 cells, expected 4 as in its header; a caption that holds ',' must be in quotes",
        ),
        (
            "records.csv",
            "caption;file_path;id;split\na man; red;a.jpg;1;train\n",
            "records.csv, line 2 has 5 cells, expected 4 as in its header; a caption that holds ';' must be in quotes",
        ),
        (
            "records.csv",
            "file_path,id,split,caption,caption\na.jpg,1,train,x,y\n",
            "must have the columns file_path, id, split, caption once each, more than once there: caption",
        ),
        (
            "records.csv",
            'file_path,id,split,caption\na.jpg,1,train,"a man\nb.jpg,2,val,a man\nc.jpg,3,test,a man\n',
            "records.csv, line 2 cannot be read as a table: .*; a cell that begins with a quote must end with one",
        ),
        (
            "records.csv",
            'file_path,id,split,caption\na.jpg,1,train,x\na.jpg,1,train,"NIKE" shirt\n',
            "records.csv, line 3 cannot be read as a table: .* and quotes in it are doubled",
        ),
        (
            "records.jsonl",
            '{"file_path": "a.jpg", "id": 1, "split": "train", "caption": "x", "captions": ["y"]}',
            "records.jsonl, line 1 has both 'caption' and 'captions', expected one of them",
        ),
        (
            "records.csv",
            "file_path,id,split,caption\na.jpg,1,train,x\n./a.jpg,2,test,x\n",
            r"malformed records: line 3: 'file_path' must be written as 'a.jpg', got './a.jpg' \(1 in all\)",
        ),
        (
            "records.csv",
            "file_path,id,split,caption\na.jpg,1,train,x\na.jpg,2,train,y\na.jpg,1,val,z\n",
            r"an image a second identity or split: a.jpg in line 3, a.jpg in line 4 \(2 in all\)",
        ),
        (
            "records.csv",
            'file_path,id,split,caption\na.jpg,1,train,"' + "never closed " * 20_000,
            "records.csv, line 2 cannot be read as a table: ",
        ),
        ("records.jsonl", '{"file_path": "a.jpg"}\n{', "records.jsonl, line 2 is not valid JSON: "),
        ("records.jsonl", '\n[1]\n{"id": 3}', "line 2: expected an object, got list, line 3: 'split' is missing"),
        ("records.jsonl", "", r"has no record in the splits train, val, test \(3 in all\)"),
    ],
)
def test_errors_of_own_data(tmp_path, name, text, error):
    with pytest.raises(ValueError, match=error):
        read(own(tmp_path, name, text), "own")


def test_own_data_that_is_no_text_or_twice_there(tmp_path):
    root = own(tmp_path, "records.csv", "")
    (root / "records.csv").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="records.csv is not UTF-8 text: "):
        read(root, "own")
    (root / "records.jsonl").write_text("{}")
    with pytest.raises(ValueError, match="holds records.jsonl and records.csv with different contents"):
        read(root, "own")


def test_cells_that_no_column_needs_may_be_left_out(tmp_path):
    header, quoted = "file_path,id,split,caption,note,note", '"a man\nin red"'
    lines = [f"{path},{id},{split},{quoted},x" for id, (split, path) in enumerate(LINES.items())]
    records = read(own(tmp_path, "records.csv", "\n".join([header, *lines])), "own")
    assert [records[split][0].captions for split in SPLITS] == [("a man\nin red",)] * 3


def test_too_few_people_to_hold_out_one(tmp_path):
    root = as_layout(make_pedes(tmp_path / "four", {"train": 4, "val": 1, "test": 2}), "icfg-pedes", "ICFG-PEDES.json")
    text = "no record has the split val, and of 5 training ids none is held out for it: at least 6 are needed"
    with pytest.raises(ValueError, match=f"ICFG-PEDES.json: {text}"):
        read(root, "icfg-pedes")
    result = validate_dataset("icfg-pedes", root, ALLOW_COUNTS)
    assert result.verdict == "no" and finding_texts(result, "validation split") == [("error", text)]
    root = as_layout(make_pedes(tmp_path / "five", {"train": 5, "val": 1, "test": 2}), "icfg-pedes", "ICFG-PEDES.json")
    assert len({record.id for record in read(root, "icfg-pedes")["val"]}) == 1
    assert validate_dataset("icfg-pedes", root, ALLOW_COUNTS).verdict == "yes"


def test_a_run_says_which_identities_validate(tmp_path):
    """From training to the page of the run, on a set that has no validation split."""
    root = make_pedes(tmp_path / "set", {"train": 18, "val": 2, "test": 3})
    as_layout(root, "icfg-pedes", "ICFG_PEDES.json")
    run_dir, words = tmp_path / "run", [*tiny_options(root), "--data.dataset", "icfg-pedes"]
    assert cli.run(train.main, ["synthetic", "--out", str(run_dir), *words]) == 0
    assert cli.run(evaluate.main, [str(run_dir)]) == 0
    data = json.loads((run_dir / "eval.json").read_text())["data"]
    assert data["name"] == "icfg-pedes" and data["split"].startswith("val: 2 of 20 training ids held out (seed 0, ids ")
    assert {split: counts["ids"] for split, counts in data["counts"].items()} == {"train": 18, "val": 2, "test": 3}
    assert data["split"] in Page(build_page(read_run(run_dir))).words()
