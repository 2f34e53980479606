"""The plain dual encoder: its parts, its losses and gradients, and the configurations that it refuses."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from tests.support.models import IMAGE_SIZE, TEXT_LENGTH, VOCABULARY, Texts, batch
from training.config import Config, ModelConfig, from_dict, to_dict
from training.config.dual_encoder import DUAL_ENCODER
from training.config.recipes import get_recipe
from training.engine.checkpoint import TrainedModel
from training.engine.losses import fixed_losses, task_losses
from training.models.baseline import BagOfWords, ConvolutionalEncoder, DualEncoder
from training.models.retrieval_model import RetrievalModel
from training.models.word_pairs import PAIRS

CONFIG = get_recipe("synthetic-baseline")


def build(seed: int = 0) -> DualEncoder:
    torch.manual_seed(seed)
    return DualEncoder(replace(CONFIG.model, embedding=12), CONFIG.loss, IMAGE_SIZE, VOCABULARY, 0)


def test_the_only_positive_is_the_own_caption_and_the_person_is_masked() -> None:
    model, data = build().eval(), batch()
    losses = task_losses(model(data), data.ids_B, data.clothing_group_B, CONFIG.loss, "reference")
    assert list(losses) == ["info_nce"] and fixed_losses(model(data), CONFIG.loss) == {}
    images, texts = model.embed_images(data.images_BCHW).v_id_BE, model.embed_texts(data.captions)
    logits, total = (images @ texts.T / CONFIG.loss.temperature).tolist(), torch.zeros(())
    count = len(logits)
    for i in range(count):
        others = [j for j in range(count) if j == i or data.ids_B[j] != data.ids_B[i]]
        for row in ([logits[i][j] for j in others], [logits[j][i] for j in others]):
            total = total + torch.tensor(row).logsumexp(0) - logits[i][i]
    assert_close(losses["info_nce"], total / (2 * count), rtol=1e-4, atol=1e-5)


def test_every_parameter_learns_but_the_vectors_of_absent_words() -> None:
    model, data = build().train(), batch()
    task_losses(model(data), data.ids_B, data.clothing_group_B, CONFIG.loss, "reference")["info_nce"].backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())
    names = {id(p): name for name, p in model.named_parameters()}
    groups = {names[id(p)]: group["name"] for group in model.parameter_groups(1.0) for p in group["params"]}
    assert set(groups) == set(names.values()) and groups["log_temperature"] == "heads without decay"
    assert {id(p) for p in (*model.encoder_parameters(), *model.head_parameters())} == set(names)


def test_texts_are_sums_over_words_and_neighbours() -> None:
    torch.manual_seed(0)
    text = BagOfWords(VOCABULARY, 0, 8).eval()
    embed = text.vectors.weight
    ids, mask = torch.tensor([[2, 7, 9, 3, 0, 0]]), torch.tensor([[1, 1, 1, 1, 0, 0]])
    pairs = [
        VOCABULARY + ((a * VOCABULARY + b) * 2654435761 % 2**32) * PAIRS // 2**32 for a, b in ((2, 7), (7, 9), (9, 3))
    ]
    expected = text.projection(embed[torch.tensor([2, 7, 9, 3, *pairs])].sum(0))
    assert_close(text(ids, mask)[0], expected)
    assert_close(text(ids[:, :4], mask[:, :4])[0], expected, msg="padding counts")
    swapped = text(torch.tensor([[2, 9, 7, 3]]), mask[:, :4])
    assert not torch.allclose(swapped[0], expected, atol=1e-3), "the order of words is lost"


def test_pairs_spread_over_their_vectors() -> None:
    vocabulary = 1200
    captured: list[torch.Tensor] = []
    text = BagOfWords(vocabulary, 0, 4)
    text.vectors.register_forward_pre_hook(lambda module, inputs: captured.append(inputs[0]))
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, vocabulary, (1, 4001), generator=generator)
    text(ids, torch.ones_like(ids))
    rows = captured[0][0, 4001:]
    assert rows.min() >= vocabulary and rows.max() < vocabulary + PAIRS
    # 4,000 draws from 16,384 hit 3,550 different ones in the mean; a poor hash far fewer.
    assert 3450 < len(rows.unique()) < 3650


def test_the_place_in_the_image_counts() -> None:
    torch.manual_seed(0)
    encoder, image = ConvolutionalEncoder((64, 32), 8).eval(), torch.zeros(1, 3, 64, 32)
    image[:, :, :16] = 1.0
    assert encoder.projection.in_features == 128 * 8 * 4
    assert not torch.allclose(encoder(image), encoder(image.flip(2)), atol=1e-2)
    assert ConvolutionalEncoder((50, 21), 8)(torch.zeros(2, 3, 50, 21)).shape == (2, 8)


def test_there_is_no_clothing_and_no_fusion() -> None:
    model, data = build().eval(), batch()
    image = model.embed_images(data.images_BCHW)
    assert image.v_clo_BE is None and image.gate_BC is None and model.fusion is None
    assert_close(model.embed_texts(data.captions).norm(dim=1), torch.ones(8))
    assert_close(model(data).t_caption, model.embed_texts(data.captions))
    assert isinstance(model, RetrievalModel) and TEXT_LENGTH > 0
    with pytest.raises(ValueError, match=r"Model\.fuse: the model was built with fusion\.enabled=False"):
        model.fuse(data.images_BCHW, Texts(data.captions.input_ids_BT, data.captions.attention_mask_BT))
    trained = TrainedModel(CONFIG, SimpleNamespace(), model, 1, 1, 0.0, "")
    with pytest.raises(
        ValueError, match="needs branches of identity and clothing, which model.architecture 'dual-encoder'"
    ):
        _ = trained.decoupling_model


@pytest.mark.parametrize("name", DUAL_ENCODER)
def test_what_it_cannot_have_is_refused(name: str) -> None:
    stage, _, key = name.rpartition(".")
    values = to_dict(CONFIG)
    part = values
    for step in stage.split("."):
        part = part[step]
    wrong = {"info_nce": False, "info_nce_texts": "both", "betas": [0.0, 1.0], "pretrained": "bert-base-uncased"}.get(
        key, True
    )
    part[key] = wrong
    with pytest.raises(ValueError, match=rf"Config\.{name} must be .* with model\.architecture 'dual-encoder', got "):
        from_dict(values)


def test_a_configuration_of_an_earlier_version_is_the_method() -> None:
    values = to_dict(Config())
    del values["model"]["architecture"]
    assert from_dict(values) == Config() and ModelConfig().architecture == "decoupling"


def test_embeddings_are_of_unit_length_in_training_too() -> None:
    model, data = build().train(), batch()
    features = model(data)
    assert_close(features.v_id, F.normalize(features.v_id, dim=1))
    assert features.to_float32().v_id.dtype == torch.float32
