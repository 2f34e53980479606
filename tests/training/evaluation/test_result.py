"""Result files as dataclasses: the files of version 0.1.0 and what a reader says of a broken one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.fake_experiment import make_summary
from training.config import from_dict
from training.engine.memory import Resources
from training.evaluation.disentangle_result import Disentanglement, Probe, SkippedProbe
from training.evaluation.experiment_result import Summary, read_summary
from training.evaluation.result import Evaluation, ProtocolEvaluation, flatten, read_evaluation
from training.evaluation.run_folder import Run, read_run
from training.utils.io import decode, encode, write_json

# As version 0.1.0 wrote them, with fewer examples, bins, probes and features.
STORED: dict[str, Any] = json.loads(Path(__file__).with_name("results-0.1.0.json").read_text())
KINDS: dict[str, Any] = {
    "eval.json": Evaluation,
    "eval-rerank.json": ProtocolEvaluation,
    "eval-gallery-text.json": ProtocolEvaluation,
    "eval-paired-audit.json": ProtocolEvaluation,
    "disentangle.json": Disentanglement,
    "summary.json": Summary,
    "resources.json": Resources,
    "calls.json": dict[str, int],
}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run folder with the stored result files."""
    for name, values in STORED.items():
        if name == "metrics.jsonl":
            (tmp_path / name).write_text("".join(json.dumps(line) + "\n" for line in values))
        else:
            # Stored from two runs: all results of a folder are of its one checkpoint.
            same = {"checkpoint": STORED["eval.json"]["checkpoint"]} if "checkpoint" in values else {}
            write_json(tmp_path / name, values | same)
    return Run(tmp_path)


@pytest.mark.parametrize("name", KINDS)
def test_stored_files_are_read_and_written_unchanged(name: str) -> None:
    assert encode(decode(KINDS[name], STORED[name], name)) == STORED[name]


def test_a_stored_run_is_read_whole(run: Run) -> None:
    assert run.is_finished and from_dict(run.evaluation.config).recipe == STORED["eval.json"]["config"]["recipe"]
    assert run.training_memory_mb == STORED["resources.json"]["memory_mb"]
    assert run.calls == STORED["calls.json"]
    step, validation = STORED["metrics.jsonl"]
    assert [line.losses for line in run.log.steps] == [step["losses"]]
    assert [line["mAP"] for line in run.log.validations] == [validation["mAP"]]
    assert run.disentanglement is not None and run.disentanglement.probes is not None
    kinds = {name: type(probe) for name, probe in run.disentanglement.probes.items()}
    assert kinds["sex"] is Probe
    assert set(kinds.values()) <= {Probe, SkippedProbe}
    assert read_summary(run.folder).missing == []
    with pytest.raises(FileNotFoundError, match=r"disentangle\.npz is missing"):
        read_run(run.folder)


def test_fields_of_later_versions_have_defaults() -> None:
    early = {
        key: STORED["eval.json"][key] for key in ("metrics", "metrics_beta0", "beta", "chance", "counts", "config")
    }
    evaluation = decode(Evaluation, early, "eval.json")
    assert (
        evaluation.data is None and evaluation.ties is None and evaluation.examples == [] and evaluation.seconds == {}
    )
    later = STORED["eval.json"] | {"of a later version": 1}
    assert decode(Evaluation, later, "eval.json") == decode(Evaluation, STORED["eval.json"], "eval.json")
    data = {key: value for key, value in STORED["eval.json"]["data"].items() if key not in ("split", "left_out")}
    evaluation = decode(Evaluation, early | {"data": data}, "eval.json")
    assert encode(evaluation)["data"] == data and encode(evaluation)["training_memory_mb"] is None


@pytest.mark.parametrize("name", ["eval.json", "disentangle.json", "summary.json"])
def test_every_required_field_is_named_when_it_is_missing(name: str) -> None:
    with pytest.raises(ValueError, match=rf"^{name} lacks the fields ") as error:
        decode(KINDS[name], {}, name)
    for field in str(error.value).removeprefix(f"{name} lacks the fields ").split(", "):
        with pytest.raises(ValueError, match=rf"^{name} lacks the fields {field}$"):
            decode(KINDS[name], {key: value for key, value in STORED[name].items() if key != field}, name)


def test_the_summary_of_a_fake_experiment_is_in_the_format() -> None:
    values = json.loads(json.dumps(make_summary()))
    assert encode(decode(Summary, values, "summary.json")) == values


def test_results_of_the_audit_are_no_evaluation(run: Run) -> None:
    with pytest.raises(ValueError, match=r"eval-paired-audit\.json is of the protocol paired-audit"):
        read_evaluation(run.folder / "eval-paired-audit.json")


def test_nested_configurations_are_flattened() -> None:
    assert flatten({"a": {"b": (1, 2), "c": {}}, "d": "e"}) == {"a.b": [1, 2], "d": "e"}
