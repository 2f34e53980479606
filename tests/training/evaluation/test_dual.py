"""Embeddings of a split by a random model: every caption against every image, and the choice of beta."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.support.pedes_dataset import make_pedes
from tests.support.tiny_run import tiny_config
from training.config import EvalConfig
from training.data.datasets import read_dataset
from training.data.images import transforms
from training.data.loader import tokenize
from training.data.tokenizer import build_tokenizer
from training.engine.checkpoint import build_model
from training.evaluation import dual
from training.evaluation.dual import embed_dual, evaluate_dual
from training.evaluation.metrics import METRICS, QueryMetrics, retrieval_metrics


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, ...]:
    """A random model, the test records, the tokenizer and the configuration."""
    config = tiny_config(make_pedes(tmp_path_factory.mktemp("pedes")))
    records = read_dataset(config.data).splits["test"]
    tokenizer = build_tokenizer(config.model.text, [text for r in records for text in r.captions])
    torch.manual_seed(0)
    return build_model(config, tokenizer), records, tokenizer, config


def test_dual_scores_every_caption_against_every_image(parts: tuple[Any, ...]) -> None:
    model, records, tokenizer, config = parts
    model.train()
    embeddings, metrics = evaluate_dual(model, records, tokenizer, config, (0.0, 0.5))
    assert model.training, "the mode is restored"
    assert list(embeddings.captions) == [text for r in records for text in r.captions]
    assert embeddings.gallery_ids_G.tolist() == [r.id for r in records]
    assert embeddings.query_ids_Q.tolist() == [r.id for r in records for _ in r.captions]
    model.eval()
    with torch.no_grad():
        image = model.embed_images(transforms.normalise(transforms.decode(records[4].path, (32, 16))[None]))
        text = model.embed_texts(tokenize(tokenizer, [records[1].captions[1]], 16))
    expected = torch.cosine_similarity(text, image.v_id_BE) + 0.5 * torch.cosine_similarity(text, image.v_clo_BE)
    assert float(embeddings.similarity(0.5)[3, 4]) == pytest.approx(float(expected), abs=1e-6)
    assert embeddings.query_images_Q[3] == 1
    torch.testing.assert_close(embeddings.gate_GC[4:5], image.gate_BC)
    assert metrics[0.5].mean() == retrieval_metrics(
        embeddings.similarity(0.5), embeddings.query_ids_Q, embeddings.gallery_ids_G
    )


def test_dual_does_not_depend_on_the_batch_size(parts: tuple[Any, ...]) -> None:
    model, records, tokenizer, config = parts
    whole = embed_dual(model, records, tokenizer, config)
    pieces = embed_dual(model, records, tokenizer, replace(config, eval=EvalConfig(batch_size=5)))
    torch.testing.assert_close(pieces.similarity(0.7), whole.similarity(0.7), rtol=0, atol=1e-5)


def fake_evaluation(monkeypatch: pytest.MonkeyPatch, metrics_of: Callable[[float], dict[str, float]]) -> None:
    """Replaces the embeddings: the metrics of a split are those that the function gives for beta."""

    def metrics(betas: Sequence[float]) -> dict[float, QueryMetrics]:
        rows = {beta: torch.tensor([list(metrics_of(beta).values())], dtype=torch.float64) for beta in betas}
        return {beta: QueryMetrics(row, torch.tensor([False])) for beta, row in rows.items()}

    monkeypatch.setattr(dual, "evaluate_dual", lambda *given: (SimpleNamespace(metrics=metrics), metrics(given[-1])))


def test_validation_takes_the_best_beta_and_the_lowest_of_equals(
    parts: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {0.0: (20.0, 9.0), 0.5: (30.0, 5.0), 1.0: (30.0, 8.0)}
    metrics = {beta: dict.fromkeys(METRICS, 0.0) | {"R1": r1, "mAP": ap} for beta, (r1, ap) in values.items()}
    fake_evaluation(monkeypatch, lambda beta: metrics.get(beta, dict.fromkeys(METRICS, 0.0)))
    *first, config = parts
    config = replace(config, eval=EvalConfig(betas=(0.0, 0.5, 1.0)))
    expected = metrics[0.5] | {"beta": 0.5, "beta0_R1": 20.0, "beta0_mAP": 9.0}
    assert dual.validate(*first, config) == expected
    by_map = replace(config, eval=replace(config.eval, select_by="mAP"))
    assert dual.validate(*first, by_map)["beta"] == 0.0


@pytest.mark.parametrize(
    ("peak", "found"), [(0.8, 0.75), (0.1, 0.125), (0.0, 0.0), (2.6, 2.5), (7.4, 7.0), (20.0, 8.0), (1e6, 1e6)]
)
def test_beta_is_refined_around_the_best_of_the_grid(
    parts: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch, peak: float, found: float
) -> None:
    """Midpoints towards both neighbours; beyond 8 comes the clothing embedding alone."""
    fake_evaluation(monkeypatch, lambda beta: dict.fromkeys(METRICS, -abs(beta - peak)))
    *first, config = parts
    assert dual.validate(*first, replace(config, eval=EvalConfig()))["beta"] == found


def test_a_model_without_a_gate_has_none(parts: tuple[Any, ...]) -> None:
    _, records, tokenizer, config = parts
    bdam = replace(config.model.bdam, gate=False)
    model = build_model(replace(config, model=replace(config.model, bdam=bdam)), tokenizer)
    assert embed_dual(model, records, tokenizer, config).gate_GC is None
