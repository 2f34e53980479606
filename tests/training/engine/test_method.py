"""Readings of docs/method.md that no single stage owns, computed by hand, and the facts that follow from them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

import bdam_fast
from tests.support.models import batch, build, gradnorm_config, paper, recommended
from tests.training.models.test_bdam_fusion import WIDTH, bdam, fusion, pair, tokens
from training.config import Config
from training.config.recipes import cuhk_pedes, cuhk_pedes_paper
from training.engine.gradnorm import GradNorm, backward_tasks
from training.engine.losses import fixed_losses, task_losses
from training.models.fusion import masked_mean


@pytest.mark.parametrize("batch_norm", [False, True])
def test_identity_embedding_is_an_mlp_on_the_gated_feature_normalised(batch_norm):
    """Reading 4."""
    model = build(replace(recommended()[0], batch_norm=batch_norm), recommended()[1])
    f = model(batch())
    first, _, last = model.identity_projection
    expected = F.normalize(last(F.gelu(first(f.f_id))), dim=1)
    assert_close(f.v_id, expected)
    assert isinstance(last, torch.nn.Sequential) == batch_norm and f.v_id.shape == (8, 12)
    assert not torch.allclose(f.v_id, F.normalize(last(F.gelu(first(f.f_id_hat))), dim=1))


def test_default_text_pooling_is_the_masked_mean():
    """Reading 12."""
    model, texts = build(*recommended()), batch().captions
    out = model.text(texts.input_ids_BT, texts.attention_mask_BT)
    mask = texts.attention_mask_BT[..., None].bool()
    mean = out.masked_fill(~mask, 0).sum(1) / mask.sum(1)
    assert_close(model.embed_texts(texts), F.normalize(model.text_projection(mean), dim=1))


def attended(layer, query, context):
    """Multi-head attention of two heads written out."""
    attention = layer.attention
    parts = zip(
        attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3), (query, context, context), strict=True
    )
    q, k, v = (F.linear(x, w, b).unflatten(-1, (2, WIDTH // 2)).transpose(1, 2) for w, b, x in parts)
    out = (q @ k.mT / (WIDTH // 2) ** 0.5).softmax(-1) @ v
    return attention.out_proj(out.transpose(1, 2).flatten(2))


def test_pre_norm_blocks_with_feed_forward():
    """Reading 10: self-attention, then both directions of cross-attention on the inputs of the layer."""
    module = bdam(self_layers=1, cross_layers=1)
    branches = (module.identity, module.clothing)
    entered = []
    for branch in branches:
        x, layer = branch.projection(tokens()), branch.self_attention[0]
        x = x + attended(layer, layer.norm(x), layer.norm(x))
        entered.append(x + layer.feed_forward(x))
    outputs = []
    for branch, x, other in zip(branches, entered, entered[::-1], strict=True):
        layer = branch.cross_attention[0]
        x = x + attended(layer, layer.norm(x), layer.norm_context(other))
        outputs.append(branch.norm(x + layer.feed_forward(x)).mean(1))
    out = module(tokens())
    assert_close([out.f_id_hat_BC, out.f_clo_hat_BC], outputs)
    assert isinstance(module.identity.self_attention[0].feed_forward[0], torch.nn.LayerNorm)


def test_token_fusion_scales_each_token_by_the_weight_of_its_modality():
    """Reading 13."""
    module = fusion(form="tokens", layers_kind="none", pre_norm=False)
    image, text, mask, _ = arguments = pair()
    a, b = module.align_image(image), module.align_text(text)
    w = module.gate(torch.cat([a.mean(1), masked_mean(b, mask)], 1)).softmax(1)
    rows = []
    for i, length in enumerate(mask.sum(1).tolist()):
        rows.append(torch.cat([w[i, 0] * a[i], w[i, 1] * b[i, :length]]).mean(0))
    assert_close(module(*arguments).f_final_BE, module.projection(torch.stack(rows)))


def test_mamba_layers_are_pre_norm_residual_blocks():
    """Reading 14; two layers on one sequence without padding."""
    module = fusion(form="tokens", layers=2)
    image, text, mask, _ = pair()
    full = torch.ones_like(mask)
    arguments = (image, text, full, masked_mean(text, full))
    a, b = module.align_image(image), module.align_text(text)
    w = module.gate(torch.cat([a.mean(1), b.mean(1)], 1)).softmax(1)
    x = torch.cat([w[:, :1, None] * a, w[:, 1:, None] * b], 1)
    for layer in module.layers:
        x = x + layer.mamba(layer.norm(x))
    assert_close(module(*arguments).f_final_BE, module.projection(module.norm(x).mean(1)))


def test_optimiser_of_both_presets():
    """Reading 25, and reading 11's rate of BERT."""
    for config, kind in ((cuhk_pedes(), "adamw"), (cuhk_pedes_paper(), "adam")):
        assert (config.optim.optimizer, config.optim.lr, config.optim.weight_decay) == (kind, 1e-4, 1e-3)
    assert Config().model.text.lr_scale == 0.1 and not cuhk_pedes_paper().model.text.trainable


@pytest.mark.parametrize("form", ["tokens", "pooled"])
def test_with_length_one_neither_decay_nor_earlier_taps_change_the_output(form):
    module = fusion(form=form)
    before, mamba = module(*pair()).f_final_BE, module.layers[0].mamba
    with torch.no_grad():
        mamba.A_log.add_(1.0)
        other_decay = module(*pair()).f_final_BE
        mamba.A_log.sub_(1.0)
        mamba.conv1d.weight[..., :-1] += 1.0
        other_taps = module(*pair()).f_final_BE
        mamba.conv1d.weight[..., -1] += 1.0
        last_tap = module(*pair()).f_final_BE
    assert (
        torch.allclose(other_decay, before, atol=1e-6)
        == torch.allclose(other_taps, before, atol=1e-6)
        == (form == "pooled")
    )
    assert not torch.allclose(last_tap, other_taps, atol=1e-5)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize(("samples", "x_width", "y_width"), [(6, 40, 30), (50, 5, 7), (16, 16, 3)])
def test_linear_hsic_in_both_forms(samples, x_width, y_width, backend):
    g = torch.Generator().manual_seed(0)
    x, y = (torch.randn(samples, n, generator=g, dtype=torch.float64) + 3 for n in (x_width, y_width))
    centre = torch.eye(samples, dtype=torch.float64) - 1 / samples
    wide = torch.trace(x @ x.T @ centre @ (y @ y.T) @ centre) / (samples - 1) ** 2
    narrow = ((x - x.mean(0)).T @ (y - y.mean(0))).square().sum() / (samples - 1) ** 2
    assert_close(wide, narrow)
    assert_close(bdam_fast.hsic(x, y, kernel="linear", backend=backend), narrow)


@pytest.mark.parametrize("preset", [recommended, paper])
def test_a_pass_through_the_heads_per_task_and_one_through_the_encoders(preset):
    """No double backward: K + 1 passes reach the input of the decoupling module, one the first block of the ViT."""
    model_config, loss = preset()
    model, data = build(model_config, loss), batch()
    passes = {"heads": 0, "encoder": 0}

    def count(name):
        return lambda grad: passes.update({name: passes[name] + 1})

    embeddings = model.visual.backbone.embeddings
    embeddings.register_forward_hook(lambda module, args, out: out.register_hook(count("encoder")) and None)
    projection = model.bdam.identity.projection
    projection.register_forward_hook(lambda module, args, out: out.register_hook(count("heads")) and None)
    encoded = model.encode(data)
    leaves = encoded.leaves()
    features = model.heads(leaves)
    tasks = task_losses(features, data.ids_B, data.clothing_group_B, loss, "reference")
    weights = dict.fromkeys(tasks, 1.0)
    backward_tasks(tasks, weights, fixed_losses(features, loss), leaves.tensors(), model.head_parameters())
    assert passes["encoder"] == 0
    encoded.backward(leaves)
    assert passes == {"heads": len(tasks) + 1, "encoder": 1}


def converged(scale):
    """Weighted norms, relative to their mean, after GradNorm has settled on losses that do not change."""
    tasks = ["a", "b", "c"]
    balance = GradNorm(tasks, gradnorm_config(lr=0.002, log_penalty=0.0))
    norms = {t: s * n for t, s, n in zip(tasks, scale, (1.0, 0.5, 2.0), strict=True)}
    losses = {t: s * v for t, s, v in zip(tasks, scale, (2.0, 1.0, 3.0), strict=True)}
    for step in range(4000):
        # Task c learns: half of its first loss is left; the others stand still.
        now = losses if step == 0 else losses | {"c": losses["c"] / 2}
        balance.update(now, norms)
        assert sum(balance.weights().values()) == pytest.approx(3)
    weighted = torch.tensor([balance.weights()[t] * norms[t] for t in tasks])
    return weighted / weighted.mean()


@pytest.mark.parametrize("scale", [(10.0, 1.0, 1.0), (0.2, 3.0, 1.0), (1.0, 1.0, 8.0)])
def test_the_scale_of_a_loss_does_not_change_what_it_contributes(scale):
    """The targets depend on loss ratios, the weights undo the scale: weighted norms end in the same proportion."""
    plain = converged((1.0, 1.0, 1.0))
    assert plain[2] < 0.75 * plain[0]
    assert_close(converged(scale), plain, rtol=0.05, atol=0)
