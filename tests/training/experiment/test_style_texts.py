"""Table 4: captions clustered, texts generated in those styles, runs that train on them, compared with the DBSCAN row."""

from __future__ import annotations

import json
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tests.support.commands import run_here
from tests.support.pedes_dataset import make_pedes, write_people
from tests.support.tiny_run import tiny_config
from training.config import STYLE_METHODS, Config
from training.config.ablations import ABLATIONS, REFERENCES, Row
from training.data.datasets import read_dataset
from training.experiment.jobs import missing_jobs
from training.experiment.plan import ALL, plan
from training.experiment.scheduler import run_experiment
from training.experiment.style_texts import with_texts
from training.experiment.summary_table import print_summary
from training.report.experiment_page import build_experiment

NAMES = ("style-none", "style-dbscan")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Config:
    config = tiny_config(write_people(tmp_path_factory.mktemp("data"), ids=60, images_per_id=4))
    return replace(config, optim=replace(config.optim, epochs=1, warmup_epochs=0))


def rows_of(base: Config, out: Path, names: tuple[str, ...] = NAMES) -> list[Row]:
    return plan("table4", base, None, names, out)[1]


@pytest.fixture(scope="module")
def made(base: Config, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Row], str]:
    out, console = tmp_path_factory.mktemp("out"), Console(file=StringIO(), width=200)
    return out, with_texts(rows_of(base, out), console), console.file.getvalue()  # type: ignore[attr-defined]


def test_rows_are_the_methods_and_dbscan_is_what_they_are_compared_with() -> None:
    assert [name for name, _ in ABLATIONS["table4"]] == [f"style-{method}" for method in STYLE_METHODS]
    assert REFERENCES["table4"] == "style-dbscan" and "table4" not in ALL and "table3" in ALL


def test_texts_are_made_in_the_styles_that_were_found(made: tuple[Path, list[Row], str], base: Config) -> None:
    out, rows, text = made
    for row, method in zip(rows, ("none", "dbscan"), strict=True):
        path = out / "descriptions" / method / "descriptions.jsonl"
        assert row.config.data.descriptions == str(path) and f"{row.label}: {path}" in text
        table = json.loads((path.parent / "styles.json").read_text())
        assert row.label.endswith(f", ARI {table['ari']:.3f}") and table["method"] == method
        dataset = read_dataset(row.config.data)
        assert all(record.identity and record.clothing for record in dataset.splits["train"])
        of_first = [json.loads(line) for line in (path.parent / "styles.jsonl").read_text().splitlines()]
        first = {line["file_path"]: line["style"] for line in of_first if line["caption"] == 0}
        given = {line["file_path"]: line["style"] for line in map(json.loads, path.read_text().splitlines())}
        assert given == first and len(given) == 240
    none, dbscan = (read_dataset(row.config.data) for row in rows)
    # One style has one way of writing, several have several.
    openings = [{r.clothing.split()[0] for r in data.splits["train"]} for data in (none, dbscan)]
    assert len(openings[0]) < len(openings[1])
    assert none.fingerprint != dbscan.fingerprint


def test_what_is_there_is_kept(
    made: tuple[Path, list[Row], str], base: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, rows, _ = made
    stamps = {path: path.stat().st_mtime_ns for path in out.rglob("*.json*")}
    monkeypatch.setattr("training.experiment.style_texts.make_styles", None)
    assert with_texts(rows_of(base, out), Console(quiet=True)) == rows
    assert stamps == {path: path.stat().st_mtime_ns for path in out.rglob("*.json*")} and stamps


def test_other_rows_are_left_alone(base: Config) -> None:
    rows = plan("synthetic", base)[1]
    assert with_texts(rows, Console(quiet=True)) == rows


def test_real_data_need_their_texts_made_before(tmp_path: Path) -> None:
    config = tiny_config(make_pedes(tmp_path / "data"))
    rows = rows_of(config, tmp_path / "out", ("style-gmm",))
    missing = (
        "style-gmm: there are no texts .*gmm/descriptions.jsonl; generate them with `python -m training.describe styles"
    )
    with pytest.raises(FileNotFoundError, match=missing):
        with_texts(rows, Console(quiet=True))
    assert not (tmp_path / "out").exists()
    path = Path(rows[0].config.data.descriptions)
    path.parent.mkdir(parents=True)
    path.write_bytes((tmp_path / "data/descriptions.jsonl").read_bytes())
    assert with_texts(rows, Console(quiet=True)) == rows


def test_runs_are_compared_although_their_texts_differ(made: tuple[Path, list[Row], str], base: Config) -> None:
    out, rows, _ = made
    console = Console(file=StringIO(), width=150)
    titles: dict[str, str] = {"table4": "Table 4"}
    jobs = missing_jobs(rows, [0], out, console, run_here)
    summary: dict[str, Any] = run_experiment(jobs, rows, titles, [0], out, base, console, launch=run_here)
    none, dbscan = (summary["runs"][row["run"]] for row in summary["tables"]["table4"]["rows"])
    assert none["data"] != dbscan["data"] and dbscan["comparison"] is None
    delta = none["mean"]["mAP"] - dbscan["mean"]["mAP"]
    assert none["comparison"]["mAP"]["delta"] == pytest.approx(delta, abs=1e-4)
    assert set(none["changes"]) == {"data.descriptions"}
    printed = StringIO()
    print_summary(summary, Console(file=printed, width=150))
    # Texts make no other chance, and the label says how good the styles are.
    assert printed.getvalue().count("chance") == 1 and "DBSCAN, ARI" in printed.getvalue()
    page = build_experiment(summary, "table4")
    assert "Baseline (w/o style), ARI 0.000" in page and "-1.39" in page
