from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close
from transformers import BertConfig, BertModel, ViTConfig, ViTModel

from tests.support.models import IMAGE_SIZE, TEXT_LENGTH, TINY, VOCABULARY, batch
from training.models import small_encoders
from training.models.encoders import TextEncoder, VisualEncoder
from training.models.word_pairs import PAIRS, WORD_WIDTH


@pytest.fixture(scope="module")
def vit_folder(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("vit")
    config = ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=32)
    ViTModel(config, add_pooling_layer=False).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def bert_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bert")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = BertConfig(vocab_size=VOCABULARY, max_position_embeddings=TEXT_LENGTH, **sizes)
    BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("size", [(32, 32), (64, 32), (48, 80)])
def test_pretrained_vit_gives_the_patch_tokens_of_the_library_at_any_size(vit_folder, size):
    encoder = VisualEncoder(replace(TINY, pretrained=vit_folder), size).eval()
    images = torch.randn(2, 3, *size)
    library = ViTModel.from_pretrained(vit_folder, add_pooling_layer=False).eval()
    expected = library(images, interpolate_pos_encoding=True).last_hidden_state[:, 1:]
    tokens = encoder(images)
    assert tokens.shape == (2, size[0] * size[1] // 256, 16) == (2, expected.shape[1], encoder.width)
    assert_close(tokens, expected)


def test_small_vit_takes_images_that_are_not_square():
    assert VisualEncoder(replace(TINY, patch_size=8), (64, 32))(torch.randn(3, 3, 64, 32)).shape == (3, 32, 16)


def test_small_vit_starts_from_a_grid_of_rows_and_columns():
    positions = VisualEncoder(replace(TINY, width=18), (64, 32)).backbone.embeddings.position_embeddings
    assert positions.requires_grad and positions.shape == (1, 9, 18)
    assert not positions[0, 0].any() and not positions[0, :, 16:].any()
    # Patch 5 of 4 rows and 2 columns: row 2, column 1; frequencies 10000 to the power of 0, -1/4, -1/2, -3/4.
    rate = torch.tensor([1.0, 0.1, 0.01, 0.001])
    expected = torch.cat([(2 * rate).sin(), (2 * rate).cos(), rate.sin(), rate.cos()])
    assert_close(positions[0, 1 + 5, :16].detach(), expected)


CONVOLUTIONAL = replace(TINY, stem="convolutional", feed_forward=2)
DEEP = replace(CONVOLUTIONAL, stem="deep")


@pytest.mark.parametrize(("config", "convolutions"), [(CONVOLUTIONAL, 2), (DEEP, 3)])
def test_convolutional_stem_gives_one_token_per_patch_by_weights_of_its_position(config, convolutions):
    encoder = VisualEncoder(replace(config, patch_size=8), (64, 32)).eval()
    images = torch.randn(2, 3, 64, 32)
    assert encoder(images).shape == (2, 32, 16)
    stem = encoder.backbone.embeddings.patch_embeddings
    # Two halvings for 2 x 2 cells a patch of 8: token 5 of 8 rows and 4 columns is row 1, column 1.
    assert len(stem.convolutions) == convolutions
    cells = stem.convolutions(images)[:, :, 2:4, 2:4].flatten(1)
    assert_close(stem(images)[:, 5], cells @ stem.projection.weight[5])
    with pytest.raises(
        ValueError,
        match="EncoderConfig.patch_size must be a power of two, at least 4, for a convolutional stem, got 12",
    ):
        replace(CONVOLUTIONAL, patch_size=12)


def test_layers_behind_a_convolutional_stem_nearly_pass_its_tokens_on(monkeypatch):
    images, away = torch.randn(2, 3, 64, 32), []
    for scale in (small_encoders.RESIDUAL_SCALE, 1.0):
        monkeypatch.setattr(small_encoders, "RESIDUAL_SCALE", scale)
        torch.manual_seed(0)
        # In training mode, in which batch normalisation gives the stem's tokens their size.
        encoder = VisualEncoder(DEEP, (64, 32))
        embedded = encoder.backbone.layernorm(encoder.backbone.embeddings(images)[:, 1:])
        away.append(((encoder(images) - embedded).norm() / embedded.norm()).item())
    assert away[0] < 0.25 < 3 * away[0] < away[1]


def test_mean_of_the_tokens_tells_where_a_colour_is():
    """The same red block, higher and lower by whole patches: a stem of one map for all positions would give equal means."""
    encoder = VisualEncoder(CONVOLUTIONAL, (96, 32)).eval()
    images = torch.zeros(2, 3, 96, 32)
    images[0, 0, 24:40], images[1, 0, 56:72] = 1.0, 1.0
    high, low = encoder.backbone.embeddings.patch_embeddings(images).mean(1)
    assert (high - low).norm() > 0.1 * high.norm()


def test_feed_forward_width_of_small_encoders():
    visual, text = VisualEncoder(CONVOLUTIONAL, IMAGE_SIZE), TextEncoder(CONVOLUTIONAL, VOCABULARY, 0, TEXT_LENGTH)
    assert visual.backbone.config.intermediate_size == text.backbone.config.intermediate_size == 32


@pytest.mark.parametrize("config", [CONVOLUTIONAL, DEEP])
def test_window_embeddings_add_a_map_of_three_words_and_a_vector_of_each_pair(config):
    encoder, texts = TextEncoder(config, VOCABULARY, 0, TEXT_LENGTH).eval(), batch().captions
    window = encoder.backbone.embeddings
    plain = window.embeddings(input_ids=texts.input_ids_BT) * texts.attention_mask_BT[..., None]
    out = window(texts.input_ids_BT)
    zero = torch.zeros(16)
    for i, t in ((0, 0), (1, 2), (2, TEXT_LENGTH - 1)):
        before = plain[i, t - 1] if t > 0 else zero
        after = plain[i, t + 1] if t + 1 < TEXT_LENGTH else zero
        mapped = torch.nn.functional.gelu(window.window(torch.cat([before, plain[i, t], after])))
        pair = [int(texts.input_ids_BT[i, k]) for k in (t - 1, t)]
        row = (pair[0] * VOCABULARY + pair[1]) * 2654435761 % 2**32 * PAIRS // 2**32
        assert_close(out[i, t], plain[i, t] + mapped + (window.pairs.weight[row] if config is DEEP and t > 0 else zero))


def test_a_deep_stem_has_vectors_of_words_and_pairs_beside_the_tokens_of_the_layers():
    encoder, texts = TextEncoder(DEEP, VOCABULARY, 0, TEXT_LENGTH).eval(), batch().captions
    tokens = encoder(texts.input_ids_BT, texts.attention_mask_BT)
    layers = encoder.backbone(texts.input_ids_BT, attention_mask=texts.attention_mask_BT).last_hidden_state
    assert tokens.shape == (*texts.input_ids_BT.shape, encoder.width) and encoder.width == 16 + WORD_WIDTH
    assert_close(tokens[..., :16], layers)
    for i, t in ((0, 0), (1, 2), (2, TEXT_LENGTH - 1)):
        before, word = (int(texts.input_ids_BT[i, k]) for k in (t - 1, t))
        row = (before * VOCABULARY + word) * 2654435761 % 2**32 * PAIRS // 2**32
        pair = encoder.words.pairs.weight[row] if t > 0 else 0.0
        assert_close(tokens[i, t, 16:], encoder.words.word_embeddings.weight[word] + pair)
    assert not encoder.words.word_embeddings.weight[0].any(), "of padding"
    assert TextEncoder(CONVOLUTIONAL, VOCABULARY, 0, TEXT_LENGTH).words is None


@pytest.mark.parametrize("config", [CONVOLUTIONAL, DEEP])
def test_more_padding_changes_no_token(config):
    encoder, texts = TextEncoder(config, VOCABULARY, 0, TEXT_LENGTH).eval(), batch().captions
    more = [torch.nn.functional.pad(x[:, :-2], (0, 2)) for x in (texts.input_ids_BT, texts.attention_mask_BT)]
    short = [x[:, :-2] for x in (texts.input_ids_BT, texts.attention_mask_BT)]
    mask = short[1].bool()
    assert_close(encoder(*more)[:, :-2][mask], encoder(*short)[mask])


def test_image_size_errors():
    with pytest.raises(ValueError, match=r"VisualEncoder: image_size must be a multiple of the patch \(16\), got"):
        VisualEncoder(TINY, (64, 40))
    with pytest.raises(
        ValueError, match=r"VisualEncoder: images must have shape \(B, 3, 64, 32\), got \(2, 3, 32, 64\)"
    ):
        VisualEncoder(TINY, (64, 32))(torch.zeros(2, 3, 32, 64))


def test_weights_that_cannot_be_loaded(tmp_path):
    missing = replace(TINY, pretrained=str(tmp_path / "no" / "such" / "folder"))
    with pytest.raises(
        RuntimeError, match="encoder: pretrained weights .*such.* cannot be loaded; give a local folder"
    ):
        VisualEncoder(missing, IMAGE_SIZE)
    with pytest.raises(RuntimeError, match="encoder: pretrained weights .* cannot be loaded"):
        TextEncoder(missing, VOCABULARY, 0, TEXT_LENGTH)


def test_fused_attention_runs_everywhere(vit_folder, bert_folder):
    for config in (TINY, replace(TINY, pretrained=vit_folder)):
        assert VisualEncoder(config, (32, 32)).backbone.config._attn_implementation == "sdpa"
    for config in (TINY, replace(TINY, pretrained=bert_folder)):
        assert TextEncoder(config, VOCABULARY, 0, TEXT_LENGTH).backbone.config._attn_implementation == "sdpa"


def test_pretrained_bert_must_cover_the_tokenizer(bert_folder):
    config = replace(TINY, pretrained=bert_folder)
    assert TextEncoder(config, VOCABULARY, 0, TEXT_LENGTH).width == 16
    with pytest.raises(
        ValueError, match="TextEncoder: the tokenizer and text length need vocab_size >= 41, .* have 40"
    ):
        TextEncoder(config, VOCABULARY + 1, 0, TEXT_LENGTH)
    with pytest.raises(ValueError, match="text length need max_position_embeddings >= 13"):
        TextEncoder(config, VOCABULARY, 0, TEXT_LENGTH + 1)


@pytest.mark.parametrize("adapter_layers", [0, 2])
def test_padding_does_not_reach_the_words(adapter_layers):
    encoder = TextEncoder(TINY, VOCABULARY, 0, TEXT_LENGTH, adapter_layers).eval()
    words = torch.tensor([[3, 4, 5, 6]])
    padded = torch.nn.functional.pad(words, (0, 6), value=9)
    mask = (torch.arange(10) < 4)[None].long()
    assert_close(encoder(padded, mask)[:, :4], encoder(words, torch.ones_like(words)))


def test_frozen_encoder_stays_as_it_is_and_its_adapter_learns():
    frozen = TextEncoder(replace(TINY, trainable=False), VOCABULARY, 0, TEXT_LENGTH, adapter_layers=1).train()
    assert not frozen.backbone.training and frozen.adapter.training
    data = batch().captions
    frozen(data.input_ids_BT, data.attention_mask_BT).square().sum().backward()
    assert all(p.grad is None for p in frozen.backbone.parameters())
    assert all(p.grad is not None for p in frozen.adapter.parameters())
    visual = VisualEncoder(replace(TINY, trainable=False), IMAGE_SIZE).train()
    assert not visual(batch().images_BCHW).requires_grad and not visual.backbone.training
    assert VisualEncoder(TINY, IMAGE_SIZE).train().backbone.training
