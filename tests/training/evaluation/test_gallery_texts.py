"""From generated texts of gallery images to the results of the protocol gallery-text."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support import contents
from tests.support.generated_texts import lines
from tests.support.tiny_run import tiny_config
from training import evaluate
from training.data.datasets import read_dataset, read_gallery_texts
from training.describe import __main__ as describe
from training.evaluation import run_evaluation
from training.evaluation.protocols.protocol_names import PROTOCOLS, WITH_TEXTS
from training.synthetic.dataset import generate as render
from training.train import train
from training.utils import cli
from training.utils.io import read_json


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a rendered set, a run trained on it, and texts of the gallery, whose images have no others."""
    folder = tmp_path_factory.mktemp("made")
    render(folder / "set", 8, height=160, width=64, val_ids=1, test_ids=4)
    held = {r.file_path for r in read_dataset(tiny_config(folder / "set").data).splits["test"]}
    keep(folder / "set/descriptions.jsonl", lambda row: row if row["file_path"] not in held else None)
    train(tiny_config(folder / "set"), folder / "run")
    words = ("generate", "cuhk-pedes", str(folder / "set"), "--out", str(folder / "texts"), "--provider", "template")
    assert cli.run(describe.main, [*words, "--split", "test", "--for-gallery"]) == 0
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A copy of the run and of the texts; the data stay where they are."""
    for name in ("run", "texts"):
        shutil.copytree(made / name, tmp_path / name)
    return tmp_path


def keep(path: Path, change: Callable[[dict[str, Any]], dict[str, Any] | None]) -> None:
    """Rewrites the rows of a file of texts; None drops one."""
    rows = [row for row in map(change, lines(path)) if row is not None]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def gallery(folder: Path) -> Path:
    return folder / "texts" / "gallery-test.jsonl"


def measured(folder: Path, *words: str, status: int = 0) -> None:
    assert cli.run(evaluate.main, [str(folder / "run"), *words]) == status


def test_generated_texts_of_the_gallery_are_measured(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    measured(folder, "--protocol", "gallery-text", status=2)
    assert "descriptions.jsonl has none with status ok" in capsys.readouterr().err
    words = ("--protocol", "gallery-text", "--texts", str(gallery(folder)))
    measured(folder, *words)
    digest = hashlib.sha256(gallery(folder).read_bytes()).hexdigest()
    result = read_json(folder / "run" / f"eval-gallery-text-{digest[:12]}.json")
    assert result["texts"] == {"path": str(gallery(folder)), "sha256": digest}
    assert result["counts"]["gallery"] == len(lines(gallery(folder))) and result["protocol"] == "gallery-text"
    shown = capsys.readouterr().out
    assert f"identity texts: {gallery(folder)}, SHA-256 {digest[:12]}" in shown
    assert f"eval-gallery-text-{digest[:12]}.json\n" in shown
    before = contents(folder / "run")
    measured(folder, *words)
    assert "evaluated before" in capsys.readouterr().out and contents(folder / "run") == before


def test_other_texts_are_another_result(folder: Path) -> None:
    words = ("--protocol", "gallery-text", "--texts", str(gallery(folder)))
    measured(folder, *words)
    # The same path, other contents: everybody has the same text.
    keep(gallery(folder), lambda row: row | {"identity": "a person"})
    measured(folder, *words)
    results = [read_json(path) for path in (folder / "run").glob("eval-*.json")]
    assert len(results) == 2 and {result["texts"]["path"] for result in results} == {str(gallery(folder))}
    assert results[0]["texts"]["sha256"] != results[1]["texts"]["sha256"]
    assert results[0]["metrics"] != results[1]["metrics"] and results[0]["metrics_dual"] == results[1]["metrics_dual"]


def test_images_without_a_text_that_is_ok_are_counted(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [row["file_path"] for row in lines(gallery(folder))]
    status = {paths[0]: "rejected", paths[1]: "failed"}
    keep(
        gallery(folder),
        lambda row: None if row["file_path"] == paths[2] else row | {"status": status.get(row["file_path"], "ok")},
    )
    measured(folder, "--protocol", "gallery-text", "--texts", str(gallery(folder)), status=2)
    told = capsys.readouterr().err
    assert "gallery-test.jsonl has none with status ok for " in told and all(path in told for path in paths[:3])
    assert "(3 in all), 1 of them rejected; `python -m training.describe generate" in told and paths[3] not in told
    assert not list((folder / "run").glob("eval*"))


@pytest.mark.parametrize("protocol", [name for name in PROTOCOLS if name not in WITH_TEXTS])
def test_no_other_protocol_has_texts(folder: Path, protocol: Any, capsys: pytest.CaptureFixture[str]) -> None:
    measured(folder, "--protocol", protocol, "--texts", str(gallery(folder)), status=2)
    told = f"error: --texts is for the protocols gallery-text and identity, got {gallery(folder)} with {protocol}\n"
    assert capsys.readouterr().err == told
    with pytest.raises(ValueError, match="--texts is for the protocols gallery-text and identity, got "):
        run_evaluation.evaluate_protocol(folder / "run", protocol, 128, read_gallery_texts(gallery(folder)))
    assert not list((folder / "run").glob("eval*"))


def test_a_file_that_is_not_there_or_broken(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    measured(folder, "--protocol", "gallery-text", "--texts", str(folder / "none.jsonl"), status=2)
    assert f"there is no file of generated texts {folder / 'none.jsonl'}; `python" in capsys.readouterr().err
    gallery(folder).write_text("{\n")
    measured(folder, "--protocol", "gallery-text", "--texts", str(gallery(folder)), status=2)
    assert "gallery-test.jsonl, line 1 is not valid JSON" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("protocol", "k", "name"),
    [
        ("dual", 128, "eval.json"),
        ("rerank", 128, "eval-rerank.json"),
        ("rerank", 5, "eval-rerank-k5.json"),
        ("gallery-text", 5, "eval-gallery-text.json"),
        ("paired-audit", 5, "eval-paired-audit.json"),
        ("other-outfit", 5, "eval-other-outfit.json"),
    ],
)
def test_names_of_results_without_texts(protocol: Any, k: int, name: str) -> None:
    assert run_evaluation.result_name(protocol, k) == name
