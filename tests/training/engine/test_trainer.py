"""The training loop on a miniature data set: schedule, gradients, selection, resume, failures."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.support import contents
from tests.support.tiny_run import Interrupting, read_lines, tiny_config
from training.config import Config
from training.data.datasets import read_dataset
from training.data.loader import Batch, TrainLoader
from training.data.tokenizer import build_tokenizer
from training.engine import checkpoint
from training.engine.losses import fixed_losses, task_losses
from training.engine.train_step import build_optimizer, learning_rate_factor
from training.engine.trainer import Trainer
from training.train import train
from training.utils.io import read_json, write_json


def build(config: Config, run_dir: Path, metrics: list[dict[str, float]] | None = None) -> Trainer:
    """A trainer whose validation reads the given values, one after the other."""
    values: Iterator[dict[str, float]] = iter(metrics or [{"R1": 1.0, "mAP": 1.0, "beta": 0.0}] * 100)
    dataset = read_dataset(config.data)
    torch.manual_seed(config.seed)
    tokenizer = build_tokenizer(config.model.text, [r.captions[0] for r in dataset.splits["train"]])
    loader = TrainLoader(dataset, tokenizer, config.data, config.seed)
    model = checkpoint.build_model(config, tokenizer)
    return Trainer(
        config, model, loader, run_dir, lambda _: next(values), inputs=checkpoint.Inputs(dataset.fingerprint)
    )


def first_batch(trainer: Trainer) -> Batch:
    trainer.loader.set_epoch(0)
    return next(iter(trainer.loader))


def test_schedule_warms_up_and_decays_to_zero() -> None:
    factors = [learning_rate_factor(step, 4, 12) for step in range(12)]
    assert factors[:5] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])
    assert factors[8] == pytest.approx(0.5)
    assert factors[4:] == sorted(factors[4:], reverse=True) and 0 < factors[-1] < 0.05
    assert learning_rate_factor(0, 0, 12) == 1.0


def test_step_follows_the_gradient_of_the_weighted_sum(root: Path, tmp_path: Path) -> None:
    config = tiny_config(root, optim=replace(tiny_config(root).optim, clip_norm=0.0))
    trainer = build(config, tmp_path)
    trainer.stepper.gradnorm.load_state_dict(
        trainer.stepper.gradnorm.state_dict()
        | {"log_weights": dict(zip(trainer.stepper.gradnorm.weights(), [0.3, -0.2, 0.2, 0.1, 0.5, -0.4], strict=True))}
    )
    batch, weights = first_batch(trainer), trainer.stepper.gradnorm.weights()
    torch.manual_seed(5)
    features = trainer.model(batch)
    losses = task_losses(features, batch.ids_B, batch.clothing_group_B, config.loss, "auto")
    gate = sum(fixed_losses(features, config.loss).values())
    total = gate + sum(weights[name] * value for name, value in losses.items())
    expected = torch.autograd.grad(total, trainer.stepper.parameters, allow_unused=True)
    torch.manual_seed(5)
    step = trainer.train_step(batch)
    assert step.loss == pytest.approx(float(total.detach()), rel=1e-5)
    assert sum(g is not None for g in expected) > 20
    for parameter, gradient in zip(trainer.stepper.parameters, expected, strict=True):
        got = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        wanted = torch.zeros_like(parameter) if gradient is None else gradient
        torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-5)


def test_gradient_norm_is_clipped(root: Path, tmp_path: Path) -> None:
    trainer = build(tiny_config(root, optim=replace(tiny_config(root).optim, clip_norm=1e-3)), tmp_path)
    trainer.train_step(first_batch(trainer))
    norms = [p.grad.norm() for p in trainer.stepper.parameters if p.grad is not None]
    assert float(torch.stack(norms).norm()) == pytest.approx(1e-3, rel=1e-3)


def test_training_on_one_batch_lowers_the_loss(root: Path, tmp_path: Path) -> None:
    optim = replace(tiny_config(root).optim, lr=1e-2, epochs=100, warmup_epochs=0)
    config = tiny_config(root, optim=optim)
    config = replace(config, gradnorm=replace(config.gradnorm, enabled=False))
    trainer = build(config, tmp_path)
    batch = first_batch(trainer)
    steps = [trainer.train_step(batch) for _ in range(40)]
    assert steps[-1].losses["info_nce"] < 0.6 * steps[0].losses["info_nce"]
    assert set(steps[-1].weights.values()) == {1.0} and steps[-1].norms == {}


def test_task_weights_move_after_their_warm_steps(root: Path, tmp_path: Path) -> None:
    config = tiny_config(root)
    trainer = build(replace(config, gradnorm=replace(config.gradnorm, warm_steps=2)), tmp_path)
    batch = first_batch(trainer)
    weights = [trainer.train_step(batch).weights for _ in range(4)]
    assert set(weights[2].values()) == {1.0} and len(set(weights[3].values())) > 1
    assert sum(weights[3].values()) == pytest.approx(6.0)


def test_task_weights_follow_losses_and_norms_without_their_weights(root: Path, tmp_path: Path) -> None:
    config = tiny_config(root)
    trainer = build(replace(config, gradnorm=replace(config.gradnorm, warm_steps=1)), tmp_path)
    batch, balance = first_batch(trainer), trainer.stepper.gradnorm
    trainer.train_step(batch)
    unequal = dict(zip(balance.weights(), [1.0, -1.5, 0.5, 0.1, -0.5, 0.4], strict=True))
    balance.load_state_dict(balance.state_dict() | {"log_weights": unequal})
    expected = copy.deepcopy(balance)
    torch.manual_seed(5)
    losses = task_losses(trainer.model(batch), batch.ids_B, batch.clothing_group_B, config.loss, "auto")
    torch.manual_seed(5)
    step = trainer.train_step(batch)
    values = {name: float(value.detach()) for name, value in losses.items()}
    assert {name: step.losses[name] for name in values} == pytest.approx(values, rel=1e-5)
    expected.update(values, step.norms)
    assert balance.weights() == pytest.approx(expected.weights(), rel=1e-5)


def test_a_switched_off_loss_and_a_frozen_encoder_take_no_part(root: Path, tmp_path: Path) -> None:
    config = tiny_config(root)
    model = replace(config.model, text=replace(config.model.text, trainable=False))
    config = replace(config, model=model, loss=replace(config.loss, triplet=False, gate_regularisation=False))
    trainer = build(config, tmp_path)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    step = trainer.train_step(first_batch(trainer))
    assert set(step.losses) == {"info_nce", "clothing", "adversarial", "decoupling", "matching"} == set(step.norms)
    changed = {name for name, value in trainer.model.state_dict().items() if not torch.equal(value, before[name])}
    assert any(name.startswith("visual.") for name in changed)
    assert not any(name.startswith("text.") for name in changed)


def test_optimiser_is_the_one_of_the_configuration(root: Path, tmp_path: Path) -> None:
    config = tiny_config(root)
    model = build(config, tmp_path).model
    assert type(build_optimizer(model, config.optim)) is torch.optim.AdamW
    adam = build_optimizer(model, replace(config.optim, optimizer="adam", weight_decay=0.5))
    assert type(adam) is torch.optim.Adam and {0.5, 0.0} == {group["weight_decay"] for group in adam.param_groups}


def test_files_of_a_run(trained: Path) -> None:
    names = "best.pt calls.json config.json images.json last.pt metrics.jsonl resources.json tensorboard tokenizer"
    assert sorted(p.name for p in trained.iterdir()) == names.split()
    lines = read_lines(trained)
    steps = [line for line in lines if line["kind"] == "step"]
    assert [line["step"] for line in steps] == list(range(1, len(steps) + 1)) and len(steps) % 3 == 0
    assert steps[0]["lr"] < steps[len(steps) // 3]["lr"] and steps[-1]["lr"] < 1e-4
    validations = [line for line in lines if line["kind"] == "validation"]
    assert [line["epoch"] for line in validations] == [1, 2, 3]
    best = max(validations, key=lambda line: (line["R1"], -line["epoch"]))
    state = checkpoint.load(trained / "best.pt")
    assert (state["epoch"], state["best"], state["beta"]) == (best["epoch"], best["R1"], best["beta"])
    assert "optimizer" not in state and checkpoint.load(trained / "last.pt")["epoch"] == 3


def test_validation_selects_the_checkpoint(root: Path, tmp_path: Path) -> None:
    config = tiny_config(root, optim=replace(tiny_config(root).optim, epochs=4))
    values = [(10.0, 0.0), (30.0, 0.5), (30.0, 1.0), (20.0, 0.25)]
    trainer = build(config, tmp_path, [{"R1": r1, "mAP": -r1, "beta": beta} for r1, beta in values])
    progress = trainer.fit()
    state = checkpoint.load(tmp_path / "best.pt")
    assert (state["epoch"], state["best"], state["beta"]) == (2, 30.0, 0.5)
    assert (progress.epoch, progress.best_epoch) == (4, 2)


def test_validation_every_second_epoch_and_after_the_last(root: Path, tmp_path: Path) -> None:
    build(tiny_config(root, optim=replace(tiny_config(root).optim, validate_every=2)), tmp_path).fit()
    assert [line["epoch"] for line in read_lines(tmp_path) if line["kind"] == "validation"] == [2, 3]


def test_every_epoch_has_its_own_batches_and_trains_in_training_mode(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = build(tiny_config(root), tmp_path)
    seen: list[tuple[tuple[str, ...], bool]] = []
    step = trainer.train_step
    monkeypatch.setattr(trainer, "train_step", lambda b: seen.append((b.paths, trainer.model.training)) or step(b))
    trainer.validate = lambda model: {"R1": 1.0, "mAP": 1.0, "beta": 0.0 * model.eval().training}
    trainer.fit()
    assert all(training for _, training in seen)
    assert len({paths for paths, _ in seen}) == len(seen)


@pytest.mark.parametrize("epochs_done", [0.5, 1.5, 2.75])
def test_interrupted_and_resumed_equals_uninterrupted(
    epochs_done: float, root: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir, config = tmp_path / "run", tiny_config(root)
    steps = max(line["step"] for line in read_lines(trained)) // 3
    with monkeypatch.context() as patch:
        patch.setattr(
            "training.engine.train_run.TrainLoader", lambda *a: Interrupting(TrainLoader(*a), int(steps * epochs_done))
        )
        with pytest.raises(KeyboardInterrupt):
            train(config, run_dir)
    assert (run_dir / "last.pt").exists() == (epochs_done > 1)
    with open(run_dir / "metrics.jsonl", "a") as log:
        log.write('{"kind": "step", "ep')
    torch.rand(7)
    train(config, run_dir, resume=True)
    assert read_lines(run_dir) == read_lines(trained)
    ours, theirs = (checkpoint.load(folder / "last.pt") for folder in (run_dir, trained))
    for name, value in theirs["model"].items():
        assert torch.equal(ours["model"][name], value), name
    assert ours["calls"] == theirs["calls"] == read_json(run_dir / "calls.json")
    assert torch.equal(ours["rng"][0], theirs["rng"][0]) and ours["gradnorm"] == theirs["gradnorm"]
    assert contents(run_dir / "tokenizer") == contents(trained / "tokenizer")


def test_resuming_a_finished_run_changes_no_number(root: Path, run_dir: Path) -> None:
    before = read_lines(run_dir), checkpoint.load(run_dir / "last.pt")["progress"]
    train(tiny_config(root), run_dir, resume=True)
    assert (read_lines(run_dir), checkpoint.load(run_dir / "last.pt")["progress"]) == before


def test_another_seed_gives_other_numbers(root: Path, trained: Path, tmp_path: Path) -> None:
    train(tiny_config(root, seed=1), tmp_path / "run")
    assert read_lines(tmp_path / "run")[0]["loss"] != read_lines(trained)[0]["loss"]


def test_a_loss_that_is_not_finite_stops_with_its_step_and_files(root: Path, tmp_path: Path) -> None:
    trainer = build(tiny_config(root), tmp_path)
    with torch.no_grad():
        trainer.model.text_projection[0].weight.fill_(math.nan)
    expected = (
        r"training is no longer finite at step 1: info_nce nan, .*; batch: train/\d{4}_\d\.jpg, .*, \.\.\. \(all in "
    )
    with pytest.raises(RuntimeError, match=expected):
        trainer.fit()
    assert not (tmp_path / "last.pt").exists() and read_lines(tmp_path) == []
    saved = read_json(tmp_path / "nonfinite.json")
    assert (saved["step"], saved["epoch"], saved["values"]["info_nce"]) == (1, 1, "nan")
    assert 0 < saved["values"]["triplet"] < 2 and saved["files"] == list(first_batch(trainer).paths)


def test_a_gradient_that_is_not_finite_stops_before_the_weights_change(root: Path, tmp_path: Path) -> None:
    trainer = build(tiny_config(root), tmp_path)
    before = {name: value.clone() for name, value in trainer.model.named_parameters()}
    trainer.stepper.parameters[0].register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(RuntimeError, match="no longer finite at step 1: gradient norm (nan|inf)"):
        trainer.train_step(first_batch(trainer))
    saved = read_json(tmp_path / "nonfinite.json")
    assert saved["values"]["gradient norm"] in ("nan", "inf") and len(saved["files"]) == len(first_batch(trainer).paths)
    assert all(torch.equal(value, before[name]) for name, value in trainer.model.named_parameters())


@pytest.mark.parametrize("name", ["config", "fingerprint"])
def test_last_checkpoint_of_another_run_is_refused(name: str, root: Path, tmp_path: Path) -> None:
    config = tiny_config(root, optim=replace(tiny_config(root).optim, epochs=2))
    build(config, tmp_path).fit()
    before = contents(tmp_path)
    other = build(replace(config, seed=9) if name == "config" else config, tmp_path)
    other.inputs = replace(other.inputs, fingerprint="x") if name == "fingerprint" else other.inputs
    with pytest.raises(ValueError, match=rf"cannot resume from .*last\.pt: its {name} differs from that of this run"):
        other.resume()
    assert other.progress.epoch == 0 and contents(tmp_path) == before


def test_used_run_folder_is_left_alone(root: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(
        FileExistsError, match=r"run folder .* is already used \(notes\.txt\); continue it with --resume"
    ):
        train(tiny_config(root), tmp_path)
    with pytest.raises(FileExistsError, match=r"--out .*notes\.txt is a file, expected a new or empty folder"):
        train(tiny_config(root), tmp_path / "notes.txt")
    with pytest.raises(FileNotFoundError, match=r"config\.json does not exist"):
        train(tiny_config(root), tmp_path, resume=True)
    assert contents(tmp_path) == {"notes.txt": b"mine"}


def test_resume_with_another_command_names_the_difference(root: Path, run_dir: Path) -> None:
    before = contents(run_dir)
    with pytest.raises(ValueError, match=r"cannot resume .*: its config\.json differs from .* in seed \(0, now 4\)"):
        train(tiny_config(root, seed=4), run_dir, resume=True)
    write_json(run_dir / "config.json", read_json(run_dir / "config.json") | {"surplus": 1})
    with pytest.raises(ValueError, match="differs from the command in fields of another version"):
        train(tiny_config(root), run_dir, resume=True)
    (run_dir / "config.json").write_bytes(before["config.json"])
    assert contents(run_dir) == before
