"""The budget of a training step, and the step at full size, on miniature models."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from bench.pipeline import full_size_step, training, training_stages
from bench.pipeline.training_stages import BACKENDS, NOT_MODEL, STAGES, budget
from tests.support.pedes_dataset import make_pedes
from tests.support.tiny_run import tiny_config


def step(**seconds: float) -> dict[str, float]:
    return {name.replace("_", " "): value for name, value in seconds.items()}


def test_budget_is_a_median_and_gradnorm_counts_where_it_runs() -> None:
    steps = [step(data=0.001, bdam=b, gradnorm_norms=1e-6) for b in (0.010, 0.020, 0.090)]
    steps.append(step(data=0.001, bdam=0.020, gradnorm_norms=0.018, gradnorm_update=0.001))
    made = budget(steps)
    assert made.milliseconds["BDAM"] == pytest.approx(20.0) and made.milliseconds["data"] == pytest.approx(1.0)
    # 19 ms in one step of four.
    assert made.milliseconds["GradNorm"] == pytest.approx(4.75)
    assert made.gradnorm_when_measured == pytest.approx(19 / 40)
    assert made.total() == pytest.approx(25.75) and made.gradnorm() == pytest.approx(4.75 / 25.75)
    assert made.model() == pytest.approx(20.0) and made.steps == 4
    assert budget([step(data=0.5)]).gradnorm_when_measured == 0.0


def test_a_span_without_a_stage_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"spans \['lunch'\] belong to no stage of the budget"):
        budget([step(lunch=1.0)])


def test_budget_of_a_miniature_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tiny_config(make_pedes(tmp_path))
    budgets = training_stages.measure(config, 6, show=False)
    for backend in BACKENDS:
        # Two whole turns of five steps after the warm-up turn.
        assert budgets[backend].steps == 10
        assert all(budgets[backend].milliseconds[stage] > 0 for stage in STAGES)
        assert 0 < budgets[backend].gradnorm() < budgets[backend].gradnorm_when_measured + 0.2 < 1
        assert set(NOT_MODEL) < set(STAGES)
    # Every 5. step measures norms in the recipe.
    training_stages.run(replace(config, gradnorm=replace(config.gradnorm, every=5)), 5)
    shown = capsys.readouterr().out
    assert "encoders' backward" in shown and "forward + backward: reference takes" in shown
    assert "GradNorm (norms in every 5. step)" in shown


def test_backends_that_disagree_are_not_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    losses = iter(range(1, 100))
    monkeypatch.setattr(training_stages, "_step", lambda trainer, batches: ({}, float(next(losses))))
    with pytest.raises(RuntimeError, match="bench: the backends disagree in the first loss: auto 1.0, reference 6.0"):
        training_stages.measure(tiny_config(make_pedes(tmp_path)), 1, show=False)


def test_full_size_is_that_of_the_published_encoders() -> None:
    config = full_size_step.configuration(64, 16, True, "fp32")
    assert config.data.image_size == (224, 224) and config.data.ids_per_batch * config.data.images_per_id == 64
    for encoder in (config.model.visual, config.model.text):
        assert (encoder.width, encoder.layers, encoder.heads, encoder.pretrained) == (768, 12, 12, "")
    assert config.model.bdam.self_layers == 6 and config.optim.checkpointing and config.optim.accumulate == 16


def test_the_step_at_full_size_runs(capsys: pytest.CaptureFixture[str]) -> None:
    config = full_size_step.configuration(8, 2, True, "bf16")
    small = replace(full_size_step.BASE, width=24, layers=1, heads=2)
    model = replace(config.model, visual=small, text=small, bdam=replace(config.model.bdam, self_layers=1))
    config = replace(config, data=replace(config.data, image_size=(32, 32), text_length=8), model=model)
    made = full_size_step.run(config, 8, vocabulary=50)
    assert made["peak_mib"] >= made["step_peak_mib"] >= made["built_mib"] > 50 and made["loss"] > 0
    assert 0.5 < made["estimate_mib"] / made["step_peak_mib"] < 2, "small models are mostly process and libraries"
    shown = capsys.readouterr().out
    assert "training step: 8 images, 24 texts of 8 tokens, bf16, 2 micro-batches, checkpointing on" in shown


@pytest.mark.parametrize(("option", "called"), [("--stages", "stages"), ("--full-size", "full"), ("--dry", "compare")])
def test_options_of_the_command(option: str, called: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    monkeypatch.setattr(training_stages, "run", lambda config, steps: calls.append("stages"))
    monkeypatch.setattr(full_size_step, "run", lambda config, images: calls.append("full"))
    monkeypatch.setattr(training, "compare", lambda arguments: calls.append("compare"))
    monkeypatch.setattr(sys, "argv", ["bench_training", option])
    training.main()
    assert calls == [called]
