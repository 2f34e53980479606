"""From a trained run to eval.json and summary.json."""

from __future__ import annotations

import shutil
from collections import Counter
from dataclasses import replace
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from tests.support import contents
from tests.support.tiny_run import tiny_config
from training.config import from_dict
from training.data.datasets import read_dataset
from training.engine import checkpoint
from training.evaluation.dual import evaluate_dual, validate
from training.evaluation.metric_tables import print_table
from training.evaluation.metrics import METRICS, chance_metrics
from training.evaluation.result import Counts
from training.evaluation.run_evaluation import evaluate
from training.evaluation.run_folder import Run
from training.train import train
from training.utils.io import encode, read_json, write_json
from training.utils.machine import cpu_name, machine_name

VECTORS = torch.backends.cpu.get_cpu_capability()
CPU = f"{cpu_name()} with {VECTORS}"


def test_a_loaded_run_is_the_best_checkpoint(trained: Path, root: Path) -> None:
    run, state = checkpoint.load_run(trained), checkpoint.load(trained / "best.pt")
    assert run.config == tiny_config(root) and not run.model.training
    assert (run.epoch, run.beta, run.fingerprint) == (state["epoch"], state["beta"], state["fingerprint"])
    for name, value in run.model.state_dict().items():
        assert torch.equal(value, state["model"][name])


def test_the_best_checkpoint_and_its_beta_are_those_of_the_validation_split(trained: Path) -> None:
    run = checkpoint.load_run(trained)
    splits = read_dataset(run.config.data).splits
    measured = {name: validate(run.model, splits[name], run.tokenizer, run.config) for name in ("val", "test")}
    logged = next(x for x in Run(trained).log.validations if x["epoch"] == run.epoch)
    assert {name: logged[name] for name in measured["val"]} == pytest.approx(measured["val"], rel=1e-6)
    assert logged["mAP"] != pytest.approx(measured["test"]["mAP"], rel=1e-3)
    assert run.beta == measured["val"]["beta"]


def test_a_run_that_cannot_be_loaded_is_named(run_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="holds no trained model: there is no .*best.pt"):
        checkpoint.load_run(tmp_path / "nowhere")
    state = checkpoint.load(run_dir / "best.pt")
    checkpoint.save(run_dir / "best.pt", state | {"config": {"recipe": "x"}})
    with pytest.raises(
        ValueError, match=r"best\.pt is not a checkpoint of this version: config: missing fields: data, eval, "
    ):
        checkpoint.load_run(run_dir)


def test_contents_of_the_evaluation(run_dir: Path, root: Path) -> None:
    evaluation, new = evaluate(run_dir)
    assert new and encode(evaluation) == read_json(run_dir / "eval.json")
    run, records = checkpoint.load_run(run_dir), read_dataset(tiny_config(root).data).splits["test"]
    dual, metrics = evaluate_dual(run.model, records, run.tokenizer, run.config, (0.0, run.beta))
    assert evaluation.metrics == metrics[run.beta].mean() and evaluation.metrics_beta0 == metrics[0.0].mean()
    assert evaluation.chance == chance_metrics(dual.query_ids_Q, dual.gallery_ids_G)
    assert evaluation.counts == Counts(queries=48, gallery=24, ids=8)
    assert from_dict(evaluation.config) == run.config and evaluation.beta == run.beta
    assert evaluation.data is not None and evaluation.memory_mb is not None
    assert evaluation.data.counts["test"] == {"ids": 8, "images": 24, "captions": 48}
    assert evaluation.data.split == "train, val and test as the file has them"
    assert evaluation.memory_mb > 50 and all(value > 0 for value in evaluation.seconds.values())
    assert evaluation.ties is False and "torch" in evaluation.versions


def test_values_of_each_query_average_to_the_metrics(run_dir: Path) -> None:
    evaluation = evaluate(run_dir)[0]
    with np.load(run_dir / "eval-queries.npz") as stored:
        assert sorted(stored) == ["ap", "ids", "r1"] and {stored[name].shape for name in stored} == {(48,)}
        assert 100 * stored["ap"].mean() == pytest.approx(evaluation.metrics["mAP"], abs=1e-4)
        assert 100 * stored["r1"].mean() == pytest.approx(evaluation.metrics["R1"], abs=1e-4)
        # 3 images with 2 captions of each of 8 people, in the order of the split.
        assert len(set(stored["ids"])) == 8 and all(len(set(part)) == 1 for part in np.split(stored["ids"], 8))


def test_cost_of_a_run(run_dir: Path) -> None:
    evaluation = evaluate(run_dir)[0]
    model = checkpoint.load_run(run_dir).model
    cost = evaluation.efficiency
    assert cost is not None and cost.speed.pairs is not None
    assert cost.parameters.total == sum(p.numel() for p in model.parameters())
    assert cost.speed.images.batch == 24 and cost.speed.pairs.median > 0
    assert evaluation.training_memory_mb == read_json(run_dir / "resources.json")["memory_mb"] > 50
    (run_dir / "resources.json").unlink()
    (run_dir / "eval.json").unlink()
    assert evaluate(run_dir)[0].training_memory_mb is None
    assert read_json(run_dir / "eval.json")["training_memory_mb"] is None


def test_memory_of_a_continued_run_is_that_of_its_largest_process(run_dir: Path, root: Path) -> None:
    write_json(run_dir / "resources.json", {"memory_mb": 1e9})
    train(tiny_config(root), run_dir, resume=True)
    resources = read_json(run_dir / "resources.json")
    assert resources == {"memory_mb": 1e9, "machines": [f"{CPU}, {threads_here()}"]}


def threads_here() -> str:
    number = torch.get_num_threads()
    return f"{number} thread{'s' * (number > 1)}"


def test_processor_and_threads_are_stored(run_dir: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluation, here = evaluate(run_dir)[0], f"{CPU}, {threads_here()}"
    assert (evaluation.versions["cpu"], evaluation.versions["threads"]) == (CPU, str(torch.get_num_threads()))
    assert Run(run_dir).machine == here
    # A run that two machines have trained names both; an early one has the machine of its evaluation only.
    monkeypatch.setattr("training.engine.device.cpu_name", lambda: "Other CPU")
    train(tiny_config(root), run_dir, resume=True)
    assert Run(run_dir).machine == f"{here} then Other CPU with {VECTORS}, {threads_here()}"
    write_json(run_dir / "resources.json", {"memory_mb": 1.0})
    assert Run(run_dir).machine == here
    assert machine_name({}) == "unknown CPU, ? threads" and machine_name({"cpu": "A", "threads": "1"}) == "A, 1 thread"


def test_examples_are_the_top_ten_of_ten_queries(run_dir: Path) -> None:
    evaluation = evaluate(run_dir)[0]
    run = checkpoint.load_run(run_dir)
    records = read_dataset(run.config.data).splits["test"]
    dual, _ = evaluate_dual(run.model, records, run.tokenizer, run.config, (run.beta,))
    scores = dual.similarity(run.beta)
    assert [len(e.results) for e in evaluation.examples] == [10] * 10
    for example in evaluation.examples:
        row = scores[dual.captions.index(example.caption)]
        values = [result.score for result in example.results]
        assert values == pytest.approx(row.sort(descending=True).values[:10].tolist(), abs=1e-6)
        for result in example.results:
            record = next(r for r in records if r.file_path == result.file_path)
            assert result.id == record.id and result.correct == (record.id == example.id)


def test_histograms_count_every_value(run_dir: Path) -> None:
    run, histograms = checkpoint.load_run(run_dir), evaluate(run_dir)[0].histograms
    found = {name: histogram for name, histogram in histograms.items() if histogram is not None}
    totals = {name: sum(histogram.counts) for name, histogram in found.items()}
    assert totals == {"gate_id": 24 * 16, "gate_clo": 24 * 16, "fusion_image": 24, "fusion_text": 24}
    assert run.model.fusion is not None
    assert found["gate_id"].mean + found["gate_clo"].mean == pytest.approx(1.0)
    assert found["fusion_image"].mean + found["fusion_text"].mean == pytest.approx(1.0)
    assert len(found["gate_id"].edges) == len(found["gate_id"].counts) + 1


def test_operator_calls_of_training_and_evaluation_are_added(run_dir: Path) -> None:
    trained, both = read_json(run_dir / "calls.json"), evaluate(run_dir)[0].calls
    assert any(name.startswith("hsic.") for name in both)
    difference = Counter(both)
    difference.subtract(trained)
    # One batch of pairs through the fusion's one layer, no losses and no gradients.
    forward = {name.split(".")[0]: n for name, n in difference.items() if n and name.endswith(".forward")}
    assert forward == {"selective_scan": 1, "causal_conv1d": 1}
    assert sum(difference.values()) == 2


def test_without_gate_and_fusion_their_histograms_are_null(root: Path, tmp_path: Path) -> None:
    config = tiny_config(root)
    model = replace(
        config.model,
        bdam=replace(config.model.bdam, gate=False),
        fusion=replace(config.model.fusion, enabled=False),
    )
    train(replace(config, model=model), tmp_path / "run")
    assert set(evaluate(tmp_path / "run")[0].histograms.values()) == {None}


def test_the_test_split_is_evaluated_once(run_dir: Path) -> None:
    first, _ = evaluate(run_dir)
    before = contents(run_dir)
    assert evaluate(run_dir) == (first, False)
    assert contents(run_dir) == before


def test_evaluation_of_another_checkpoint_is_not_overwritten(run_dir: Path) -> None:
    evaluate(run_dir)
    shutil.copy(run_dir / "last.pt", run_dir / "best.pt")
    before = contents(run_dir)
    with pytest.raises(
        ValueError, match=r"eval\.json was computed from a different checkpoint than best\.pt; delete or"
    ):
        evaluate(run_dir)
    assert contents(run_dir) == before


def test_other_data_than_trained_on_is_refused(run_dir: Path, root: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(root, tmp_path / "data"))
    text = (copied / "descriptions.jsonl").read_text()
    (copied / "descriptions.jsonl").write_text(text.replace("adult", "grown-up"))
    state = checkpoint.load(run_dir / "best.pt")
    state["config"]["data"]["root"] = str(copied)
    checkpoint.save(run_dir / "best.pt", state)
    with pytest.raises(
        ValueError, match=r"is not the data that .* was trained on: fingerprint \w{12}, expected \w{12}$"
    ):
        evaluate(run_dir)
    assert not (run_dir / "eval.json").exists()


def test_table_shows_the_numbers(run_dir: Path) -> None:
    evaluation, out = evaluate(run_dir)[0], StringIO()
    print_table(replace(evaluation, ties=True), Console(file=out, width=120))
    text = out.getvalue()
    for name in METRICS:
        for values in (evaluation.metrics, evaluation.metrics_beta0, evaluation.chance):
            assert f"{values[name]:.2f}" in text
        assert f"{evaluation.metrics[name] / evaluation.chance[name]:.1f}" in text
    assert "Tied scores occur" in text and "48 queries, 24 images, 8 identities" in text
