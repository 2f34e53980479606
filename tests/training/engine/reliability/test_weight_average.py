"""The exponential moving average of the weights: formula, validation beside the weights, exact resume."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.support.tiny_run import Interrupting, read_lines, same_state, tiny_config
from training.config import Config
from training.data.loader import TrainLoader
from training.engine import checkpoint
from training.engine.weight_average import WeightAverage
from training.train import train


def with_average(root: Path, decay: float = 0.9) -> Config:
    config = tiny_config(root)
    return replace(config, optim=replace(config.optim, ema=decay, save_every_steps=3))


def test_formula(trained: Path) -> None:
    model = checkpoint.load_run(trained).model
    average = WeightAverage(model, 0.5)
    name = next(n for n, p in model.named_parameters() if p.ndim == 2)
    weight = dict(model.named_parameters())[name]
    expected = weight.detach().double().clone()
    for step in range(1, 40):
        with torch.no_grad():
            weight.add_(torch.randn_like(weight))
        average.update(step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * weight.detach().double()
    torch.testing.assert_close(average.weights[name].double(), expected, atol=1e-5, rtol=1e-5)
    own = weight.detach().clone()
    with average.applied():
        assert torch.equal(weight, average.weights[name]) and not torch.equal(weight, own)
    assert torch.equal(weight, own)


def test_both_are_validated_and_the_better_one_is_kept(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    values = iter([1.0, 2.0, 5.0, 4.0, 3.0, 6.0])
    monkeypatch.setattr(
        "training.evaluation.dual.validate", lambda *a, **k: {"R1": (v := next(values)), "mAP": v, "beta": v / 10}
    )
    train(with_average(root), tmp_path / "run")
    lines = [line for line in read_lines(tmp_path / "run") if line["kind"] == "validation"]
    assert [(line["R1"], line["ema_R1"]) for line in lines] == [(1.0, 2.0), (5.0, 4.0), (3.0, 6.0)]
    best, last = (checkpoint.load(tmp_path / "run" / name) for name in ("best.pt", "last.pt"))
    assert (best["best"], best["beta"], best["epoch"], best["progress"]["averaged"]) == (6.0, 0.6, 3, True)
    assert same_state(best["model"], last["ema"]) and not same_state(best["model"], last["model"])
    assert "averaged: R-1 6.00  mAP 6.00  best (averaged)" in capfd.readouterr().out


def test_the_weights_do_not_depend_on_the_average(root: Path, trained: Path, tmp_path: Path) -> None:
    train(with_average(root), tmp_path / "run")
    ours, theirs = (checkpoint.load(run / "last.pt") for run in (tmp_path / "run", trained))
    assert same_state(ours["model"], theirs["model"]) and "ema" not in theirs


def test_interrupted_and_resumed_has_the_same_average(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(with_average(root), tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr("training.engine.train_run.TrainLoader", lambda *a: Interrupting(TrainLoader(*a), 7))
        with pytest.raises(KeyboardInterrupt):
            train(with_average(root), tmp_path / "run")
    train(with_average(root), tmp_path / "run", resume=True)
    for name in ("last.pt", "best.pt"):
        assert same_state(*(checkpoint.load(tmp_path / run / name) for run in ("run", "whole"))), name
    assert read_lines(tmp_path / "run") == read_lines(tmp_path / "whole")
