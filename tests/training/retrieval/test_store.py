"""Index of a gallery, and the search command on a small model with random weights."""

from __future__ import annotations

import io
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.support import contents
from tests.support.pedes_dataset import make_pedes
from tests.support.tiny_run import tiny_config
from training import search
from training.config import to_dict
from training.data.datasets import read_dataset
from training.data.loader import tokenize
from training.data.tokenizer import build_tokenizer, save_tokenizer
from training.engine import checkpoint
from training.evaluation.dual import embed_dual
from training.retrieval import gallery_search, store
from training.retrieval.store import Index, build_index, folder_records, index_key, load_index, save_index
from training.utils import cli

BETA = 0.5


def unit(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def make_index(images: int = 50, width: int = 8) -> Index:
    paths = tuple(f"{i}.jpg" for i in range(images))
    return Index(unit(images, width), unit(images, width, seed=1), paths, BETA, "key")


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


@pytest.mark.parametrize("chunk", [1, 7, 50, 1000])
def test_search_ranks_every_image_whatever_the_chunks(chunk, monkeypatch):
    monkeypatch.setattr(store, "CHUNK", chunk)
    index, text_QE = make_index(), unit(3, 8, seed=2)
    scores_QK, positions_QK = index.search(3.0 * text_QE, 10)
    expected_QG = text_QE.double() @ (index.v_id_GE.double() + BETA * index.v_clo_GE.double()).T
    expected = expected_QG.sort(dim=1, descending=True)
    assert torch.equal(positions_QK, expected.indices[:, :10])
    torch.testing.assert_close(scores_QK, expected.values[:, :10].float(), rtol=0, atol=1e-6)


def test_search_by_one_text_and_for_more_than_there_is():
    index, text_E = make_index(4), unit(8, seed=2)
    scores_K, positions_K = index.search(text_E, 100)
    assert scores_K.shape == (4,) and sorted(positions_K.tolist()) == [0, 1, 2, 3]
    assert torch.equal(index.search(text_E[None], 100)[1][0], positions_K)


@pytest.mark.parametrize("chunk", [2, 100])
def test_equal_scores_come_in_the_order_of_the_gallery(chunk, monkeypatch):
    monkeypatch.setattr(store, "CHUNK", chunk)
    same = unit(1, 8).expand(9, 8)
    index = Index(same, same, tuple("abcdefghi"), 0.0)
    assert index.search(unit(8, seed=1), 5)[1].tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("text", "k", "error", "match"),
    [
        (torch.ones(8, dtype=torch.int64), 1, TypeError, "the text embedding must be floating, got torch.int64"),
        (torch.ones(7), 1, ValueError, r"must have shape \(8,\) or \(Q, 8\), got \(7,\)"),
        (torch.ones(1, 1, 8), 1, ValueError, r"must have shape \(8,\) or \(Q, 8\), got \(1, 1, 8\)"),
        (torch.ones(8), 0, ValueError, "search: k must be at least 1, got 0"),
        (torch.zeros(8), 1, ValueError, "the text embedding is zero or not finite"),
        (torch.full((2, 8), torch.nan), 1, ValueError, "the text embedding is zero or not finite"),
    ],
)
def test_search_refuses_what_does_not_fit(text, k, error, match):
    with pytest.raises(error, match=match):
        make_index().search(text, k)


def test_index_survives_the_disk_and_a_failed_write(tmp_path, monkeypatch):
    index, path = make_index(), tmp_path / "index.pt"
    save_index(path, index)
    before, loaded = contents(tmp_path), load_index(path)
    assert (loaded.paths, loaded.beta, loaded.key) == (index.paths, BETA, "key")
    assert torch.equal(loaded.v_id_GE, index.v_id_GE) and torch.equal(loaded.v_clo_GE, index.v_clo_GE)
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        save_index(path, replace(index, beta=0.0))
    assert contents(tmp_path) == before


def test_another_file_is_no_index(tmp_path):
    checkpoint.save(tmp_path / "last.pt", {"model": {}, "epoch": 3})
    with pytest.raises(ValueError, match="last.pt is not an index: it holds epoch, model"):
        load_index(tmp_path / "last.pt")


def test_index_holds_the_embeddings_that_are_evaluated(run_dir, root):
    run = checkpoint.load_run(run_dir)
    records = read_dataset(run.config.data).splits["test"]
    run.model.train()
    index = build_index(run.model, records, run.config.data, beta=run.beta, batch_size=5)
    assert run.model.training
    dual = embed_dual(run.model, records, run.tokenizer, run.config)
    torch.testing.assert_close(index.v_id_GE, dual.v_id_GE, rtol=0, atol=1e-6)
    torch.testing.assert_close(index.v_clo_GE, dual.v_clo_GE, rtol=0, atol=1e-6)
    assert index.paths == tuple(str(root / "imgs" / record.file_path) for record in records)
    scores_QG = index.search(dual.t_QE, len(records))[0]
    expected_QG = dual.similarity(BETA).sort(dim=1, descending=True).values
    torch.testing.assert_close(scores_QG, expected_QG, rtol=0, atol=1e-6)


def test_empty_gallery_is_refused(run_dir):
    run = checkpoint.load_run(run_dir)
    with pytest.raises(ValueError, match="build_index: the gallery holds no image"):
        build_index(run.model, [], run.config.data, beta=0.0)


def test_folder_of_images(tmp_path):
    for name in ("b.JPG", "a/c.png", "notes.txt", "d.jpg/e.bmp"):
        (tmp_path / "g" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "g" / name).touch()
    assert [record.file_path for record in folder_records(tmp_path / "g")] == ["a/c.png", "b.JPG", "d.jpg/e.bmp"]
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder"):
        folder_records(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"holds no image file \(.bmp .jpeg .jpg .png .webp\)"):
        folder_records(tmp_path / "empty")


def test_key_changes_with_checkpoint_and_images(tmp_path):
    root = make_pedes(tmp_path / "data", ids={"train": 1, "val": 1, "test": 1})
    records, path = folder_records(root / "imgs/test"), tmp_path / "best.pt"
    path.write_bytes(b"weights")
    key = index_key(path, records)
    assert index_key(path, records) == key != index_key(path, records[:-1])
    path.write_bytes(b"Weights")
    assert index_key(path, records) != key
    path.write_bytes(b"weights")
    records[0].path.write_bytes(b"another picture")
    assert index_key(path, records) != key


def test_find_gives_the_best_images_of_the_test_split(run_dir, root):
    found = gallery_search.search_gallery(run_dir, "a tall person in a red shirt", 4, "test")
    run = checkpoint.load_run(run_dir)
    dual = embed_dual(run.model, read_dataset(run.config.data).splits["test"], run.tokenizer, run.config)
    with torch.inference_mode():
        t_1E = run.model.embed_texts(tokenize(run.tokenizer, ["a tall person in a red shirt"], 16))
    expected = replace(dual, t_QE=t_1E).similarity(BETA)[0].sort(descending=True).values[:4].tolist()
    assert [score for score, _ in found] == pytest.approx(expected, abs=1e-5)
    assert all(Path(path).is_file() and Path(path).parent == root / "imgs/test" for _, path in found)


def test_index_is_kept_until_something_changes(run_dir, root, monkeypatch):
    first, built = gallery_search.search_gallery(run_dir, "red", 3, "test"), []
    original = gallery_search.build_index
    monkeypatch.setattr(gallery_search, "build_index", lambda *a, **k: built.append(1) or original(*a, **k))
    assert gallery_search.search_gallery(run_dir, "red", 3, "test") == first and not built
    folder = gallery_search.search_gallery(run_dir, "red", 3, str(root / "imgs/val"))
    assert len(built) == 1 and all("imgs/val" in path for _, path in folder)
    (run_dir / "index.pt").write_bytes(b"damaged")
    assert gallery_search.search_gallery(run_dir, "red", 3, "test") == first and len(built) == 2


def test_table_keeps_long_paths_whole_and_unformatted():
    long = "/data/[bold]people[/bold]/" + "x" * 150 + ".jpg"
    out = io.StringIO()
    search.print_results([(0.75, long), (-0.125, "b.jpg")], out)
    rows = [re.split(r"\s*[│┃]\s*", line)[1:4] for line in out.getvalue().splitlines() if re.search(r"\.jpg", line)]
    assert rows == [["1", "0.7500", long], ["2", "-0.1250", "b.jpg"]]


def test_command_line(run_dir, root, tmp_path, capsys):
    assert cli.run(search.main, [str(run_dir), "a red shirt", "--k", "2"]) == 0
    assert capsys.readouterr().out.count(str(root / "imgs/test")) == 2
    wrong = {
        (str(tmp_path / "none"), "red"): "holds no trained model",
        (str(run_dir), "  "): "TEXT is empty, expected a description of a person",
        (str(run_dir), "red", "--k", "0"): "--k must be at least 1, got 0",
        (str(run_dir), "red", "--gallery", str(tmp_path / "none")): "no such folder",
    }
    for arguments, expected in wrong.items():
        assert cli.run(search.main, list(arguments)) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and expected in error and error.count("\n") == 1
