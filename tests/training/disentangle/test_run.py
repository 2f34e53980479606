"""The measures of a whole run, and several runs beside each other."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.support.fake_experiment import make_summary
from tests.support.pedes_dataset import make_pedes
from tests.support.tiny_run import tiny_config
from training.config import FusionConfig
from training.config.recipes import get_recipe
from training.data.datasets import read_dataset
from training.data.ground_truth import CLOTHING, IDENTITY, read_factors
from training.data.images import transforms
from training.disentangle.__main__ import main
from training.disentangle.compare import compare
from training.disentangle.features import collect
from training.disentangle.run import disentangle
from training.engine import checkpoint
from training.evaluation.disentangle_result import MEASURES, Disentanglement
from training.evaluation.run_evaluation import evaluate
from training.models.model import Model
from training.synthetic.dataset import generate
from training.train import train
from training.utils import cli
from training.utils.io import decode, encode, read_json, write_json


@pytest.fixture(scope="module")
def synthetic_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rendered") / "data"
    generate(folder, ids=30, images_per_id=4, val_ids=2, test_ids=20, height=160, width=64)
    return folder


@pytest.fixture(scope="module")
def synthetic_run(synthetic_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("runs") / "trained"
    train(tiny_config(synthetic_root), run_dir)
    return run_dir


@pytest.fixture
def run_dir(synthetic_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(synthetic_run, tmp_path / "run"))


def test_truth_is_that_of_the_renderer(synthetic_root: Path) -> None:
    records = read_dataset(tiny_config(synthetic_root).data).splits["test"]
    truth = read_factors(synthetic_root, records[::-1])
    rows = {
        row["file_path"]: row for row in map(json.loads, (synthetic_root / "factors.jsonl").read_text().splitlines())
    }
    for i, record in enumerate(records[::-1]):
        row = rows[record.file_path]
        assert truth.outfits[i] == row["outfit_number"]
        words = {
            name: {True: "yes", False: "no"}.get(row["identity"][name], row["identity"][name]) for name in IDENTITY
        }
        assert {name: truth.identity[name][i] for name in IDENTITY} == words
        assert {name: truth.clothing[name][i] for name in CLOTHING} == {n: str(row["outfit"][n]) for n in CLOTHING}
    assert {len({r["outfit_number"] for r in rows.values() if r["id"] == p}) for p in range(1, 31)} <= {2, 3}


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda text: "{" + text, r"factors\.jsonl, line 1 is not valid JSON"),
        (
            lambda text: '{"file_path": "a.jpg"}\n' + text,
            "line 1 must be an object with the fields file_path, outfit_number",
        ),
        (lambda text: text.replace('"glasses"', '"goggles"'), "line 1 lacks the factors glasses"),
        (lambda text: "", r"factors\.jsonl has no factors of cam_"),
    ],
)
def test_a_broken_truth_is_named(
    synthetic_root: Path, tmp_path: Path, change: Callable[[str], str], match: str
) -> None:
    records = read_dataset(tiny_config(synthetic_root).data).splits["test"]
    (tmp_path / "factors.jsonl").write_text(change((synthetic_root / "factors.jsonl").read_text()))
    with pytest.raises(ValueError, match=match):
        read_factors(tmp_path, records)


def test_a_whole_run(run_dir: Path, synthetic_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(main, [str(run_dir)]) == 0
    result = read_json(run_dir / "disentangle.json")
    assert set(result["probes"]) == {*IDENTITY, *CLOTHING}
    floors = {"colours", "untrained"}
    assert set(result["summary"]) == {"entangled", "f_id", "f_clo", "f_final", "f_final_other", "other_kind", *floors}
    assert set(result["retrieval"]["other"]["features"]) == {"entangled", "f_id", "v_id", "f_clo", "v_clo", *floors}
    records = read_dataset(tiny_config(synthetic_root).data).splits["test"]
    assert result["counts"] == {"images": len(records), "ids": 20} and set(result["dependence"]) >= set(MEASURES)
    run, arrays = checkpoint.load_run(run_dir), np.load(run_dir / "disentangle.npz")

    with torch.no_grad():
        tokens = run.model.visual(transforms.normalise(transforms.decode(records[3].path, (32, 16))[None]))
        branches = run.model.bdam(tokens)
    for name, value in (("entangled", tokens.mean(1)), ("f_id", branches.f_id_BC), ("f_clo", branches.f_clo_BC)):
        np.testing.assert_allclose(arrays[name][3], value[0].numpy(), atol=1e-5)
    assert arrays["id"].tolist() == [r.id for r in records]
    assert arrays["tsne_f_id"].shape == (len(arrays["tsne_images"]), 2) and len(arrays["tsne_images"]) == len(records)
    assert set(arrays["tsne_clothing"]) <= set(read_factors(synthetic_root, records).clothing["upper_colour"])
    assert not np.allclose(arrays["f_final"], arrays["f_final_other"])
    stamp = (run_dir / "disentangle.json").stat().st_mtime_ns
    assert (
        disentangle(run_dir) == (decode(Disentanglement, result, ""), False)
        and (run_dir / "disentangle.json").stat().st_mtime_ns == stamp
    )
    printed = capsys.readouterr().out
    assert all(f"{name}: {kind}" in printed for name in ("f_id", *floors) for kind in ("identity", "clothing"))


def test_the_floors_are_colours_and_the_first_encoder(synthetic_run: Path, synthetic_root: Path) -> None:
    run, records = checkpoint.load_run(synthetic_run), read_dataset(tiny_config(synthetic_root).data).splits["test"][:5]
    torch.manual_seed(123)
    before = torch.get_rng_state()
    found = collect(run, records)
    assert torch.equal(torch.get_rng_state(), before), "the random numbers of the caller were used"
    pixels = torch.stack([transforms.decode(record.path, (32, 16)) for record in records]).double() / 127.5 - 1
    cells = [
        pixels[:, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] for row in range(8) for column in range(4)
    ]
    expected = torch.stack([cell.mean((2, 3)) for cell in cells], dim=2).flatten(1)
    np.testing.assert_allclose(found["colours"], expected.numpy(), atol=1e-5)
    assert found["colours"].shape == (5, 96)
    torch.manual_seed(run.config.seed)
    first = checkpoint.build_model(run.config, run.tokenizer).eval()
    assert isinstance(first, Model)
    with torch.no_grad():
        tokens = first.visual(pixels.float())
    np.testing.assert_allclose(found["untrained"], tokens.mean(1).numpy(), atol=1e-5)
    assert not np.allclose(found["untrained"], found["entangled"], atol=1e-3)


def test_the_first_encoder_is_that_of_the_run(synthetic_root: Path, tmp_path: Path) -> None:
    config = tiny_config(synthetic_root)
    # So small a rate changes no weight by more than the tolerance.
    config = replace(config, optim=replace(config.optim, lr=1e-9, weight_decay=0.0, epochs=1, warmup_epochs=0), seed=5)
    train(config, tmp_path / "run")
    run, records = checkpoint.load_run(tmp_path / "run"), read_dataset(config.data).splits["test"][:3]
    found = collect(run, records)
    np.testing.assert_allclose(found["untrained"], found["entangled"], atol=1e-4)


def test_a_dual_encoder_has_no_branches_to_measure(synthetic_root: Path, tmp_path: Path) -> None:
    baseline, data = get_recipe("synthetic-baseline"), tiny_config(synthetic_root).data
    optim = replace(baseline.optim, epochs=1, warmup_epochs=0)
    train(replace(baseline, data=replace(data, images_per_id=0), optim=optim), tmp_path / "run")
    with pytest.raises(
        ValueError, match="branches of identity and clothing, which model.architecture 'dual-encoder' does"
    ):
        disentangle(tmp_path / "run")


def test_real_data_has_dependence_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tiny_config(make_pedes(tmp_path / "data", ids={"train": 6, "val": 2, "test": 9}))
    config = replace(config, model=replace(config.model, fusion=FusionConfig(enabled=False)))
    train(config, tmp_path / "run")
    capsys.readouterr()
    assert cli.run(main, [str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert "factors.jsonl: the true attributes are known for synthetic data only" in error
    assert "--dependence-only measures HSIC and CKA" in error and error.count("\n") == 1
    assert not (tmp_path / "run" / "disentangle.json").exists()
    assert cli.run(main, [str(tmp_path / "run"), "--dependence-only"]) == 0
    result = read_json(tmp_path / "run" / "disentangle.json")
    assert result["probes"] is result["retrieval"] is result["tsne"] is None and result["dependence"]["people"] == 9
    assert cli.run(main, [str(tmp_path / "run")]) == 2, "what the truth is needed for is still missing"
    assert read_json(tmp_path / "run" / "disentangle.json") == result


def test_everything_follows_a_measurement_of_dependence_alone(run_dir: Path) -> None:
    first, _ = disentangle(run_dir, dependence_only=True)
    whole, new = disentangle(run_dir)
    assert new and whole.dependence == first.dependence and whole.probes
    assert disentangle(run_dir, dependence_only=True) == (whole, False)


def test_runs_that_differ_in_their_seed_share_a_row(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    measured, evaluation = disentangle(run_dir)[0], evaluate(run_dir)[0]
    result = encode(measured)
    other: dict[str, Any] = json.loads(json.dumps(result))
    other["config"]["seed"], other["dependence"]["cka"]["value"] = 1, result["dependence"]["cka"]["value"] + 0.1
    third = json.loads(json.dumps(other))
    third["config"]["loss"]["adversarial_mode"] = "minimax"
    values = {Path("a"): result, Path("b"): other, Path("c"): third}
    runs = {path: decode(Disentanglement, value, path.name) for path, value in values.items()}
    evaluations = {Path("a"): evaluation, Path("b"): evaluation, Path("c"): None}
    title, parts = compare(runs, evaluations)
    assert parts[0].headings == ["", "loss.adversarial_mode ridge", "loss.adversarial_mode minimax", "chance"]
    assert "ridge: seeds 0, 1; loss.adversarial_mode minimax: seeds 1" in title
    rows, mean = {row[0]: row[1:] for part in parts for row in part.rows}, result["dependence"]["cka"]["value"] + 0.05
    everything = rows["cka, all images"]
    assert everything[0] == f"{mean:.3f} ± {0.1 / 2**0.5:.3f}" and "±" not in everything[1]
    for name, digits in (("hsic", 5), ("hsic_normalised", 3), ("cka", 3), ("cka_debiased", 3)):
        # Chance of a sample stands below the value of that sample; it is that of each run's own features.
        at, stored = (
            [row[0] for row in parts[1].rows].index(f"{name}, one image a person"),
            result["dependence"][name],
        )
        sample, chance = (row[1:] for row in parts[1].rows[at : at + 2])
        assert (
            sample[1] == f"{stored['sample']:.{digits}f}" and parts[1].rows[at + 1][0] == f"{name}, the same permuted"
        )
        assert chance[1] == f"{stored['null_mean']:.{digits}f}"
    assert {row[-1] for row in parts[1].rows} == {"–"}, "none of them is chance for all runs"
    assert rows["dual R-1"][1:] == ["–", f"{evaluation.chance['R1']:.2f}"]
    assert (
        rows["f_id: identity"][1] == f"{100 * result['summary']['f_id']['identity']:.2f}"
        and rows["f_id: clothing"][2] == "0.00"
    )
    write_json(run_dir / "eval.json", encode(evaluation) | {"audit": True})
    assert cli.run(main, [str(run_dir)]) == 2 and "enters no table" in capsys.readouterr().err
    with pytest.raises(ValueError, match="the runs are of different data and cannot be compared"):
        compare(runs | {Path("d"): replace(measured, fingerprint="f" * 64)}, evaluations | {Path("d"): None})


def test_the_page_keeps_what_was_written_by_hand(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page, words = tmp_path / "page.md", [str(run_dir), "--markdown", str(tmp_path / "page.md")]
    assert cli.run(main, words) == 0
    first, galleries = page.read_text(), disentangle(run_dir)[0].retrieval
    assert galleries is not None and galleries["other"].chance is not None
    assert f"| f_id other R-1 | {galleries['other'].features['f_id'].R1:.2f} |" in first
    assert f"| {galleries['other'].chance['R1']:.2f} |" in first and "| dual R-1 | – | – |" in first
    assert "Each column is one run" in first and "standard deviation over the seeds" not in first
    page.write_text("before\n" + first.replace("Generated by", "an old table") + "after\n")
    assert cli.run(main, words) == 0
    assert page.read_text() == "before\n" + first + "after\n"
    page.write_text("a page of somebody else\n")
    assert cli.run(main, words) == 2
    assert "names a page that lacks the lines <!-- disentangle:begin -->" in capsys.readouterr().err
    assert page.read_text() == "a page of somebody else\n"


def test_rows_of_an_experiment_are_columns(run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, words = tmp_path / "out", ["--experiment", str(tmp_path / "out")]
    assert cli.run(main, words) == 2
    assert "summary.json is missing: run `python -m training.experiment` first" in capsys.readouterr().err
    shutil.copytree(run_dir, tmp_path / "second")
    rows = [
        {"name": "full", "label": "Full model", "run": "full"},
        {"name": "pending", "label": "pending", "run": None},
        {"name": "minimax", "label": "gradient reversal", "run": "no-gate"},
        {"name": "plain", "label": "Floor: plain dual encoder", "run": "no-cross-attention"},
    ]
    summary = make_summary()
    summary["runs"]["no-cross-attention"]["changes"] = {"model.architecture": "dual-encoder"}
    for key, folder in (("full", run_dir), ("no-gate", tmp_path / "second")):
        summary["runs"][key]["folders"] = [str(folder)]
    tables = {"readings": {"title": "", "rows": rows}, "table1": {"title": "", "rows": rows[1:2]}}
    out.mkdir()
    write_json(out / "summary.json", summary | {"tables": tables})
    page = tmp_path / "page.md"
    assert cli.run(main, [*words, "--markdown", str(page)]) == 0
    assert "|  | Full model | gradient reversal | chance |" in page.read_text() and "seeds 0" in page.read_text()
    for wrong, match in (
        ([*words, "--table", "table9"], "has no table 'table9', expected one of readings, table1"),
        ([*words, "--table", "table1"], "no row of table1 in .*summary.json is finished"),
        ([*words, str(run_dir)], "expected either RUN folders or --experiment OUT"),
        ([], "expected either RUN folders or --experiment OUT"),
    ):
        assert cli.run(main, wrong) == 2
        assert re.search(match, capsys.readouterr().err)
