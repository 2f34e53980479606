"""A run folder whose data are elsewhere now: every command finds them with --data.root, and gives the same bits."""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from training import evaluate, search
from training.config import DataConfig
from training.data.datasets import at_root
from training.disentangle import __main__ as disentangle_command
from training.report import __main__ as report_command
from training.utils import cli

TIMES = ("seconds", "efficiency", "memory_mb", "training_memory_mb", "versions")


@pytest.fixture
def moved(root: Path, run_dir: Path, tmp_path: Path) -> tuple[Path, Path]:
    """(a run whose data are no longer where its configuration says, their new root)."""
    import torch

    new = shutil.copytree(root, tmp_path / "elsewhere" / "data")
    path = run_dir / "best.pt"
    state = torch.load(path, weights_only=True)
    state["config"]["data"]["root"] = str(tmp_path / "gone")
    torch.save(state, path)
    return run_dir, new


def results(run_dir: Path) -> dict[str, object]:
    values = json.loads((run_dir / "eval.json").read_text())
    values["data"].pop("root")
    values["config"]["data"].pop("root")
    return {key: value for key, value in values.items() if key not in (*TIMES, "checkpoint", "calls", "content_sha256")}


def test_evaluation_gives_the_same_bits_from_another_root(
    moved: tuple[Path, Path], trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir, new = moved
    assert cli.run(evaluate.main, [str(run_dir)]) == 2
    assert "--data.root FOLDER says where the data are" in capsys.readouterr().err
    assert cli.run(evaluate.main, [str(run_dir), "--data.root", str(new)]) == 0
    here = shutil.copytree(trained, tmp_path / "here")
    assert cli.run(evaluate.main, [str(here)]) == 0
    assert results(run_dir) == results(here)
    with np.load(run_dir / "eval-queries.npz") as left, np.load(here / "eval-queries.npz") as right:
        assert all(left[name].tobytes() == right[name].tobytes() for name in right)
    stored = json.loads((run_dir / "eval.json").read_text())
    assert stored["config"]["data"]["root"] == str(tmp_path / "gone"), "the configuration stays that of the run"
    assert stored["data"]["root"] == str(new)


@pytest.mark.parametrize(
    ("main", "words"),
    [
        (search.main, ["a person in a red shirt"]),
        (disentangle_command.main, ["--dependence-only"]),
        (evaluate.main, ["--protocol", "rerank"]),
    ],
)
def test_other_commands_find_moved_data(
    moved: tuple[Path, Path],
    main: Callable[[Sequence[str]], None],
    words: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    run_dir, new = moved
    assert cli.run(main, [str(run_dir), *words]) == 2
    assert cli.run(main, [str(run_dir), *words, "--data.root", str(new)]) == 0


def test_the_page_has_the_images_of_the_new_root(moved: tuple[Path, Path]) -> None:
    run_dir, new = moved
    assert cli.run(evaluate.main, [str(run_dir), "--data.root", str(new)]) == 0
    assert cli.run(report_command.main, [str(run_dir), "--data.root", str(new)]) == 0
    assert "data:image/jpeg" in (run_dir / "report.html").read_text()


def test_texts_and_cache_follow_where_they_can(tmp_path: Path) -> None:
    config = DataConfig(root="data/old", descriptions="data/old/texts/a.jsonl", cache=str(tmp_path / "none"))
    assert at_root(config, None) == config
    new = at_root(config, tmp_path / "new")
    assert (new.root, new.cache) == (str(tmp_path / "new"), "")
    assert new.descriptions == str(tmp_path / "new" / "texts" / "a.jsonl")
    apart = replace(config, descriptions="texts/a.jsonl", cache=str(tmp_path))
    assert at_root(apart, tmp_path / "new").descriptions == "texts/a.jsonl"
    assert at_root(apart, tmp_path / "new").cache == str(tmp_path)
