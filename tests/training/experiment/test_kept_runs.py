"""Finished runs as small files: the same tables from them as from the run folders, the same bytes, and what is refused."""

from __future__ import annotations

import shutil
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from tests.support.fake_run import make_run
from tests.support.tiny_run import tiny_config
from training.config import to_dict
from training.config.ablations import FULL, Row
from training.config.recipes import with_row
from training.data.datasets import read_dataset
from training.evaluation.run_folder import Run
from training.experiment.jobs import threads_of
from training.experiment.kept_runs import exchange, keep, kept_runs, read_kept, read_twins
from training.experiment.summary import run_folder
from training.utils.io import read_json, write_json

SEEDS = (0, 1)


@pytest.fixture
def rows(root: Path) -> list[Row]:
    base = tiny_config(root)
    return [Row("table1", FULL, "Full", base), Row("table1", "no-gate", "w/o gate", with_row(base, "no-gate"))]


@pytest.fixture
def out(rows: list[Row], root: Path, tmp_path: Path) -> Path:
    """Two rows of two seeds, finished."""
    fingerprint = read_dataset(rows[0].config.data).fingerprint
    for row in rows:
        for seed in SEEDS:
            folder = make_run(run_folder(tmp_path / "out", row.key, seed), root, steps=40, epochs=5, seed=seed)
            change(folder, config=to_dict(replace(row.config, seed=seed)), fingerprint=fingerprint)
            (folder / "best.pt").write_bytes(b"weights")
    return tmp_path / "out"


def change(folder: Path, fingerprint: str = "", cpu: str = "A", threads: str = "2", **values: object) -> None:
    """Replaces values of eval.json."""
    evaluation = read_json(folder / "eval.json") | values
    evaluation["data"]["fingerprint"] = fingerprint or evaluation["data"]["fingerprint"]
    evaluation["versions"] |= {"cpu": cpu, "threads": threads}
    write_json(folder / "eval.json", evaluation)


def silent() -> Console:
    return Console(file=StringIO(), width=200)


def test_runs_come_back_whole_and_without_weights(rows: list[Row], out: Path, tmp_path: Path) -> None:
    results, console = tmp_path / "results", silent()
    exchange(rows, SEEDS, out, results, console)
    names = sorted(path.name for path in results.iterdir())
    assert names == sorted(f"{row.key}-seed{seed}-a-2-threads.zip" for row in rows for seed in SEEDS)
    assert all(path.stat().st_size < 40_000 for path in results.iterdir())
    exchange(rows, SEEDS, tmp_path / "new", results, console)
    assert "4 kept runs, 4 of this experiment, 4 unpacked" in console.file.getvalue()  # type: ignore[attr-defined]
    for row in rows:
        for seed in SEEDS:
            before, after = (Run(run_folder(folder, row.key, seed)) for folder in (out, tmp_path / "new"))
            assert after.is_finished and after.evaluation.metrics == before.evaluation.metrics
            assert after.log.validations == before.log.validations != [] and after.log.steps == []
            assert after.machine == before.machine and after.evaluation.examples == []
            assert not (after.folder / "best.pt").exists()
    # What has come out of a kept run gives that kept run again, to the byte.
    before = {path: path.read_bytes() for path in results.iterdir()}
    exchange(rows, SEEDS, tmp_path / "new", tmp_path / "again", console)
    assert {path.name: path.read_bytes() for path in (tmp_path / "again").iterdir()} == {
        path.name: content for path, content in before.items()
    }


def test_a_run_that_has_begun_is_left_to_continue(rows: list[Row], out: Path, tmp_path: Path) -> None:
    exchange(rows, SEEDS, out, tmp_path / "results", silent())
    begun = run_folder(tmp_path / "new", rows[0].key, 1)
    begun.mkdir(parents=True)
    exchange(rows, SEEDS, tmp_path / "new", tmp_path / "results", silent())
    assert list(begun.iterdir()) == [] and Run(run_folder(tmp_path / "new", rows[0].key, 0)).is_finished


def test_the_same_run_on_another_machine_is_a_measure_of_noise(rows: list[Row], out: Path, tmp_path: Path) -> None:
    results, key = tmp_path / "results", rows[0].key
    exchange(rows, SEEDS, out, results, silent())
    other = Path(shutil.copytree(run_folder(out, key, 1), tmp_path / "other"))
    metrics = Run(other).evaluation.metrics | {"R1": 99.0}
    change(other, threads="1", metrics=metrics)
    keep(other, key, 1, results)
    assert read_twins(rows, SEEDS, out, results) == {(key, 1): [metrics]}
    # The machine with most runs is unpacked.
    exchange(rows, SEEDS, tmp_path / "new", results, silent())
    assert Run(run_folder(tmp_path / "new", key, 1)).evaluation.metrics["R1"] != 99.0
    assert threads_of(rows, SEEDS, out) == 2 and threads_of(rows, SEEDS, tmp_path / "none") is None
    change(other, fingerprint="cd" * 32, threads="4")
    keep(other, key, 1, results)
    with pytest.raises(ValueError, match="was trained on different data than that of .*: fingerprint cdcd"):
        read_twins(rows, SEEDS, out, results)


def test_runs_that_are_not_what_they_should_be_are_refused(rows: list[Row], out: Path, tmp_path: Path) -> None:
    results, key, new = tmp_path / "results", rows[0].key, tmp_path / "new"
    folder = run_folder(out, key, 0)
    path = keep(folder, key, 0, results)
    renamed = path.rename(path.with_name(path.name.replace("seed0", "seed1")))
    with pytest.raises(
        ValueError, match=rf"holds configuration {key} with seed 0, expected {key} with seed 1 as its name"
    ):
        exchange(rows, SEEDS, new, results, silent())
    renamed.write_bytes(b"no archive")
    with pytest.raises(ValueError, match="is not a kept run .*; without it its run is trained again"):
        read_kept(kept_runs(results)[0])
    renamed.unlink()
    change(folder, fingerprint="cd" * 32)
    keep(folder, key, 0, results)
    with pytest.raises(ValueError, match="use its data, or move it away to train its run again"):
        exchange(rows, SEEDS, new, results, silent())
    assert not new.exists()


def test_without_the_data_its_fingerprint_is_not_compared(rows: list[Row], out: Path, tmp_path: Path) -> None:
    gone = replace(rows[0].config, data=replace(rows[0].config.data, root=str(tmp_path / "gone")))
    row = Row("table1", FULL, "Full", gone)
    folder = run_folder(out, rows[0].key, 0)
    change(folder, config=to_dict(replace(gone, seed=0)))
    keep(folder, row.key, 0, tmp_path / "results")
    console = silent()
    exchange([row], (0,), tmp_path / "new", tmp_path / "results", console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "1 unpacked; the data is not here to compare its fingerprint" in text
