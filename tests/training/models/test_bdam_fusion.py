from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from training.config import BdamConfig, FusionConfig
from training.models.bdam import Bdam
from training.models.fusion import Fusion, LinearMatchingHead, MatchingHead, masked_mean, projection

WIDTH = 16


def bdam(**changes):
    torch.manual_seed(0)
    config = BdamConfig(self_layers=1, cross_layers=2, heads=2, dropout=0.0)
    return Bdam(WIDTH, replace(config, **changes))


def tokens(count=2, length=5, width=WIDTH, seed=1):
    return torch.randn(count, length, width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("pre_norm", [True, False])
def test_gate_splits_the_two_pooled_branches(pre_norm):
    out = bdam(pre_norm=pre_norm)(tokens())
    assert out.gate_BC is not None and 0 < out.gate_BC.min() and out.gate_BC.max() < 1
    assert_close(out.f_id_BC, out.gate_BC * out.f_id_hat_BC)
    assert_close(out.f_clo_BC, (1 - out.gate_BC) * out.f_clo_hat_BC)
    assert_close(out.id_tokens_BPC.mean(1), out.f_id_BC)
    assert_close(out.clo_tokens_BPC.mean(1), out.f_clo_BC)


def test_without_gate_both_branches_pass_unweighted():
    module = bdam(gate=False)
    out = module(tokens())
    assert out.gate_BC is None and module.gate is None
    assert out.f_id_BC is out.f_id_hat_BC and out.f_clo_BC is out.f_clo_hat_BC
    assert_close(out.id_tokens_BPC.mean(1), out.f_id_BC)
    assert_close(out.clo_tokens_BPC.mean(1), out.f_clo_BC)


def test_switched_off_it_is_one_linear_layer_per_branch_on_pooled_tokens():
    module = bdam(enabled=False, heads=3)
    out = module(tokens())
    assert len(list(module.parameters())) == 4
    assert_close(out.f_id_hat_BC, module.identity.projection(tokens().mean(1)))
    assert_close(out.f_clo_BC, module.clothing.projection(tokens().mean(1)))


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match=r"Bdam: heads must divide the width of the visual encoder \(16\), got 3"):
        bdam(heads=3)


@pytest.mark.parametrize("cross_attention", [True, False])
def test_branches_meet_in_cross_attention_only(cross_attention):
    module = bdam(cross_attention=cross_attention)
    before = module(tokens()).f_id_hat_BC
    with torch.no_grad():
        module.clothing.projection.weight.mul_(-3)
    assert torch.equal(before, module(tokens()).f_id_hat_BC) != cross_attention


def test_both_directions_read_the_inputs_of_the_layer():
    """With the same weights in both branches nothing can tell them apart, unless one reads the other's update."""
    module = bdam()
    module.clothing.load_state_dict(module.identity.state_dict())
    out = module(tokens())
    assert_close(out.f_id_hat_BC, out.f_clo_hat_BC, rtol=0, atol=1e-6)


def test_without_pre_norm_it_is_attention_with_residual_only():
    module = bdam(pre_norm=False, cross_attention=False)
    assert not any(isinstance(m, torch.nn.LayerNorm) for m in module.modules())
    x = module.identity.projection(tokens())
    attention = module.identity.self_attention[0].attention
    q, k, v = torch.nn.functional.linear(x, attention.in_proj_weight, attention.in_proj_bias).chunk(3, -1)
    q, k, v = (t.unflatten(-1, (2, 8)).transpose(1, 2) for t in (q, k, v))
    attended = (q @ k.mT / 8**0.5).softmax(-1) @ v
    expected = x + attention.out_proj(attended.transpose(1, 2).flatten(2))
    assert_close(module(tokens()).f_id_hat_BC, expected.mean(1))


def fusion(backend="reference", **changes):
    torch.manual_seed(0)
    config = replace(FusionConfig(width=8, layers=2, state=4, heads=2, dropout=0.0), **changes)
    return Fusion(WIDTH, 12, config, 6, backend)


def pair(length=4, padding=0, seed=3):
    """Arguments of a fusion call: two images, two texts (the second one shorter by two tokens), `padding` more."""
    image, text = tokens(2, 5), tokens(2, length, 12, seed)
    text = torch.cat([text, torch.full((2, padding, 12), 7.0)], 1)
    mask = (torch.arange(length + padding)[None] < torch.tensor([[length], [length - 2]])).long()
    return image, text, mask, masked_mean(text, mask)


@pytest.mark.parametrize("form", ["tokens", "pooled"])
@pytest.mark.parametrize("layers_kind", ["mamba", "transformer", "none"])
@pytest.mark.parametrize("pre_norm", [True, False])
def test_fusion_shapes_and_weights(form, layers_kind, pre_norm):
    module = fusion(form=form, layers_kind=layers_kind, pre_norm=pre_norm)
    out = module(*pair())
    assert out.f_final_BE.shape == (2, 6)
    assert_close(out.weights_B2.sum(1), torch.ones(2))
    assert len(module.layers) == (0 if layers_kind == "none" else 2)
    assert any("mamba" in name for name, _ in module.named_parameters()) == (layers_kind == "mamba")


def test_pooled_fusion_is_the_printed_sum():
    module = fusion(form="pooled", layers_kind="none", pre_norm=False, alignment=False)
    image, _, _, text = arguments = pair()
    image, text = module.align_image(image.mean(1)), module.align_text(text)
    w = module.gate(torch.cat([image, text], 1)).softmax(1)
    assert_close(module(*arguments).f_final_BE, module.projection(w[:, :1] * image + w[:, 1:] * text))


def test_mamba_layer_is_residual_as_printed():
    module = fusion(form="pooled", pre_norm=False, layers=1)
    arguments, layer = pair(), module.layers[0]
    with torch.no_grad():
        x = fusion(form="pooled", pre_norm=False, layers=1, layers_kind="none")
        x.load_state_dict({k: v for k, v in module.state_dict().items() if not k.startswith("layers")})
        x.projection = torch.nn.Identity()
        fused = x(*arguments).f_final_BE
        expected = module.projection(layer.mamba(fused[:, None])[:, 0] + fused)
    assert_close(module(*arguments).f_final_BE, expected)


@pytest.mark.parametrize("form", ["tokens", "pooled"])
def test_without_gate_the_weights_are_equal(form):
    module = fusion(form=form, gate=False)
    assert module.gate is None
    assert_close(module(*pair()).weights_B2, torch.full((2, 2), 0.5))


def test_without_alignment_each_modality_has_one_linear_map():
    assert isinstance(fusion(alignment=False).align_image, torch.nn.Linear)
    assert isinstance(fusion(alignment=False).align_text, torch.nn.Linear)
    assert len(list(fusion().align_text.parameters())) == 4


@pytest.mark.parametrize("layers_kind", ["mamba", "transformer", "none"])
@pytest.mark.parametrize("pre_norm", [True, False])
def test_padding_of_the_text_changes_nothing(layers_kind, pre_norm):
    module = fusion(layers_kind=layers_kind, pre_norm=pre_norm)
    plain, padded = module(*pair()), module(*pair(padding=3))
    assert_close(plain.f_final_BE, padded.f_final_BE)
    assert_close(plain.weights_B2, padded.weights_B2)
    assert not torch.allclose(plain.f_final_BE, module(*pair(seed=4)).f_final_BE)


@pytest.mark.parametrize("kind", ["mamba", "transformer"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_what_stands_in_the_padding_does_not_matter(side, kind):
    module, (image, text, _, pooled) = fusion(layers_kind=kind), pair()
    keep = torch.arange(4) < 3 if side == "right" else torch.arange(4) > 0
    mask = keep.long().expand(2, 4)
    other = torch.where(keep[None, :, None], text, 100 * text + 1)
    one, two = (module(image, t, mask, pooled) for t in (text, other))
    assert_close(one.f_final_BE, two.f_final_BE)
    assert_close(one.weights_B2, two.weights_B2)


@pytest.mark.parametrize("form", ["tokens", "pooled"])
def test_a_sequence_of_length_one_has_no_use_for_the_decay(form):
    """The scan's A and all taps of the convolution but the last one only matter when there is a past."""
    module = fusion(form=form)
    module(*pair()).f_final_BE.square().sum().backward()
    mamba = module.layers[0].mamba
    assert (mamba.A_log.grad.abs().max() > 0) == (form == "tokens")
    assert (mamba.conv1d.weight.grad[..., :-1].abs().max() > 0) == (form == "tokens")
    assert mamba.conv1d.weight.grad[..., -1].abs().max() > 0


@pytest.mark.parametrize("form", ["tokens", "pooled"])
def test_backends_agree(form):
    arguments = pair(padding=2)
    assert_close(fusion("cpu", form=form)(*arguments).f_final_BE, fusion(form=form)(*arguments).f_final_BE)


def test_matching_head_starts_as_ten_times_the_cosine_and_weighs_each_channel():
    head, fused, text = MatchingHead(3), torch.randn(4, 3), torch.nn.functional.normalize(torch.randn(4, 3), dim=1)
    cosine = torch.nn.functional.cosine_similarity(fused, text)
    assert_close(head(fused, text), 10 * cosine)
    with torch.no_grad():
        head.weight.copy_(torch.tensor([1.0, 0.0, -2.0]))
        head.bias.fill_(0.5)
    products = torch.nn.functional.normalize(fused, dim=1) * text
    assert_close(head(fused, text), products[:, 0] - 2 * products[:, 2] + 0.5)


def test_linear_matching_head_reads_f_final_alone():
    head, fused, text = LinearMatchingHead(3), torch.randn(4, 3), torch.randn(4, 3)
    assert_close(head(fused, text), (fused * head.weight).sum(1) + head.bias)
    assert torch.equal(head(fused, text), head(fused, -text))


def test_masked_mean():
    x = torch.tensor([[[1.0], [3.0], [9.0]], [[5.0], [7.0], [1.0]]])
    mask = torch.tensor([[1, 1, 0], [0, 0, 0]])
    assert_close(masked_mean(x, mask), torch.tensor([[2.0], [0.0]]))


def test_batch_norm_keeps_nearly_equal_inputs_apart() -> None:
    near_BC = torch.randn(8) + 1e-3 * torch.randn(6, 8)
    cosines = []
    for batch_norm in (True, False):
        out_BE = torch.nn.functional.normalize(projection(8, 5, batch_norm)(near_BC), dim=1)
        cosines.append((out_BE @ out_BE.T).min().item())
    assert cosines[0] < 0.5 and cosines[1] > 0.99
