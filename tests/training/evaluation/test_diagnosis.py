"""The diagnosis of a run: each number against the model by hand, and what a fusion that copies its caption looks like."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from rich.console import Console
from sklearn.metrics import roc_auc_score
from torch import Tensor

from tests.support.html import Page
from tests.support.tiny_run import tiny_config
from training import evaluate as entry
from training.config import BdamConfig
from training.data.datasets import Dataset, read_dataset, with_texts
from training.data.images import transforms
from training.data.loader import tokenize
from training.data.tokenizer import build_tokenizer
from training.engine.checkpoint import TrainedModel, build_model
from training.engine.losses import task_losses
from training.engine.train_run import build_trainer
from training.evaluation.diagnosis import diagnose as module
from training.evaluation.diagnosis.diagnose import auc, measure_diagnosis
from training.evaluation.diagnosis.diagnosis_result import (
    BOUNDS,
    Diagnosis,
    InfoNce,
    OwnCaption,
    Sample,
    TaskGradient,
    TextSearch,
)
from training.evaluation.diagnosis.loss_gradients import batches, loss_gradients, new_model
from training.evaluation.dual import validate
from training.evaluation.metric_tables import print_diagnosis
from training.evaluation.run_folder import read_run
from training.models.fusion import FusionOutput
from training.report import diagnosis_section
from training.report.run_page import build_page
from training.synthetic.dataset import generate
from training.utils import cli
from training.utils.io import read_record, write_record


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainedModel, Dataset]:
    """A new model, as if trained, and a rendered set whose validation images have texts."""
    root = tmp_path_factory.mktemp("rendered") / "set"
    generate(root, 10, seed=2, val_ids=4, test_ids=1, images_per_id=3, height=160, width=64)
    return untrained(root)


def untrained(root: Path) -> tuple[TrainedModel, Dataset]:
    config = tiny_config(root)
    dataset = read_dataset(config.data)
    tokenizer = build_tokenizer(config.model.text, dataset.train_texts())
    model = new_model(config, tokenizer, build_model).eval()
    return TrainedModel(config, tokenizer, model, 0, 0, 0.5, dataset.fingerprint), dataset


def some(**parts: Any) -> Diagnosis:
    sample = Sample(split="val", images=4, ids=2)
    values = {"sample": sample, "described": sample, "info_nce": InfoNce(loss=2.0, chance=4.0), "seconds": 1.0}
    return Diagnosis(**values | parts)


def pull(norm: float, weight: float | None) -> TaskGradient:
    return TaskGradient(loss_start=1.0, loss_end=1.0, norm_start=1.0, norm_end=norm, weight=weight)


def test_values_and_bounds() -> None:
    tasks = {"a": pull(0.5, 2.0), "b": pull(3.0, 1.0), "gate": pull(9.0, None)}
    search = TextSearch(identity_v_id=30.0, clothing_v_id=0.0, clothing_v_clo=8.0, chance=2.0)
    diagnosis = some(tasks=tasks, search=search, own_caption=OwnCaption(right_image=80.0, wrong_image=70.0, chance=1.0))
    assert diagnosis.shares() == pytest.approx({"a": 25.0, "b": 75.0}), "the gate has no weight to balance"
    expected = {"spread": 3.0, "smallest_share": 25.0, "info_nce": 0.5, "identity_text": 15.0, "own_caption": 70.0}
    assert diagnosis.values() == pytest.approx(expected | {"clothing_text": 4.0}), "clothing text → v_id is at chance"
    held = {bound.key: bound.holds(diagnosis.values()[bound.key]) for bound in BOUNDS if bound.key in expected}
    assert held == {key: key != "own_caption" for key in expected}
    assert set(some().values()) == {"info_nce"}, "a part that the model does not have has no value"
    done = replace(pull(0.0, 5.0), loss_end=0.0)
    assert some(tasks=tasks | {"c": done}).shares() == diagnosis.shares(), "an adversary at its bound has done its work"
    assert "info_nce" not in some(info_nce=InfoNce(loss=0.0, chance=0.0)).values(), "a sample of one person"
    dead = some(tasks={"a": pull(1.0, 1.0), "b": pull(0.0, 1.0)}).values()
    assert math.isfinite(dead["spread"]) and dead["spread"] > 1e6 and dead["smallest_share"] == 0.0
    assert {bound.key for bound in BOUNDS} == {*expected, "clothing_text", "matching", "matching_hard"}


def test_no_value_at_chance_is_a_fault() -> None:
    """One caption in ten is found by chance among ten, fewer than the bound allows among more than twenty."""

    def holds(wrong_image: float, chance: float) -> tuple[bool, str]:
        found = OwnCaption(right_image=90.0, wrong_image=wrong_image, chance=chance)
        diagnosis = some(own_caption=found)
        bound = next(bound for bound in diagnosis.bounds() if bound.key == "own_caption")
        return bound.holds(diagnosis.values()["own_caption"]), bound.limits()

    assert holds(10.0, 10.0) == (True, "at most 15 %") and holds(20.0, 10.0) == (False, "at most 15 %")
    assert holds(100 / 13, 100 / 13) == (True, "at most 11.5 %")
    assert holds(5.0, 5.0) == (True, "at most 5 %") and holds(6.0, 4.9) == (False, "at most 5 %")
    assert some().bounds() == BOUNDS
    found = some(own_caption=OwnCaption(right_image=90.0, wrong_image=10.0, chance=10.0))
    out = StringIO()
    print_diagnosis(found, Console(file=out, width=200))
    assert "2 of 2 values within their bounds" in out.getvalue()
    checks = diagnosis_section.section(found)["checks"]
    assert [(check["holds"], check["limits"]) for check in checks if "caption finds itself" in check["name"]] == [
        (True, "at most 15 %")
    ]


def test_auc_is_that_of_scikit_learn() -> None:
    generator = torch.Generator().manual_seed(0)
    right = torch.randn(40, generator=generator).round(decimals=1) + 0.5
    wrong = torch.randn(30, generator=generator).round(decimals=1)
    expected = roc_auc_score([1] * 40 + [0] * 30, torch.cat([right, wrong]))
    assert auc(right, wrong) == pytest.approx(expected) and 0.5 < expected < 1


def test_gradients_are_those_of_the_whole_model(made: tuple[TrainedModel, Dataset]) -> None:
    trained, dataset = made
    config, model = trained.config, trained.model
    records = with_texts(dataset.splits["val"], config.data)
    batch = batches(dataset, records, trained.tokenizer, config)[0]
    assert {path for path in batch.paths} <= {record.file_path for record in records}
    before, generator = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    measured = loss_gradients(model, [batch], config)
    assert not model.training and torch.equal(generator, torch.get_rng_state())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    tokens: list[Tensor] = []
    hook = model.visual.register_forward_hook(lambda *parts: tokens.append(parts[2]))
    model.train()
    torch.manual_seed(0)
    losses = task_losses(model(batch), batch.ids_B, batch.clothing_group_B, config.loss, "auto")
    hook.remove()
    assert set(measured) == {*losses, "gate"}
    for name, loss in losses.items():
        (gradient,) = torch.autograd.grad(loss, tokens[-1], retain_graph=True, allow_unused=True)
        norm = 0.0 if gradient is None else float(gradient.pow(2).sum().sqrt())
        assert measured[name] == pytest.approx((float(loss.detach()), norm), rel=1e-3, abs=1e-6), name
    # Training mode has moved the statistics of the batch norms.
    model.eval().load_state_dict(before)


def test_gradients_are_of_the_captions_that_there_are(made: tuple[TrainedModel, Dataset]) -> None:
    trained, dataset = made
    records = with_texts(dataset.splits["val"], trained.config.data)
    single = [replace(record, captions=record.captions[:1]) for record in records]
    parts = batches(dataset, single, trained.tokenizer, trained.config)
    before = {name: value.clone() for name, value in trained.model.state_dict().items()}
    first = replace(trained.config, loss=replace(trained.config.loss, both_captions=False))
    both, alone = (loss_gradients(trained.model, parts, config)["info_nce"] for config in (trained.config, first))
    assert both == alone
    trained.model.load_state_dict(before)


def test_the_start_is_where_training_started(made: tuple[TrainedModel, Dataset], tmp_path: Path) -> None:
    trained, dataset = made
    trainer, tokenizer = build_trainer(trained.config, dataset, tmp_path, validate)
    fresh, state = new_model(trained.config, tokenizer, build_model), trainer.model.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in fresh.state_dict().items())


def images_of(trained: TrainedModel, records: list[Any]) -> Tensor:
    size = trained.config.data.image_size
    return torch.stack([transforms.normalise(transforms.decode(r.path, size)[None])[0] for r in records])


@torch.no_grad()
def test_every_part_by_hand(made: tuple[TrainedModel, Dataset]) -> None:
    trained, dataset = made
    model, records = trained.model, with_texts(dataset.splits["val"], trained.config.data)
    with torch.enable_grad():
        diagnosis = measure_diagnosis(trained, dataset, {"info_nce": 2.0, "triplet": 0.5})
    assert diagnosis.sample == replace(diagnosis.described, texts=None) and diagnosis.sample.split == "val"
    assert diagnosis.tasks["info_nce"].weight == 2.0 and diagnosis.tasks["gate"].weight is None
    images, ids = images_of(trained, records), [record.id for record in records]

    def texts(lines: list[str]) -> Any:
        return tokenize(trained.tokenizer, lines, trained.config.data.text_length)

    captions = [record.captions[0] for record in records]
    t_caption, embedded = model.embed_texts(texts(captions)), model.embed_images(images)
    count = len(records)
    others = []
    for i in range(count):
        further = [(i + count // 2 + step) % count for step in range(count)]
        others.append(next(j for j in further if ids[j] != ids[i]))
    shown = {"own": images, "wrong": images[others]}
    fused = {name: model.fuse(seen, texts(captions)).f_final_BE for name, seen in shown.items()}
    assert diagnosis.own_caption is not None and diagnosis.matching is not None and diagnosis.search is not None
    for name, value in (("own", diagnosis.own_caption.right_image), ("wrong", diagnosis.own_caption.wrong_image)):
        found = (F.normalize(fused[name], dim=1) @ t_caption.T).argmax(1) == torch.arange(count)
        assert value == pytest.approx(100 * float(found.float().mean()))
    assert diagnosis.own_caption.chance == pytest.approx(100 / count) and model.matching_head is not None
    similarity = t_caption @ embedded.v_id_BE.T + trained.beta * (t_caption @ embedded.v_clo_BE.T)
    hard = [
        max((j for j in range(count) if ids[j] != ids[i]), key=lambda j, i=i: float(similarity[i, j]))
        for i in range(count)
    ]
    fused["hard"] = model.fuse(images[hard], texts(captions)).f_final_BE
    logits = {name: model.matching_head(value, t_caption) for name, value in fused.items()}
    labels = [1] * count + [0] * count
    for name, value in (("wrong", diagnosis.matching.auc_random), ("hard", diagnosis.matching.auc_hard)):
        expected = roc_auc_score(labels, torch.cat([logits["own"], logits[name]]))
        assert value == pytest.approx(expected, abs=0.02), "batched sums may order two logits the other way"
    for kind, embedding, value in (
        ("identity", embedded.v_id_BE, diagnosis.search.identity_v_id),
        ("clothing", embedded.v_id_BE, diagnosis.search.clothing_v_id),
        ("clothing", embedded.v_clo_BE, diagnosis.search.clothing_v_clo),
    ):
        best = (model.embed_texts(texts([getattr(r, kind) for r in records])) @ embedding.T).argmax(1)
        assert value == pytest.approx(100 * sum(ids[j] == ids[i] for i, j in enumerate(best.tolist())) / count)


def test_info_nce_at_chance_and_of_perfect_embeddings(made: tuple[TrainedModel, Dataset]) -> None:
    trained, dataset = made
    records = dataset.splits["val"][:6]
    dual = module.embed_dual(
        trained.model, [replace(r, captions=r.captions[:1]) for r in records], trained.tokenizer, trained.config
    )
    eye = torch.eye(len(records), dual.t_QE.shape[1])
    alone = replace(dual, t_QE=eye, v_id_GE=eye, v_clo_GE=eye, gallery_ids_G=torch.arange(len(records)))
    known = module._info_nce(trained, alone)
    assert known.chance == pytest.approx(math.log(len(records)), abs=1e-5) and known.loss < 1e-4
    crowded = replace(alone, gallery_ids_G=torch.tensor([0, 0, 0, 1, 1, 1]))
    assert module._info_nce(trained, crowded).chance == pytest.approx(math.log(4), abs=1e-5), (
        "two others of the person are out"
    )


@pytest.mark.parametrize("copies", [True, False])
def test_a_fusion_that_copies_its_caption_is_found_out(
    made: tuple[TrainedModel, Dataset], copies: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained, dataset = made
    model, weights = trained.model, torch.full((1, 2), 0.5)

    def copying(image_tokens: Tensor, tokens: Tensor, mask: Tensor) -> FusionOutput:
        return FusionOutput(model._embed_text(model._pool(tokens, mask)), weights)

    def looking(image_tokens: Tensor, tokens: Tensor, mask: Tensor) -> FusionOutput:
        return FusionOutput(model.identity_projection(image_tokens.mean(1)), weights)

    monkeypatch.setattr(model, "fuse_parts", copying if copies else looking)
    # No two captions alike, within the 16 tokens that this model reads.
    records = [replace(r, captions=(f"{i} {r.captions[0]}",)) for i, r in enumerate(dataset.splits["val"])]
    dual = module.embed_dual(model, records, trained.tokenizer, trained.config)
    own = module._own_caption(trained, records, dual)
    assert own is not None
    assert (own.wrong_image > 90) if copies else (own.wrong_image < 40)


def test_models_without_a_part_and_sets_without_texts(root: Path) -> None:
    trained, dataset = untrained(root)
    assert measure_diagnosis(trained, dataset, {}).described.split == "train", "only training images have texts here"
    stages, fusion = trained.config.model, replace(trained.config.model.fusion, enabled=False)
    config = replace(trained.config, model=replace(stages, fusion=fusion, bdam=BdamConfig(enabled=False)))
    plain = replace(trained, config=config, model=new_model(config, trained.tokenizer, build_model).eval())
    diagnosis = measure_diagnosis(plain, dataset, {})
    assert diagnosis.own_caption is None and diagnosis.matching is None and "gate" not in diagnosis.tasks
    assert "matching" not in diagnosis.tasks and diagnosis.values().keys() >= {"info_nce", "identity_text"}
    assert diagnosis.shares() == {}, "no weight is known"


def test_evaluation_writes_it_once_and_the_page_shows_it(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluate: Callable[[], int] = lambda: cli.run(entry.main, [str(run_dir)])  # noqa: E731
    assert evaluate() == 0
    printed, stored = capsys.readouterr().out, (run_dir / "diagnosis.json").read_bytes()
    assert "values within their bounds" in printed and ", expected at " in printed, (
        "a run of three epochs is out of bounds"
    )
    assert evaluate() == 0 and (run_dir / "diagnosis.json").read_bytes() == stored
    diagnosis = read_record(run_dir / "diagnosis.json", Diagnosis)
    weights = read_run(run_dir).log.steps[-1].weights
    assert {name: task.weight for name, task in diagnosis.tasks.items() if name != "gate"} == weights
    html = build_page(read_run(run_dir))
    bounds = diagnosis.bounds()
    wrong = [b for b in bounds if b.key in diagnosis.values() and not b.holds(diagnosis.values()[b.key])]
    assert wrong and html.count('<tr class="bad">') == len(wrong) and Page(html).open == []
    assert all(bound.reason in Page(html).words() for bound in BOUNDS if bound.key in diagnosis.values())
    write_record(run_dir / "diagnosis.json", replace(diagnosis, checkpoint=None))
    with pytest.raises(ValueError, match="diagnosis.json was computed from a different checkpoint than eval.json"):
        read_run(run_dir)
    (run_dir / "diagnosis.json").unlink()
    assert "writes diagnosis.json" in Page(build_page(read_run(run_dir))).words()
