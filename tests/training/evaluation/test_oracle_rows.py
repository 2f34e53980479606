"""Rows of the oracle beside the results of a run: computed once, printed, on the page; none for real data."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.html import Page
from tests.support.tiny_run import tiny_config
from training.data.datasets import read_dataset
from training.evaluate import main
from training.evaluation.bounds import oracle_metrics
from training.evaluation.bounds.oracle_metrics import IDENTITY_TEXTS, ROWS, measure, oracle_bounds
from training.evaluation.run_evaluation import evaluate
from training.evaluation.run_folder import read_run
from training.report.run_page import build_page
from training.synthetic.dataset import generate
from training.synthetic.oracle import Oracle, read_images
from training.train import train
from training.utils import cli
from training.utils.io import write_record


@pytest.fixture(scope="module")
def rendered_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rendered")
    generate(folder / "data", ids=14, images_per_id=4, val_ids=2, test_ids=6, height=160, width=64)
    config = tiny_config(folder / "data")
    train(replace(config, optim=replace(config.optim, epochs=1, warmup_epochs=0)), folder / "run")
    evaluate(folder / "run")
    return folder / "run"


@pytest.fixture
def run_dir(rendered_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(rendered_run, tmp_path / "run"))


def test_rows_are_printed_stored_and_on_the_page(
    run_dir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    assert cli.run(main, [str(run_dir)]) == 0
    printed, run = capsys.readouterr().out, read_run(run_dir)
    dataset = read_dataset(replace(tiny_config(run_dir).data, root=run.evaluation.config["data"]["root"]))
    assert run.oracle is not None and run.oracle.fingerprint == dataset.fingerprint
    assert run.oracle.rows == measure(read_images(dataset.root, dataset.splits["test"]))
    assert set(run.oracle.rows) == {*ROWS, IDENTITY_TEXTS}
    page = Page(build_page(run))
    for label, values in run.oracle.rows.items():
        assert label in printed and f"{values['mAP']:.2f}" in printed
        assert label in page.text and f"{values['mAP']:.2f}" in page.text
    monkeypatch.setattr(oracle_metrics, "measure", lambda images: pytest.fail("computed twice"))
    assert cli.run(main, [str(run_dir)]) == 0
    assert capsys.readouterr().out == printed


def test_rows_do_not_depend_on_the_blocks(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = read_dataset(replace(tiny_config(run_dir).data, root=read_run(run_dir).evaluation.config["data"]["root"]))
    images = read_images(dataset.root, dataset.splits["test"])
    whole = measure(images)
    calls = []
    unlimited = Oracle.log_likelihood
    monkeypatch.setattr(
        oracle_metrics, "blocks", lambda queries, gallery: [slice(i, i + 5) for i in range(0, queries, 5)]
    )
    monkeypatch.setattr(Oracle, "log_likelihood", lambda self, s, q: calls.append(q) or unlimited(self, s, q))
    for label, values in measure(images).items():
        assert values == pytest.approx(whole[label], rel=1e-12)
    assert len(calls) > len(ROWS)


def test_rows_of_an_earlier_version_are_completed(run_dir: Path) -> None:
    evaluation = evaluate(run_dir)[0]
    whole = oracle_bounds(run_dir, evaluation)
    assert whole is not None
    write_record(run_dir / "oracle.json", replace(whole, rows={k: v for k, v in whole.rows.items() if k in ROWS}))
    assert oracle_bounds(run_dir, evaluation) == whole


def test_real_data_has_no_oracle(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_dir = Path(shutil.copytree(trained, tmp_path / "run"))
    assert cli.run(main, [str(run_dir)]) == 0
    assert "oracle," not in capsys.readouterr().out and not (run_dir / "oracle.json").exists()
    assert "oracle," not in build_page(read_run(run_dir)) and oracle_bounds(run_dir, evaluate(run_dir)[0]) is None


def test_a_set_that_the_oracle_cannot_read_is_said(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluation = evaluate(run_dir)[0]
    data = Path(shutil.copytree(evaluation.config["data"]["root"], tmp_path / "data"))
    moved = replace(evaluation, config=evaluation.config | {"data": evaluation.config["data"] | {"root": str(data)}})
    (data / "synthetic.json").unlink()
    with pytest.raises(ValueError, match="synthetic.json does not hold the seed that the set was rendered with"):
        oracle_bounds(run_dir, moved)
    text = (data / "descriptions.jsonl").read_text()
    (data / "descriptions.jsonl").write_text(text.replace("build", "figure"))
    with pytest.raises(ValueError, match="an oracle needs the data of the evaluation, but .* has changed since"):
        oracle_bounds(run_dir, moved)
    assert not (run_dir / "oracle.json").exists()


def test_such_a_set_does_not_stop_the_evaluation(
    run_dir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object) -> None:
        raise ValueError("render the set again")

    monkeypatch.setattr(oracle_metrics, "read_images", refuse)
    assert cli.run(main, [str(run_dir)]) == 0
    out = capsys.readouterr().out
    assert "no rows of an oracle: render the set again" in out and "times chance" in out
