"""Commands `search` and `gallery` on a small model with random weights, against the evaluation."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.support import contents
from tests.support.tiny_run import tiny_config
from training import gallery as gallery_command
from training import search
from training.config import to_dict
from training.data.datasets import read_dataset
from training.data.loader import tokenize
from training.data.tokenizer import build_tokenizer, save_tokenizer
from training.engine import checkpoint
from training.evaluation.dual import embed_dual
from training.retrieval import gallery_search
from training.retrieval.embedders import TorchEmbedder, open_embedder
from training.retrieval.engines.faiss_engine import CellSearch
from training.retrieval.finder import Result
from training.retrieval.outputs import contact_sheet, copy_images, csv_cell, results_csv
from training.retrieval.store import Gallery, ImageRow
from training.utils import cli
from training.utils.io import write_record

BETA = 0.5
TEXT = "a tall person in a red shirt"


@pytest.fixture(scope="module")
def saved(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of a run that a search needs: best.pt and tokenizer/."""
    run_dir, config, dataset = tmp_path_factory.mktemp("runs"), tiny_config(root), read_dataset(tiny_config(root).data)
    tokenizer = build_tokenizer(config.model.text, [text for r in dataset.splits["train"] for text in r.captions])
    torch.manual_seed(0)
    weights = checkpoint.build_model(config, tokenizer).state_dict()
    numbers = {"epoch": 1, "step": 1, "beta": BETA, "fingerprint": dataset.fingerprint}
    checkpoint.save(run_dir / "best.pt", {"model": weights, "config": to_dict(config), **numbers})
    save_tokenizer(tokenizer, run_dir / "tokenizer")
    return run_dir


@pytest.fixture
def run_dir(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "run"))


def run_search(capsys, *words: object) -> dict:
    assert cli.run(search.main, [*map(str, words), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def kept_files(folder: Path) -> dict[str, bytes]:
    """The files of a folder without those by which SQLite's readers and writers tell each other of themselves."""
    return {name: content for name, content in contents(folder).items() if not name.endswith(("-shm", "-wal"))}


def scores(found: dict) -> dict[str, float]:
    return {result["path"]: result["score"] for result in found["results"]}


def test_search_gives_the_scores_of_the_evaluation(run_dir, root, capsys):
    found = run_search(capsys, run_dir, TEXT, "--k", 24)["results"]
    run = checkpoint.load_run(run_dir)
    dual = embed_dual(run.model, read_dataset(run.config.data).splits["test"], run.tokenizer, run.config)
    with torch.inference_mode():
        t_1E = run.model.embed_texts(tokenize(run.tokenizer, [TEXT], 16))
    expected = replace(dual, t_QE=t_1E).similarity(BETA)[0].sort(descending=True).values.tolist()
    assert [result["score"] for result in found] == pytest.approx(expected, abs=1e-5)
    assert all(r["score"] == pytest.approx(r["identity"] + BETA * r["clothing"], abs=1e-6) for r in found)
    assert {Path(r["path"]).parent for r in found} == {root / "imgs/test"}
    identity_only = run_search(capsys, run_dir, TEXT, "--k", 24, "--beta", 0)["results"]
    assert [r["score"] for r in identity_only] == sorted((r["identity"] for r in found), reverse=True)


def test_galleries_of_a_run_stand_side_by_side_and_follow_their_images(run_dir, root, tmp_path, capsys, monkeypatch):
    folder = Path(shutil.copytree(root / "imgs/val", tmp_path / "photos"))
    first, embedded = run_search(capsys, run_dir, "red"), []
    original = TorchEmbedder.embed_images
    monkeypatch.setattr(TorchEmbedder, "embed_images", lambda self, x: embedded.append(len(x)) or original(self, x))
    assert run_search(capsys, run_dir, "red", "--gallery", folder)["results"] and embedded == [6]
    assert run_search(capsys, run_dir, "red") == first and embedded == [6]
    shutil.copy(root / "imgs/test/0009_0.jpg", folder / "new.jpg")
    gone = sorted(folder.glob("*.jpg"))[0]
    gone.unlink()
    names = [Path(r["path"]).name for r in run_search(capsys, run_dir, "red", "--gallery", folder)["results"]]
    assert embedded == [6, 1] and "new.jpg" in names and gone.name not in names and len(names) == 6
    before = kept_files(run_dir)
    for spelling in (folder, folder / "..//photos", f"/{folder}"):
        run_search(capsys, run_dir, "red", "--gallery", spelling)
        assert kept_files(run_dir) == before


def test_a_new_checkpoint_does_not_search_old_embeddings(run_dir, root, capsys):
    run_search(capsys, run_dir, "red")
    state = checkpoint.load(run_dir / "best.pt")
    checkpoint.save(run_dir / "best.pt", state | {"step": 2})
    assert cli.run(search.main, [str(run_dir), "red"]) == 0
    assert "rank" in capsys.readouterr().out


def test_a_run_folder_that_cannot_be_written_keeps_its_galleries_elsewhere(run_dir, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("os.access", lambda path, mode: not str(path).startswith(str(run_dir)))
    before = contents(run_dir)
    run_search(capsys, run_dir, "red")
    assert contents(run_dir) == before and list(tmp_path.glob("cache/bdam_fast/galleries/*/test/gallery.db"))


def test_a_damaged_image_does_not_stop_a_search(run_dir, root, tmp_path, capsys):
    folder = Path(shutil.copytree(root / "imgs/val", tmp_path / "photos"))
    (folder / "broken.jpg").write_bytes((folder / "0007_0.jpg").read_bytes()[:300])
    assert cli.run(search.main, [str(run_dir), "red", "--gallery", str(folder)]) == 0
    out, err = capsys.readouterr()
    assert out.count(".jpg") == 6 and err.count("left out: ") == 1 and "broken.jpg" in err
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/a.jpg").write_bytes(b"x")
    assert cli.run(search.main, [str(run_dir), "red", "--gallery", str(tmp_path / "bad")]) == 2
    assert "holds no image that can be read" in capsys.readouterr().err


def test_gallery_command_from_end_to_end(run_dir, root, tmp_path, capsys):
    gallery, photos = str(tmp_path / "g"), Path(shutil.copytree(root / "imgs/test", tmp_path / "photos"))
    (photos / "bad.jpg").write_bytes(b"x")
    facts = tmp_path / "facts.csv"
    facts.write_text("path,camera,time,site\n0009_0.jpg,gate,10,north\n0009_1.jpg,door,20,south\nno.jpg,,,\n")
    words = ["add", gallery, str(photos), "--run", str(run_dir), "--metadata", str(facts), "--batch-size", "7"]
    assert cli.run(gallery_command.main, words) == 0
    out, err = capsys.readouterr()
    assert "24 added, 0 replaced, 0 present, 1 unreadable" in out and "24 images" in out
    assert "left out: " in err and "bad.jpg" in err and "metadata of 1 paths" in err
    assert cli.run(gallery_command.main, ["info", gallery]) == 0
    out = capsys.readouterr().out
    assert "images    24" in out and "gate (1)" in out and "0:00:10 to 0:00:20" in out and "faiss" not in out
    write_record(Path(gallery) / "faiss-0.json", CellSearch(24, 16, 4, 9, 0.995, 0.99))
    assert cli.run(gallery_command.main, ["info", gallery]) == 0
    out = capsys.readouterr().out
    assert "of 16 cells the nearest 4 are searched, which hold 99.5 %" in out and "alone 9, 99.0 %" in out
    filters = {
        ("--camera", "gate", "door"): 2,
        ("--where", "site=north"): 1,
        ("--start", "15"): 1,
        ("--camera", "x"): 0,
    }
    for words, count in filters.items():
        assert len(run_search(capsys, run_dir, "red", "--gallery", gallery, *words)["results"]) == count
    assert cli.run(gallery_command.main, ["check", gallery, "--content"]) == 0
    assert "24 images, no fault" in capsys.readouterr().out
    (photos / "0009_0.jpg").unlink()
    assert cli.run(gallery_command.main, ["check", gallery]) == 2
    out, err = capsys.readouterr()
    assert "0009_0.jpg: the file does not exist" in out and "1 of 24 images" in err and "need attention" in err
    assert cli.run(gallery_command.main, ["remove", gallery, "--missing"]) == 0
    assert cli.run(gallery_command.main, ["remove", gallery, str(photos)]) == 0
    assert "23 removed; 0 images" in capsys.readouterr().out


def test_gallery_command_refuses_what_it_cannot_do(run_dir, root, tmp_path, capsys):
    gallery, photos = str(tmp_path / "g"), root / "imgs/val"
    assert cli.run(gallery_command.main, ["add", gallery, str(photos), "--run", str(run_dir)]) == 0
    capsys.readouterr()
    wrong = {
        ("remove", gallery): "expected paths to remove, or --missing",
        ("add", gallery, str(photos)): "expected one of --run RUN and --onnx FOLDER",
        (
            "add",
            gallery,
            str(photos),
            "--run",
            str(run_dir),
            "--batch-size",
            "0",
        ): "--batch-size must be at least 1, got 0",
        ("info", str(tmp_path)): "is no gallery",
    }
    for words, text in wrong.items():
        assert cli.run(gallery_command.main, list(words)) == 2
        assert text in capsys.readouterr().err
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/a.jpg").write_bytes(b"x")
    words = ["add", str(tmp_path / "h"), str(tmp_path / "bad"), "--run", str(run_dir)]
    assert cli.run(gallery_command.main, words) == 2
    assert "holds no image that can be read" in capsys.readouterr().err


def test_queries_of_several_texts_images_and_from_standard_input(run_dir, root, capsys, monkeypatch):
    image = root / "imgs/test/0009_1.jpg"
    found = run_search(capsys, run_dir, "--image", image, "--k", 2, "--beta", 1)
    assert found["results"][0]["path"] == str(image) and found["results"][0]["score"] == pytest.approx(2, abs=1e-4)
    single, double = (run_search(capsys, run_dir, *texts, "--k", 5) for texts in (["red"], ["red", "red"]))
    assert scores(double) == pytest.approx(scores(single), abs=1e-6)
    away = run_search(capsys, run_dir, "red", "blue shirt", "--weights", "1", "-0.5", "--k", 5)
    assert scores(away) != pytest.approx(scores(single), abs=1e-3)
    monkeypatch.setattr("sys.stdin", io.StringIO("red\n\n  a zzzyzx shirt \n"))
    assert cli.run(search.main, [str(run_dir), "-", "--json", "--k", "5"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["query"] for line in lines] == [["red"], ["a zzzyzx shirt"]]
    assert lines[0]["results"] == single["results"]
    assert lines[1]["notes"] == ["words that the model has not learned: zzzyzx"]


def test_results_as_files(run_dir, root, tmp_path, capsys):
    page, folder = tmp_path / "page.html", tmp_path / "copies"
    words = [str(run_dir), "red <b>", "--k", "3", "--csv", "--html", str(page), "--copy-to", str(folder)]
    assert cli.run(search.main, words) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["rank"] for row in rows] == ["1", "2", "3"]
    names = [f"{i:05}_{Path(row['path']).name}" for i, row in enumerate(rows, 1)]
    assert sorted(path.name for path in folder.iterdir()) == names
    text = page.read_text()
    assert text.count("data:image/jpeg;base64,") == 3 and "red &lt;b&gt;" in text
    assert not re.search(r'(src|href)="(?!data:)', text)
    assert cli.run(search.main, words) == 2
    assert "copies is not empty; give a new folder" in capsys.readouterr().err


def row(path: str, **more: str) -> Result:
    return Result(ImageRow(path, 1, 1, "0" * 64, "=cmd()", None, more), -0.5, -0.5, 0.0)


def test_a_spreadsheet_executes_no_cell():
    cells = next(csv.DictReader(io.StringIO(results_csv([row("+1.jpg", site="@x", lens="a\nb")]))))
    assert (cells["path"], cells["camera"], cells["site"], cells["score"]) == ("'+1.jpg", "'=cmd()", "'@x", "-0.5")
    assert cells["lens"] == "a\nb" and csv_cell("-1") == "'-1" and csv_cell(-1) == -1


def test_a_sheet_escapes_and_says_what_is_missing(tmp_path):
    text = contact_sheet("<x>", "y", [("Confirmed", [row("<img src=x>.jpg")]), ("Rejected", [])])
    assert "<img src=x>" not in text and "&lt;x&gt;" in text and "no image" in text and "No image." in text
    assert copy_images([row("/nowhere/a.jpg")], tmp_path / "c") == 0


def test_table_keeps_long_paths_whole_and_unformatted():
    long = "/data/[bold]people[/bold]/" + "x" * 150 + ".jpg"
    out = io.StringIO()
    search.print_results([(0.75, None, long), (-0.125, None, "b.jpg")], out)
    rows = [re.split(r"\s*[│┃]\s*", line)[1:4] for line in out.getvalue().splitlines() if re.search(r"\.jpg", line)]
    assert rows == [["1", "0.7500", long], ["2", "-0.1250", "b.jpg"]]
    empty = io.StringIO()
    search.print_results([], empty)
    assert empty.getvalue() == "no image fits\n"


def test_command_line(run_dir, root, tmp_path, capsys):
    assert cli.run(search.main, [str(run_dir), "a red shirt", "--k", "2"]) == 0
    assert capsys.readouterr().out.count(str(root / "imgs/test")) == 2
    assert cli.run(search.main, [str(run_dir), "a red shirt", "--least", "9"]) == 0
    assert capsys.readouterr().out == "no image fits\n"
    run = str(run_dir)
    wrong = {
        (str(tmp_path / "none"), "red"): "holds no trained model",
        (run, "  "): "TEXT is empty, expected a description of a person",
        (run,): "expected a TEXT, or --image FILE",
        (run, "red", "--k", "0"): "--k must be at least 1, got 0",
        (run, "red", "--gallery", str(tmp_path / "none")): "no such folder",
        (run, "red", "--weights", "1", "2"): "--weights needs one number for each of 1 texts, got 2",
        (run, "red", "--json", "--csv"): "expected --json or --csv, got both",
        (run, "-", "--csv"): "hold the results of one query, TEXT - reads many",
        (run, "red", "--where", "site"): "--where must be COLUMN=VALUE, got 'site'",
        (run, "red", "--start", "soon"): "--start: time must be seconds or ISO 8601",
        (run, "red", "--beta", "-1"): "beta must be a number from 0",
    }
    for arguments, expected in wrong.items():
        assert cli.run(search.main, list(arguments)) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and expected in error and error.count("\n") == 1


def test_an_embedder_is_of_one_model(run_dir):
    with pytest.raises(ValueError, match="expected one of --run RUN and --onnx FOLDER"):
        open_embedder(run_dir, run_dir)
    assert isinstance(open_embedder(run_dir, None), TorchEmbedder)


def test_a_gallery_of_another_run_is_refused(run_dir, root, tmp_path, capsys):
    gallery = str(tmp_path / "g")
    assert cli.run(gallery_command.main, ["add", gallery, str(root / "imgs/val"), "--run", str(run_dir)]) == 0
    state = checkpoint.load(run_dir / "best.pt")
    checkpoint.save(run_dir / "best.pt", state | {"step": 2})
    assert cli.run(search.main, [str(run_dir), "red", "--gallery", gallery]) == 2
    assert "was made with another model" in capsys.readouterr().err
    assert Gallery(gallery).count() == 6 and gallery_search.GALLERIES == "galleries"
