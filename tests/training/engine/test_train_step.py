"""One optimiser step in every arrangement: micro-batches, checkpointing, 16 bits, compiled, against the plain one."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.tiny_run import tiny_config
from tests.training.engine.test_trainer import build, first_batch
from training.config import Config
from training.data.loader import Batch
from training.engine.train_step import (
    COMPILED,
    NonFiniteError,
    Stepper,
    configure_model,
)
from training.engine.trainer import Trainer


def plain_config(root: Path) -> Config:
    """Without dropout, and with gradients as they come."""
    tiny = tiny_config(root)
    model = replace(
        tiny.model, bdam=replace(tiny.model.bdam, dropout=0.0), fusion=replace(tiny.model.fusion, dropout=0.0)
    )
    return replace(tiny, model=model, optim=replace(tiny.optim, clip_norm=0.0))


@pytest.fixture
def config(root: Path) -> Config:
    return plain_config(root)


def using(config: Config, **optim: Any) -> Config:
    return replace(config, optim=replace(config.optim, **optim))


def gradients(trainer: Trainer) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in trainer.model.named_parameters() if p.grad is not None}


def distance(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    """Distance of two gradients, relative to the norm of the second."""
    assert ours.keys() == theirs.keys()
    a, b = (torch.cat([x[name].flatten().double() for name in theirs]) for x in (ours, theirs))
    return float((a - b).norm() / b.norm())


def in_double(trainer: Trainer) -> Batch:
    """The first batch, after model and images have become float64."""
    trainer.model.double()
    batch = first_batch(trainer)
    return replace(batch, images_BCHW=batch.images_BCHW.double())


def add_dropout_to_the_encoders(trainer: Trainer) -> None:
    trainer.model.text.backbone.embeddings.dropout.p = 0.3
    trainer.model.visual.backbone.embeddings.dropout.p = 0.3


def saved_bytes(trainer: Trainer) -> dict[str, int]:
    """Bytes that the graphs of encoders and decoupling module keep for the backward pass of a batch."""
    kept: dict[str, dict[int, int]] = {"encoders": {}, "bdam": {}}

    def hooks(name: str) -> torch.autograd.graph.saved_tensors_hooks:
        def pack(x: Tensor) -> Tensor:
            kept[name][x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x

        return torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x)

    with hooks("encoders"):
        encoded = trainer.model.encode(first_batch(trainer))
    with hooks("bdam"):
        out = trainer.model.bdam(encoded.leaves().image_tokens_BPC)
    assert out.f_id_BC.requires_grad
    return {name: sum(sizes.values()) for name, sizes in kept.items()}


def test_checkpointing_keeps_less_and_changes_no_bit(config: Config, tmp_path: Path) -> None:
    sizes = replace(config.model.bdam, dropout=0.1, self_layers=3)
    layers = {name: replace(getattr(config.model, name), layers=3) for name in ("visual", "text")}
    config = replace(config, model=replace(config.model, bdam=sizes, **layers))
    plain, checkpointed = build(config, tmp_path), build(using(config, checkpointing=True), tmp_path)
    for trainer in (plain, checkpointed):
        add_dropout_to_the_encoders(trainer)
        trainer.model.train()
        torch.manual_seed(3)
        trainer.train_step(first_batch(trainer))
    ours, theirs = gradients(checkpointed), gradients(plain)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in theirs)
    less, more = saved_bytes(checkpointed), saved_bytes(plain)
    assert all(less[part] < 0.6 * more[part] for part in more), (less, more)


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_follows_single(precision: str, accumulate: int, config: Config, tmp_path: Path) -> None:
    plain, half = build(config, tmp_path), build(using(config, precision=precision, accumulate=accumulate), tmp_path)
    half.stepper.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**7, enabled=precision == "fp16")
    expected, step = plain.train_step(first_batch(plain)), half.train_step(first_batch(half))
    assert step.scale == (128.0 if precision == "fp16" else 1.0) and not step.skipped
    # Squared distances of the triplet loss go up to 4, of which bfloat16 keeps eight bits.
    assert step.losses == pytest.approx(expected.losses, rel=0.05, abs=0.06 if precision == "bf16" else 0.01)
    # Unscaled: GradNorm sees the same norms, up to the rounding of 16 bits.
    assert step.norms == pytest.approx(expected.norms, rel=0.15, abs=1e-3)
    assert 0 < distance(gradients(half), gradients(plain)) < 0.1
    assert {p.dtype for p in half.model.parameters()} == {torch.float32}


def test_encoders_and_heads_compute_in_the_precision_asked_for(config: Config, tmp_path: Path) -> None:
    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)):
        trainer, seen = build(using(config, precision=precision), tmp_path), {}
        for name in ("visual", "text", "bdam", "identity_projection", "text_projection", "fusion"):
            part = next(m for m in getattr(trainer.model, name).modules() if isinstance(m, torch.nn.Linear))
            part.register_forward_hook(lambda module, args, out, name=name, seen=seen: seen.update({name: out.dtype}))
        trainer.train_step(first_batch(trainer))
        assert len(seen) == 6 and set(seen.values()) == {dtype}


def test_the_scale_does_not_reach_gradients_and_norms(config: Config, tmp_path: Path) -> None:
    """In float32 under a scaler: powers of two change no bit of what is divided by them again."""
    plain, scaled = build(config, tmp_path), build(config, tmp_path)
    scaled.stepper.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    expected, step = plain.train_step(first_batch(plain)), scaled.train_step(first_batch(scaled))
    assert step.scale == 1024.0 and step.norms == pytest.approx(expected.norms, rel=1e-6)
    assert distance(gradients(scaled), gradients(plain)) < 1e-6


def test_overflowing_gradients_leave_the_step_out_and_lower_the_scale(config: Config, tmp_path: Path) -> None:
    trainer = build(using(config, precision="fp16"), tmp_path)
    stepper, before = trainer.stepper, {name: p.clone() for name, p in trainer.model.named_parameters()}
    stepper.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
    balance = stepper.gradnorm.state_dict()
    step = trainer.train_step(first_batch(trainer))
    assert step.skipped and step.norms == {} and math.isfinite(step.loss)
    # The temperature is pulled back into its bounds by the forward pass, up to rounding.
    assert all(torch.allclose(p, before[name], atol=1e-7) for name, p in trainer.model.named_parameters())
    assert stepper.scaler.get_scale() == 2.0**39 and stepper.gradnorm.state_dict() == balance
    assert all(float(state["step"]) == 0 for state in stepper.optimizer.state.values()) and trainer.progress.step == 1


def test_gradients_that_no_scale_makes_finite_stop_the_training(config: Config, tmp_path: Path) -> None:
    trainer = build(using(config, precision="fp16"), tmp_path)
    trainer.stepper.parameters[0].register_hook(lambda gradient: gradient * math.nan)
    trainer.stepper.scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    batch = first_batch(trainer)
    assert [trainer.train_step(batch).skipped for _ in range(2)] == [True, True]
    with pytest.raises(RuntimeError, match="no longer finite at step 3: gradient norm nan"):
        trainer.train_step(batch)


def test_a_norm_of_one_task_that_is_not_finite_is_named(config: Config, tmp_path: Path) -> None:
    stepper = build(config, tmp_path).stepper
    batch = first_batch(build(config, tmp_path))
    projection = stepper.model.bdam.identity.projection
    projection.register_full_backward_hook(lambda module, grads, outs: (grads[0] * math.inf,))
    with pytest.raises(NonFiniteError, match="gradient norm of info_nce (nan|inf)"):
        stepper.run(batch, measure=True)


def test_state_of_the_scaler_is_kept(config: Config, tmp_path: Path) -> None:
    one = build(using(config, precision="fp16"), tmp_path).stepper
    one.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**9, growth_interval=2)
    batch = first_batch(build(config, tmp_path))
    one.run(batch, measure=True)
    other = build(using(config, precision="fp16"), tmp_path).stepper
    other.load_state_dict(one.state_dict())
    assert other.run(batch, measure=True).scale == 2.0**9
    # Two good steps are behind the scaler now, one of them from before.
    assert other.scaler.get_scale() == 2.0**10


def check_compiled(config: Config, tmp_path: Path, compiler: str) -> None:
    """Two steps, compiled and not, from the same weights."""
    plain, compiled = build(config, tmp_path), build(config, tmp_path)
    if compiler == "inductor":
        compiled.stepper = Stepper(using(config, compile=True), compiled.model)
    else:
        configure_model(compiled.model, using(config, compile=True).optim, compiler)
    batch = first_batch(plain)
    for _ in range(2):
        expected, step = plain.train_step(batch), compiled.train_step(batch)
        assert step.losses == pytest.approx(expected.losses, rel=1e-3, abs=1e-5)
        assert step.norms == pytest.approx(expected.norms, rel=1e-2, abs=1e-5)
        assert distance(gradients(compiled), gradients(plain)) < 1e-2
    assert compiled.model.state_dict().keys() == plain.model.state_dict().keys()


def test_compiled_parts_give_the_same_step(config: Config, tmp_path: Path) -> None:
    check_compiled(config, tmp_path, "aot_eager")


@pytest.mark.slow
def test_compiled_by_inductor(config: Config, tmp_path: Path) -> None:
    check_compiled(config, tmp_path, "inductor")


def test_the_switch_compiles_every_part_that_the_model_has(config: Config, tmp_path: Path) -> None:
    fusionless = replace(config, model=replace(config.model, fusion=replace(config.model.fusion, enabled=False)))
    for name, setting in (("whole", config), ("fusionless", fusionless)):
        model = build(using(setting, compile=True), tmp_path).model
        compiled = {part for part in COMPILED if getattr(getattr(model, part), "_compiled_call_impl", None)}
        assert compiled == set(COMPILED) - ({"fusion"} if name == "fusionless" else set())
    plain = build(config, tmp_path).model
    assert not any(getattr(getattr(plain, part), "_compiled_call_impl", None) for part in COMPILED)


def test_part_of_a_batch(config: Config, tmp_path: Path) -> None:
    batch = first_batch(build(config, tmp_path))
    halves = [batch.part(slice(0, 2)), batch.part(slice(2, 6))]
    for field in (field for field in dataclasses.fields(batch) if field.name != "whole"):
        whole, parts = getattr(batch, field.name), [getattr(half, field.name) for half in halves]
        if field.name in ("captions", "identity", "clothing", "other"):
            whole, parts = whole.input_ids_BT, [part.input_ids_BT for part in parts]
        if whole is None:
            assert parts == [None, None]
            continue
        joined = parts[0] + parts[1] if field.name == "paths" else torch.cat(parts)
        assert torch.equal(joined, whole) if isinstance(whole, Tensor) else joined == whole
