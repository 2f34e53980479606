"""Every stage on a device other than the CPU, without a card: on labelled tensors, where mixing devices raises.

They compute on the CPU, so that the results must be those of the CPU. Operators take the reference there.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.support.labelled import elsewhere
from tests.support.tiny_run import tiny_config
from training import evaluate, search
from training.config import Config
from training.data.datasets import read_dataset
from training.disentangle.features import collect
from training.engine import checkpoint
from training.engine.train_run import build_trainer
from training.engine.train_step import StepResult
from training.evaluation import dual
from training.evaluation.diagnosis.loss_gradients import batches, loss_gradients
from training.evaluation.protocols.measure import measure
from training.evaluation.protocols.protocol_names import PROTOCOLS, NotMeasurable
from training.retrieval.embedders import TorchEmbedder
from training.utils import cli
from training.utils.io import read_json

CPU = torch.device("cpu")
pytestmark = pytest.mark.filterwarnings("ignore:.*running the slow reference")


@pytest.fixture
def meta(monkeypatch: pytest.MonkeyPatch) -> Iterator[torch.device]:
    """A device with backward passes, on which the fused optimiser runs."""
    supported = "_get_fused_kernels_supported_devices"
    monkeypatch.setattr(sys.modules["torch.optim.optimizer"], supported, lambda: ["cpu", "meta"])
    with elsewhere() as device:
        yield device


@pytest.fixture
def loads_there(meta: torch.device, monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """The device, chosen by auto for the checkpoint of a run."""
    monkeypatch.setattr(checkpoint, "select_device", lambda name: {"auto": meta, "cpu": CPU}[name])
    return meta


def take_steps(config: Config, device: torch.device, folder: Path) -> list[StepResult]:
    trainer, _ = build_trainer(config, read_dataset(config.data), folder, dual.validate, device=device)
    trainer.loader.set_epoch(0)
    trainer.model.train()
    steps = [trainer.train_step(batch) for batch, _ in zip(trainer.loader, range(2), strict=False)]
    assert {p.device for p in trainer.model.parameters()} == {device}
    return steps


def micro_batches(config: Config) -> Config:
    """Without dropout: PyTorch does not replay the random numbers of "meta" when it recomputes activations."""
    model = config.model
    model = replace(model, bdam=replace(model.bdam, dropout=0.0), fusion=replace(model.fusion, dropout=0.0))
    return replace(config, model=model, optim=replace(config.optim, accumulate=2, checkpointing=True))


def printed_losses(config: Config) -> Config:
    loss = replace(config.loss, adversarial_mode="paper", decoupling_measure="hsic", info_nce_symmetric=False)
    return replace(config, loss=replace(loss, caption_positives="identity", final_triplet=True))


def other_losses(config: Config) -> Config:
    loss = replace(config.loss, adversarial_mode="critic", triplet_smoothing=0.0, hsic_kernel="rbf")
    return replace(config, loss=replace(loss, final_negatives="next", matching_form="linear"))


def transformer(config: Config) -> Config:
    model = config.model
    return replace(config, model=replace(model, fusion=replace(model.fusion, layers_kind="transformer")))


ARRANGEMENTS: dict[str, Callable[[Config], Config]] = {
    "as configured": lambda config: config,
    "micro-batches": micro_batches,
    "printed losses": printed_losses,
    "other losses": other_losses,
    "transformer": transformer,
}


@pytest.mark.parametrize("name", ARRANGEMENTS)
def test_a_step_makes_no_tensor_without_a_device(name: str, root: Path, tmp_path: Path, request: Any) -> None:
    """The same losses and norms as on the CPU, up to the order of sums; those of later steps show the weights."""
    tiny = tiny_config(root)
    config = ARRANGEMENTS[name](replace(tiny, model=replace(tiny.model, backend="reference")))
    expected = take_steps(config, CPU, tmp_path)
    got = take_steps(config, request.getfixturevalue("meta"), tmp_path)
    for a, b in zip(got, expected, strict=True):
        assert a.losses == pytest.approx(b.losses, rel=1e-4, abs=1e-6)
        assert a.norms == pytest.approx(b.norms, rel=1e-3, abs=1e-5) and a.norms


def test_a_tensor_of_the_step_without_a_device_is_found(
    meta: torch.device, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "training.engine.losses.gate_regularisation", lambda gate: (gate * torch.ones(len(gate), 1)).mean()
    )
    with pytest.raises(RuntimeError, match="mixes tensors of meta and of the CPU"):
        take_steps(tiny_config(root), meta, tmp_path)


def results(run_dir: Path, device: str) -> dict[str, Any]:
    """Results that the commands compute from the best checkpoint, as numbers."""
    run = checkpoint.load_run(run_dir, device=device)
    records = read_dataset(run.config.data).splits["test"]
    found: dict[str, Any] = {"device": run.device.type}
    for protocol in PROTOCOLS[1:]:
        with suppress(NotMeasurable):
            result = measure(run, records, protocol, 4).result
            found[protocol] = list((result.metrics_audit if result.audit else result.metrics).values())
    features = collect(run, records)
    return found | {name: value.tolist() for name, value in features.items()}


def test_protocols_and_features_elsewhere(loads_there: torch.device, run_dir: Path) -> None:
    got, expected = results(run_dir, "auto"), results(run_dir, "cpu")
    assert (got.pop("device"), expected.pop("device")) == ("meta", "cpu")
    assert {"rerank", "paired-audit", "f_final_other"} <= got.keys() == expected.keys()
    for name, value in expected.items():
        assert np.allclose(got[name], value, rtol=1e-3, atol=1e-4), name


def test_embedders_and_search_elsewhere(
    loads_there: torch.device, run_dir: Path, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (3, 3, *tiny_config(root).data.image_size), np.uint8)
    there, here = (TorchEmbedder(run_dir, device=name) for name in ("auto", "cpu"))
    assert there.run.device.type == "meta"
    for ask in (lambda e: e.embed_images(pixels), lambda e: e.embed_texts(["a man in a red jacket", "blue trousers"])):
        assert np.allclose(ask(there), ask(here), rtol=1e-3, atol=1e-4)
    found = []
    for name in ("auto", "cpu"):
        words = [str(run_dir), "a red shirt", "--json", "--k", "3", "--device", name]
        assert cli.run(search.main, words) == 0, capsys.readouterr().err
        found.append(json.loads(capsys.readouterr().out))
    assert found[0].keys() == found[1].keys() and "results" in found[0]
    assert [r["path"] for r in found[0]["results"]] == [r["path"] for r in found[1]["results"]]


def test_the_command_evaluate_elsewhere(
    loads_there: torch.device, run_dir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # The gradients have a test of their own.
    monkeypatch.setattr("training.evaluation.diagnosis.diagnose._tasks", lambda *_: {})
    assert cli.run(evaluate.main, [str(run_dir)]) == 0, capsys.readouterr().err
    result = read_json(run_dir / "eval.json")
    assert result["efficiency"]["speed"]["pairs"]["median"] > 0 and result["histograms"]["fusion_image"]["counts"]


def test_gradients_of_the_diagnosis_on_another_device(meta: torch.device, trained: Path) -> None:
    with torch.utils._python_dispatch._disable_current_modes():
        run = checkpoint.load_run(trained)
        config = replace(run.config, model=replace(run.config.model, backend="reference"))
        model = checkpoint.build_model(config, run.tokenizer)
        model.load_state_dict(run.model.state_dict())
        dataset = read_dataset(config.data)
        sample = batches(dataset, dataset.splits["train"], run.tokenizer, config)
        expected = loss_gradients(model, sample, config)
    got = loss_gradients(model.to(meta), sample, config)
    assert got.keys() == expected.keys() and len(got) > 5
    for name, numbers in expected.items():
        assert got[name] == pytest.approx(numbers, rel=1e-3, abs=1e-5), name
