"""Experiments whose data were moved: finished runs stay, other data are refused."""

from __future__ import annotations

from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from tests.support.fake_run import make_run
from tests.support.pedes_dataset import make_pedes
from tests.support.tiny_run import tiny_config
from training.config import to_dict
from training.config.ablations import FULL, Row
from training.data.datasets import read_dataset
from training.experiment.jobs import missing_jobs
from training.experiment.summary import run_folder
from training.utils.io import read_json, write_json


@pytest.fixture
def row(tmp_path: Path) -> Row:
    """One row with a finished run of seed 0."""
    row = Row("table1", FULL, "Full", tiny_config(make_pedes(tmp_path / "before")))
    folder = make_run(run_folder(tmp_path / "out", row.key, 0), Path(row.config.data.root), steps=40, epochs=5)
    evaluation = read_json(folder / "eval.json") | {"config": to_dict(row.config)}
    evaluation["data"]["fingerprint"] = read_dataset(row.config.data).fingerprint
    write_json(folder / "eval.json", evaluation)
    return row


def at(row: Row, root: Path) -> Row:
    return replace(row, config=replace(row.config, data=replace(row.config.data, root=str(root))))


def missing(row: Row, out: Path) -> str:
    console = Console(file=StringIO(), width=200)
    assert missing_jobs([row], [0], out, console, lambda *_, **__: None) == []
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_runs_of_moved_data_are_finished(row: Row, tmp_path: Path) -> None:
    Path(row.config.data.root).rename(tmp_path / "after")
    assert "1 runs: 1 finished, 0 to run" in missing(at(row, tmp_path / "after"), tmp_path / "out")


def test_a_summary_needs_no_data(row: Row, tmp_path: Path) -> None:
    Path(row.config.data.root).rename(tmp_path / "after")
    assert "1 finished" in missing(row, tmp_path / "out")


def test_other_data_are_refused(row: Row, tmp_path: Path) -> None:
    other = make_pedes(tmp_path / "other", seed=1)
    with pytest.raises(
        ValueError, match=r"seed0 was trained on different data than that of .*other: .*, or another --out"
    ):
        missing(at(row, other), tmp_path / "out")
