"""Folders that a synthetic data set is written to: used, finished, interrupted, and parameters that are refused."""

import json

import pytest

from training import prepare
from training.synthetic.dataset import generate
from training.utils import cli


def test_a_used_folder_is_refused_and_left_alone(tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="already exists and is not an empty folder; nothing was written"):
        generate(tmp_path, ids=5)
    assert cli.run(prepare.main, ["synthetic", str(tmp_path), "--ids", "5"]) == 2
    assert capsys.readouterr().err.startswith(f"error: {tmp_path} already exists")
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_finished_set_is_left_as_it_is_by_the_same_command_only(tmp_path):
    summary = generate(tmp_path / "set", ids=4, images_per_id=2)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "set").rglob("*")}
    assert generate(tmp_path / "set", ids=4, images_per_id=2) == summary
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "set").rglob("*")} == before
    with pytest.raises(FileExistsError, match="already exists"):
        generate(tmp_path / "set", ids=4, images_per_id=2, seed=1)
    next((tmp_path / "set").glob("imgs/*/*")).unlink()
    with pytest.raises(FileExistsError, match="already exists"):
        generate(tmp_path / "set", ids=4, images_per_id=2)


@pytest.mark.parametrize("content", ["", "[1]", "{}", '{"counts": 3}', '{"counts": {"train": 1}}'])
def test_a_damaged_summary_is_not_a_finished_set(tmp_path, content):
    (tmp_path / "synthetic.json").write_text(content)
    with pytest.raises(FileExistsError, match="already exists"):
        generate(tmp_path, ids=5)


def test_the_command_fills_an_empty_folder(tmp_path, capsys):
    (tmp_path / "set").mkdir()
    command = ["synthetic", str(tmp_path / "set"), "--ids", "4", "--images-per-id", "2", "--test-ids", "2"]
    assert cli.run(prepare.main, command) == 0
    assert "identities" in capsys.readouterr().err
    counts = json.loads((tmp_path / "set" / "synthetic.json").read_text())["counts"]
    assert counts["test"] == {"ids": 2, "images": 4, "captions": 8}


def test_an_interrupted_run_leaves_nothing(tmp_path):
    def stop(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate(tmp_path / "set", ids=5, progress=stop)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"ids": 2}, ValueError, "ids must be at least 3, got 2"),
        ({"images_per_id": 1}, ValueError, "images_per_id must be at least 2, got 1"),
        ({"height": 100}, ValueError, "height must be at least 160, got 100"),
        ({"width": 48}, ValueError, "width must be at least 64, got 48"),
        ({"val_ids": 0}, ValueError, "val_ids must be at least 1, got 0"),
        ({"val_ids": 3, "test_ids": 2}, ValueError, r"3 \+ 2 must leave identities for training, got ids = 5"),
        ({"seed": 1.5}, TypeError, "seed must be an integer, got 1.5"),
        ({"workers": 0}, ValueError, "workers must be at least 1, got 0"),
    ],
)
def test_bad_parameters(tmp_path, changed, error, message):
    with pytest.raises(error, match=message):
        generate(tmp_path / "set", **({"ids": 5} | changed))
    assert list(tmp_path.iterdir()) == []
