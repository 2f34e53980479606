"""reid_raw.json from caption_all.json, which is all that some people have of CUHK-PEDES, and a file of splits."""

import json
from pathlib import Path

import pytest

from tests.support.pedes_dataset import make_pedes
from training import prepare
from training.config import DataConfig
from training.data.datasets import read_dataset
from training.data.split_file import write_reid_raw
from training.utils import cli

IDS = {"train": [1, 2, 3, 4, 5, 6], "val": [7, 8], "test": [9, 10]}


@pytest.fixture
def mailed(tmp_path: Path) -> Path:
    """A set with caption_all.json in place of reid_raw.json."""
    root = make_pedes(tmp_path / "data")
    rows = json.loads((root / "reid_raw.json").read_text())
    (root / "caption_all.json").write_text(json.dumps([{k: v for k, v in r.items() if k != "split"} for r in rows]))
    (root / "reid_raw.json").unlink()
    return root


def as_object(path: Path) -> None:
    path.write_text(json.dumps(IDS))


def as_records(path: Path) -> None:
    rows = [{"id": i, "split": split, "captions": ["x"]} for split, ids in IDS.items() for i in ids]
    path.write_text(json.dumps(rows + rows))


def as_lines(path: Path) -> None:
    path.write_text("id,split\r\n" + "".join(f"{i},{split}\r\n" for split, ids in IDS.items() for i in ids))


def as_words(path: Path) -> None:
    path.write_text("\n".join(f"{i}\t{split}" for split, ids in IDS.items() for i in ids), encoding="utf-8-sig")


@pytest.mark.parametrize("write", [as_object, as_records, as_lines, as_words])
def test_the_set_can_be_read_with_any_form_of_splits(mailed: Path, write, capsys: pytest.CaptureFixture[str]) -> None:
    write(mailed / "splits")
    expected = read_dataset(DataConfig(root=str(make_pedes(mailed.parent / "same")))).splits
    assert cli.run(prepare.main, ["reid-raw", str(mailed), str(mailed / "splits")]) == 0
    assert "train 18 images, val 6 images, test 6 images" in capsys.readouterr().out
    splits = read_dataset(DataConfig(root=str(mailed))).splits
    for name, records in expected.items():
        assert [(r.file_path, r.id, r.captions) for r in records] == [
            (r.file_path, r.id, r.captions) for r in splits[name]
        ]


def test_the_refusal_of_caption_all_names_the_command(mailed: Path) -> None:
    with pytest.raises(FileNotFoundError, match="python -m training.prepare reid-raw ROOT SPLITS"):
        read_dataset(DataConfig(root=str(mailed)))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (
            json.dumps(IDS | {"val": [7]}),
            r"identities of caption_all.json have no split in .*: 8 \(1 in all\); the split of",
        ),
        (
            json.dumps(IDS | {"val": [7, 8, 77]}),
            r"identities of .* have no record in caption_all.json: 77 \(1 in all\)",
        ),
        (json.dumps(IDS | {"val": [7, 8, 9]}), r"has two splits for the identities 9 \(1 in all\)"),
        (
            "1,train\n2,validation\n",
            r"entry 2 must be an identity and its split, train, val or test, got \('2', 'valid",
        ),
        ('["1"]', r"entry 1 must be an identity and its split"),
        ("{", "is not valid JSON"),
    ],
)
def test_wrong_split_files_write_nothing(mailed: Path, content: str, expected: str) -> None:
    (mailed / "splits").write_text(content)
    with pytest.raises(ValueError, match=expected):
        write_reid_raw(mailed, mailed / "splits")
    assert not (mailed / "reid_raw.json").exists()


def test_other_missing_and_existing_files(mailed: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"there is no split file .*; the split of the authors is in the reid_raw"
    ):
        write_reid_raw(mailed, mailed / "none")
    (mailed / "splits").write_text(json.dumps(IDS))
    content = (mailed / "caption_all.json").read_text()
    (mailed / "caption_all.json").write_text("{}")
    with pytest.raises(ValueError, match="must hold a list of records with whole numbers as ids"):
        write_reid_raw(mailed, mailed / "splits")
    (mailed / "caption_all.json").write_text(content)
    write_reid_raw(mailed, mailed / "splits")
    with pytest.raises(FileExistsError, match="exists and has the splits; it is not overwritten"):
        write_reid_raw(mailed, mailed / "splits")
