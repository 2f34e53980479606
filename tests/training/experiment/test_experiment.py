"""From rows to runs to summary.json: what is shared, kept, continued and compared."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from tests.support.commands import run_here
from tests.support.pedes_dataset import as_layout, make_pedes
from tests.support.tiny_run import tiny_config, tiny_options
from training.config import Config
from training.config.ablations import FULL, Row
from training.config.recipes import with_row
from training.evaluation import significance
from training.evaluation.experiment_result import Summary
from training.evaluation.metrics import METRICS
from training.experiment import __main__ as experiment
from training.experiment import child_process
from training.experiment.jobs import config_file, missing_jobs
from training.experiment.plan import ALL, plan
from training.experiment.scheduler import run_experiment
from training.experiment.summary import run_folder, summarise
from training.experiment.summary_table import print_summary
from training.train import train
from training.utils import cli
from training.utils.io import decode, encode, read_json, write_json

SEEDS = (0, 1)


@pytest.fixture(scope="module")
def base(root: Path) -> Config:
    config = tiny_config(root)
    model = replace(config.model, bdam=replace(config.model.bdam, self_layers=2))
    return replace(config, model=model, optim=replace(config.optim, epochs=1, warmup_epochs=0))


def do(name: str, base: Config, out: Path, only: Sequence[str] = (), launch: Any = run_here) -> tuple[dict, str]:
    """(contents of summary.json, printed text)"""
    console = Console(file=StringIO(), width=150, soft_wrap=True)
    titles, rows = plan(name, base, None, only)
    jobs = missing_jobs(rows, SEEDS, out, console, launch)
    summary = run_experiment(jobs, rows, titles, SEEDS, out, base, console, command="the command", launch=launch)
    return encode(summary), console.file.getvalue()


@pytest.fixture(scope="module")
def done(base: Config, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict, str]:
    out = tmp_path_factory.mktemp("out")
    return out, *do("all", base, out, [FULL, "no-gate", "no-fusion"])


def test_shared_rows_are_run_once_and_what_is_there_is_kept(done: tuple, base: Config) -> None:
    out, summary, text = done
    assert "4 rows are 3 configurations x 2 seeds = 6 runs: 0 finished, 6 to run" in text
    assert text.count("about ") == 6 and "[6/6]" in text and "; done" in text
    assert [line.split(":")[0] for line in text.splitlines() if line.startswith("[")] == [
        f"[{number}/6] {label}, seed {seed}"
        for number, (label, seed) in enumerate(
            ((label, seed) for seed in SEEDS for label in ("+ BDAM", "w/o gate", "Baseline (w/o fusion)")), 1
        )
    ]
    assert [*summary["tables"]] == ["table1", "table2"] and [*plan("all", base, None, [FULL])[0]] == [*ALL]
    full = {row["run"] for table in summary["tables"].values() for row in table["rows"] if row["name"] == FULL}
    assert len(full) == 1 and len(summary["runs"]) == 3
    assert sorted(p.name for p in out.iterdir() if p.is_dir()) == sorted(summary["runs"])
    stamps = {path: path.stat().st_mtime_ns for path in out.rglob("*.pt")}
    again, text = do("all", base, out, [FULL, "no-gate", "no-fusion"])
    assert again == summary and "6 finished, 0 to run" in text and len(stamps) == 12
    assert stamps == {path: path.stat().st_mtime_ns for path in stamps}
    assert read_json(out / "summary.json") == json.loads(json.dumps(summary))


def test_numbers_of_a_row_are_those_of_its_runs(done: tuple, base: Config) -> None:
    out, summary, _ = done
    for key, run in summary["runs"].items():
        evaluations = [read_json(run_folder(out, key, seed) / "eval.json") for seed in SEEDS]
        for name in METRICS:
            values = [evaluation["metrics"][name] for evaluation in evaluations]
            assert run["metrics"][name] == values and run["mean"][name] == pytest.approx(statistics.fmean(values))
            assert run["std"][name] == pytest.approx(abs(values[0] - values[1]) / 2**0.5)
            assert run["ratio"][name] == pytest.approx(run["mean"][name] / evaluations[0]["chance"][name])
        assert run["memory_mb"]["training"] == [evaluation["training_memory_mb"] for evaluation in evaluations]
        assert run["parameters"] == evaluations[0]["efficiency"]["parameters"]
    changes = {run["recipe"]: run["changes"] for run in summary["runs"].values()}
    assert changes == {
        "synthetic": {},
        "synthetic/no-gate": {"model.bdam.gate": False},
        "synthetic/no-fusion": {"model.fusion.enabled": False},
    }
    assert summary["command"] == "the command" and summary["test"] == significance.TEST
    assert [*summary["data"].values()][0]["counts"]["test"]["images"] == 24 and "torch" in summary["versions"]


def test_rows_have_the_protocols_that_model_and_data_allow(done: tuple) -> None:
    out, summary, _ = done
    # The miniature set has neither identity queries nor factors; of the rows of Table 2 one has no fusion.
    for key, run in summary["runs"].items():
        assert [*run["protocols"]] == (["rerank"] if run["recipe"] == "synthetic" else [])
        for name, values in run["protocols"].items():
            stored = [read_json(run_folder(out, key, seed) / f"eval-{name}.json") for seed in SEEDS]
            assert values["metrics"]["R1"] == [result["metrics"]["R1"] for result in stored]
            assert values["chance"] == stored[0]["chance"]
            gain = values["against_dual"]["R1"]
            assert gain["delta"] == pytest.approx(
                statistics.fmean(result["metrics"]["R1"] - result["metrics_dual"]["R1"] for result in stored), abs=1e-4
            )
        assert all((run_folder(out, key, seed) / "diagnosis.json").is_file() for seed in SEEDS)


def test_rows_are_compared_with_the_full_model_query_by_query(done: tuple) -> None:
    out, summary, _ = done
    by_recipe = {run["recipe"]: (key, run) for key, run in summary["runs"].items()}
    full, row = by_recipe["synthetic"][0], by_recipe["synthetic/no-gate"][0]

    def values(key: str, name: str) -> np.ndarray:
        return np.stack([np.load(run_folder(out, key, seed) / "eval-queries.npz")[name] for seed in SEEDS])

    ids = np.load(run_folder(out, full, 0) / "eval-queries.npz")["ids"]
    for metric, array in (("R1", "r1"), ("mAP", "ap")):
        # One row of the table is compared.
        expected = significance.compare(100.0 * values(row, array), 100.0 * values(full, array), ids, 1)
        found = by_recipe["synthetic/no-gate"][1]["comparison"][metric]
        assert found == encode(expected)
        means = [by_recipe[name][1]["mean"][metric] for name in ("synthetic/no-gate", "synthetic")]
        assert found["delta"] == pytest.approx(means[0] - means[1], abs=1e-4)
    assert by_recipe["synthetic"][1]["comparison"] is None


def test_table_on_the_terminal(done: tuple) -> None:
    summary, out = done[1], StringIO()
    partial = json.loads(json.dumps(summary))
    partial["tables"]["table1"]["rows"].append({"name": "shallow", "label": "Shallow", "run": None})
    print_summary(decode(Summary, partial, "summary.json"), Console(file=out, width=150))
    text = out.getvalue()
    run = next(run for run in summary["runs"].values() if run["comparison"])
    assert f"{run['mean']['mAP']:.2f} ± {run['std']['mAP']:.2f}" in text and "pending" in text
    delta, p = (run["comparison"]["mAP"][name] for name in ("delta", "p"))
    assert f"{delta:+.2f}" in text and f"p {p:.4f}, unsure" in text
    assert "chance" in text and "Delta is the row minus the reference row" in text


def test_one_seed_has_no_deviation_and_a_recipe_no_comparison(done: tuple, base: Config) -> None:
    titles, rows = plan("synthetic", base)
    summary = summarise(rows, titles, [1], done[0], base)
    (run,) = summary.runs.values()
    assert set(run.std.values()) == {None} and run.comparison is None and len(run.metrics["R1"]) == 1
    out = StringIO()
    print_summary(summary, Console(file=out, width=150))
    assert "±" not in out.getvalue() and "Delta" not in out.getvalue()


def test_a_run_that_fails_stops_with_its_error_and_keeps_the_others(base: Config, tmp_path: Path) -> None:
    without_gate = config_file(tmp_path / plan("table1", base, None, ["no-gate"])[1][0].key)

    def launch(words: Sequence[str], **options: Any) -> None:
        if {"training.train", str(without_gate), "1"} <= {*words}:
            raise RuntimeError("no memory")
        run_here(words, **options)

    only = [FULL, "no-gate"]
    kept = r"w/o gate, seed 1 \(.*seed1\) failed: no memory; finished runs are kept, the same command continues"
    with pytest.raises(RuntimeError, match=kept):
        do("table1", base, tmp_path, only, launch)
    stored = read_json(tmp_path / "summary.json")
    assert stored["missing"] == [["w/o gate", 1]]
    assert [bool(row["run"]) for row in stored["tables"]["table1"]["rows"]] == [True, False]
    text = do("table1", base, tmp_path, only)[1]
    assert "3 finished, 1 to run" in text and "[1/1] w/o gate, seed 1" in text


def test_a_run_that_was_begun_under_another_name_is_continued(base: Config, tmp_path: Path) -> None:
    row = Row("table1", "no-gate", "w/o gate", with_row(base, "no-gate"))
    folder = run_folder(tmp_path, row.key, 0)
    train(replace(row.config, recipe="mine"), folder)
    before = (folder / "best.pt").stat().st_mtime_ns
    do("table1", base, tmp_path, ["no-gate"])
    assert (folder / "best.pt").stat().st_mtime_ns == before and (folder / "eval.json").exists()


def test_runs_of_different_data_are_not_put_together(done: tuple, base: Config, tmp_path: Path) -> None:
    titles, rows = plan("table1", base, None, [FULL, "no-gate"])
    key = rows[0].key

    def write(row_key: str, seed: int, fingerprint: str) -> None:
        source = run_folder(done[0], row_key, seed)
        target = run_folder(tmp_path, row_key, seed)
        target.mkdir(parents=True, exist_ok=True)
        evaluation = read_json(source / "eval.json")
        evaluation["data"]["fingerprint"] = fingerprint
        write_json(target / "eval.json", evaluation)
        (target / "eval-queries.npz").write_bytes((source / "eval-queries.npz").read_bytes())

    for row_key, prints in ((key, "aa"), (rows[1].key, "ab")):
        for seed, fingerprint in zip(SEEDS, prints, strict=True):
            write(row_key, seed, fingerprint)
    with pytest.raises(ValueError, match=r"the runs of 'w/o gate' are of different data, fingerprints \['a', 'b'\]"):
        summarise(rows, titles, SEEDS, tmp_path, base)
    write(rows[1].key, 0, "b")
    with pytest.raises(ValueError, match="no-gate and the full model are of different data; their queries cannot be"):
        summarise(rows, titles, SEEDS, tmp_path, base)
    write(rows[1].key, 0, "a")
    write(rows[1].key, 1, "a")
    (run_folder(tmp_path, key, 1) / "eval-queries.npz").unlink()
    with pytest.raises(
        FileNotFoundError, match="eval-queries.npz does not exist; delete or move eval.json beside it to re-evaluate"
    ):
        summarise(rows, titles, SEEDS, tmp_path, base)


@pytest.mark.parametrize(("name", "file"), [("icfg-pedes", "ICFG-PEDES.json"), ("rstpreid", "data_captions.json")])
def test_the_other_real_sets_are_bases_of_the_tables(
    name: str, file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = as_layout(make_pedes(tmp_path / "set", ids={"train": 18, "val": 2, "test": 2}), name, file)
    monkeypatch.setattr(child_process, "run_command", run_here)
    # The encoders of the recipes are downloaded: small ones with random weights in their place.
    small = [*tiny_options(data)[:-2], "--model.visual.pretrained", "", "--model.text.pretrained", ""]
    words = ["table1", "--base", name, "--data", str(data), "--out", str(tmp_path / "out"), "--rows", "full", "shallow"]
    small += ["--model.bdam.self-layers", "2"]
    assert cli.run(experiment.main, [*words, *small, "--seeds", "0", "--estimate"]) == 0
    assert "2 rows are 2 configurations x 1 seeds = 2 runs: 0 finished, 2 to run" in capsys.readouterr().out
    timed = [read_json(Path(file)) for file in read_json(tmp_path / "out" / "timing.json")]
    assert [values["recipe"] for values in timed] == [name, f"{name}/shallow"]
    assert {values["data"]["dataset"] for values in timed} == {name}
    assert {values["data"]["root"] for values in timed} == {str(data)}
    assert cli.run(experiment.main, [*words, *small, "--seeds", "0", "1", "--finished"]) == 0
    summary = read_json(tmp_path / "out" / "summary.json")
    assert summary["seeds"] == [0, 1] and len(summary["missing"]) == 4 and not summary["runs"]


def test_bad_requests_are_named(base: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="--rows: table1 has no row 'no-mamba', expected some of no-bdam, full, "):
        plan("table1", base, None, ["no-mamba"])
    for given, message in (
        (["--seeds", "1", "1"], "--seeds must be different numbers, got [1, 1]"),
        (
            ["--estimate", "--finished"],
            "--estimate says how long the missing runs take, --finished leaves them out: give",
        ),
    ):
        assert cli.run(experiment.main, ["table1", *given, "--out", str(tmp_path / "none")]) == 2
        assert message in capsys.readouterr().err and not (tmp_path / "none").exists()
    assert cli.run(experiment.main, ["synthetic", "--base", "synthetic"]) == 2
    assert (
        "--base is for table1, table2, table3, table4, table5, readings, fig5 and all, got it with 'synthetic'"
        in capsys.readouterr().err
    )
    assert cli.run(experiment.main, ["synthetic", "--rows", "no-gate", "--out", str(tmp_path / "none")]) == 2
    assert (
        "--rows is for table1, table2, table3, table4, table5, readings, fig5 and all, got it with 'synthetic'"
        in capsys.readouterr().err
    )
    assert cli.run(experiment.main, ["table1", "--base", "synthetic", "--out", str(tmp_path / "none")]) == 2
    assert "row shallow: the recipe must have at least 2 layers" in capsys.readouterr().err
    assert cli.run(experiment.main, ["table1", "--jobs", "0", "--out", str(tmp_path / "none")]) == 2
    assert "--jobs must be at least 1, got 0" in capsys.readouterr().err
    assert cli.run(experiment.main, ["table1", "--threads", "0", "--out", str(tmp_path / "none")]) == 2
    assert "--threads must be at least 1, got 0" in capsys.readouterr().err
    words = ["synthetic", "--data", str(tmp_path / "nowhere"), "--out", str(tmp_path / "none")]
    assert cli.run(experiment.main, words) == 2
    assert "there is no folder" in capsys.readouterr().err and not (tmp_path / "none").exists()
