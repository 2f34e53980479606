import math
import re
from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from tests.support.models import PRESETS, batch, build, paper, recommended, texts
from training.config import LossConfig
from training.engine.losses import fixed_losses, task_losses
from training.models.model_outputs import EncoderOutput

DATA = batch()
# Parameters behind a softmax or a normalisation that removes what they add, up to rounding.
NO_EFFECT = ("key.bias", "k_proj.bias")


def total_loss(model, loss, data=DATA):
    features = model(data)
    tasks = task_losses(features, data.ids_B, data.clothing_group_B, loss, "reference")
    return torch.stack([*tasks.values(), *fixed_losses(features, loss).values()]).sum()


def without_gradient(model, loss):
    """Names of trainable parameters that no loss reaches."""
    total_loss(model, loss).backward()
    return {
        name
        for name, p in model.named_parameters()
        if p.requires_grad and not name.endswith(NO_EFFECT) and (p.grad is None or not p.grad.abs().max() > 0)
    }


@pytest.mark.parametrize("preset", PRESETS)
def test_features_have_the_documented_shapes(preset):
    model_config, loss = PRESETS[preset]()
    model = build(model_config, loss)
    f = model(DATA)
    for name in ("f_id_hat", "f_clo_hat", "gate", "f_id", "f_clo"):
        assert getattr(f, name).shape == (8, 16), name
    for name in ("v_id", "v_clo", "v_id_hat_clo", "t_caption", "t_identity", "t_clothing", "f_final"):
        assert getattr(f, name).shape == (8, 12), name
        assert_close(getattr(f, name).norm(dim=1), torch.ones(8))
    assert f.fusion_weights.shape == (8, 2) and f.temperature.shape == ()
    if preset == "recommended":
        assert f.matching_labels.tolist() == [1.0] * 8 + [0.0] * 8 and f.matching_logits.shape == (16,)
    else:
        assert f.matching_logits is None and f.matching_labels is None


@pytest.mark.parametrize("preset", PRESETS)
def test_every_trainable_parameter_gets_a_gradient(preset):
    model_config, loss = PRESETS[preset]()
    model = build(model_config, loss)
    # With the paper's pooled form the scan runs over one step: its decay has no effect (a fact of the method).
    expected = {"fusion.layers.0.mamba.A_log"} if preset == "paper" else set()
    assert without_gradient(model, loss) == expected
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    if preset == "paper":
        assert frozen == {n for n, _ in model.named_parameters() if n.startswith("text.backbone")} | {"log_temperature"}
    else:
        assert frozen == set()


def model_switch(part, **changes):
    model, loss = recommended()
    if part is not None:
        changes = {part: replace(getattr(model, part), **changes)}
    return replace(model, **changes), loss


def loss_switch(**changes):
    model, loss = recommended()
    return model, replace(loss, **changes)


# Per switch: the configurations, pattern of the parameters that vanish, and starts of the names left without a loss.
NORMS = r"bdam\.\w+\.(norm|.*feed_forward|.*\.norm)"
SWITCHES = {
    "w/o BDAM": (model_switch("bdam", enabled=False), r"bdam\.(gate|\w+\.(self|cross|norm))", ()),
    "w/o cross-attention": (model_switch("bdam", cross_attention=False), r"bdam\.\w+\.cross", ()),
    "w/o gate": (model_switch("bdam", gate=False), r"bdam\.gate", ()),
    "shallow": (model_switch("bdam", self_layers=1), r"bdam\.\w+\.self_attention\.1", ()),
    "residual only": (model_switch("bdam", pre_norm=False), NORMS, ()),
    "w/o fusion": (model_switch("fusion", enabled=False), "fusion|matching_head", ()),
    "w/o Mamba": (model_switch("fusion", layers_kind="none"), r"fusion\.layers", ()),
    "transformer": (model_switch("fusion", layers_kind="transformer"), r"fusion\.layers", ()),
    "w/o fusion gate": (model_switch("fusion", gate=False), r"fusion\.gate", ()),
    "w/o alignment": (model_switch("fusion", alignment=False), r"fusion\.align_\w+\.0", ()),
    "pooled": (model_switch("fusion", form="pooled"), None, ("fusion.layers.0.mamba.A_log",)),
    "Mamba as printed": (model_switch("fusion", pre_norm=False), r"fusion\.(layers\.0\.)?norm", ()),
    "cls pooling": (model_switch(None, text_pooling="cls"), None, ()),
    "w/o InfoNCE": (loss_switch(info_nce=False), None, ("log_temperature",)),
    "w/o triplet": (loss_switch(triplet=False), None, ()),
    "w/o clothing matching": (loss_switch(clothing_matching=False), None, ()),
    "w/o adversarial": (loss_switch(adversarial=False), None, ()),
    "critic": (loss_switch(adversarial_mode="critic"), None, ()),
    "w/o what trains the clothing embedding": (
        loss_switch(clothing_matching=False, info_nce_texts="both"),
        None,
        ("clothing_head.projection",),
    ),
    "w/o decoupling": (loss_switch(decoupling=False), None, ()),
    "w/o gate regularisation": (loss_switch(gate_regularisation=False), None, ()),
    "w/o matching": (loss_switch(final_matching=False), "matching_head", ()),
    "f_final untrained": (
        loss_switch(final_matching=False, final_info_nce=False, final_triplet=False),
        "matching_head",
        ("fusion",),
    ),
    "intent": (loss_switch(adversarial_mode="intent"), None, ()),
    "minimax": (loss_switch(adversarial_mode="minimax"), None, ()),
    "log-odds": (loss_switch(adversarial_mode="odds"), None, ()),
    "captions of everybody": (loss_switch(caption_positives="identity"), None, ()),
    "the caption itself is fused": (loss_switch(final_text="caption"), None, ()),
    "wrong pairs in order": (loss_switch(final_negatives="next"), None, ()),
    "paper adversary": (loss_switch(adversarial_mode="paper"), None, ()),
    "captions": (loss_switch(info_nce_texts="caption"), None, ()),
    "captions and identity texts": (loss_switch(info_nce_texts="both"), None, ()),
    "HSIC": (loss_switch(decoupling_measure="hsic"), None, ()),
    "identity texts": (loss_switch(info_nce_texts="identity"), None, ()),
    "diagonal InfoNCE": (loss_switch(info_nce_symmetric=False), None, ()),
    "raw features": (loss_switch(hsic_normalise=False), None, ()),
    "rbf": (loss_switch(hsic_kernel="rbf"), None, ()),
    "margin": (loss_switch(margin=0.5), None, ()),
    "hardest triplets": (loss_switch(triplet_smoothing=0.0), None, ()),
    "fusion of the identity branch": (model_switch("fusion", branches="identity"), None, ()),
    "right pairs alone": (loss_switch(final_wrong_pairs=False), None, ()),
}


@pytest.mark.parametrize("switch", SWITCHES)
def test_a_switch_changes_the_graph_and_leaves_the_rest_trained(switch):
    (model_config, loss), vanished, untrained = SWITCHES[switch]
    full_model, model = build(*recommended()), build(model_config, loss)
    full_names, names = (
        {name for name, _ in m.named_parameters() if not name.startswith("clothing_head.probe")}
        for m in (full_model, model)
    )
    expected = {n for n in full_names if not (vanished and re.match(vanished, n))}
    if switch == "transformer":
        names = {n for n in names if not n.startswith("fusion.layers.0.layer.")}
    if switch == "w/o alignment":
        expected = {re.sub(r"(align_\w+)\.3", r"\1", n) for n in expected}
    assert names == expected and (vanished is None) == (expected == full_names)
    reached = without_gradient(model, loss)
    assert all(name.startswith(untrained) for name in reached), reached
    assert all(any(name.startswith(start) for name in reached) for start in untrained)
    # The values, not only the parameters: the same weights wherever both models have them.
    shared = {k: v for k, v in full_model.state_dict().items() if k in model.state_dict()}
    model.load_state_dict(shared, strict=False)
    full = total_loss(full_model, recommended()[1])
    changed = abs(float((total_loss(model, loss) - full).detach())) > 1e-7
    # Random features tell nothing of clothes: two forms of the adversary have nothing to say yet, as if it were off; where there
    # is something to read, test_adversary.py has a value of its own for each form.
    assert changed or switch in ("log-odds", "w/o adversarial")


def test_fixed_temperature_is_no_parameter_of_the_optimiser():
    model = build(*loss_switch(learn_temperature=False, temperature=0.1))
    assert_close(model.temperature(), torch.tensor(0.1))
    assert not any(p is model.log_temperature for g in model.parameter_groups(1.0) for p in g["params"])


@pytest.mark.parametrize(("start", "bound"), [(5.0, 0.5), (1e-4, 0.01)])
def test_learned_temperature_stays_within_its_bounds_and_keeps_learning(start, bound):
    model = build(*recommended())
    with torch.no_grad():
        model.log_temperature.fill_(math.log(start))
    temperature = model.temperature()
    assert_close(temperature, torch.tensor(bound))
    temperature.backward()
    assert model.log_temperature.grad > 0


def test_texts_are_encoded_by_length():
    """More texts than one part holds: every token is what it is when its text stands alone, padding is zero."""
    model, g = build(*recommended()), torch.Generator().manual_seed(3)
    many = texts(80, g)
    tokens = model._encode_texts(many.input_ids_BT, many.attention_mask_BT)
    for i, length in enumerate(many.attention_mask_BT.sum(1).tolist()):
        alone = model.text(many.input_ids_BT[i : i + 1, :length], many.attention_mask_BT[i : i + 1, :length])
        assert_close(tokens[i, :length], alone[0], atol=1e-5, rtol=1e-4)
    longest = many.attention_mask_BT.sum(1).sort().values[39]
    assert not tokens[many.attention_mask_BT.sum(1).argmin(), longest:].any()


@pytest.mark.parametrize("preset", PRESETS)
def test_embedding_one_side_equals_the_whole(preset):
    model = build(*PRESETS[preset]())
    f = model(DATA)
    image = model.embed_images(DATA.images_BCHW)
    assert_close(image.v_id_BE, f.v_id)
    assert_close(image.v_clo_BE, f.v_clo)
    assert_close(image.gate_BC, f.gate)
    assert_close(model.embed_texts(DATA.captions), f.t_caption)
    fused = model.fuse(DATA.images_BCHW, DATA.other if preset == "recommended" else DATA.identity)
    assert_close(torch.nn.functional.normalize(fused.f_final_BE, dim=1), f.f_final)
    assert_close(fused.weights_B2, f.fusion_weights)


def test_nothing_to_fuse_with():
    model = build(*model_switch("fusion", enabled=False))
    with pytest.raises(ValueError, match="Model.fuse: the model was built with fusion.enabled=False"):
        model.fuse(DATA.images_BCHW, DATA.captions)
    f = model(DATA)
    assert f.f_final is None and f.fusion_weights is None and f.matching_logits is None


def test_cls_pooling_reads_the_first_token():
    model = build(*model_switch(None, text_pooling="cls"))
    tokens = model.text(DATA.captions.input_ids_BT, DATA.captions.attention_mask_BT)
    expected = torch.nn.functional.normalize(model.text_projection(tokens[:, 0]), dim=1)
    assert_close(model.embed_texts(DATA.captions), expected)


@pytest.mark.parametrize("preset", PRESETS)
def test_parameters_are_split_into_encoders_and_heads(preset):
    model = build(*PRESETS[preset]())
    encoder, heads = model.encoder_parameters(), model.head_parameters()
    trainable = [p for p in model.parameters() if p.requires_grad]
    assert {id(p) for p in encoder} | {id(p) for p in heads} == {id(p) for p in trainable}
    assert len(encoder) + len(heads) == len(trainable)
    if preset == "paper":
        assert {id(p) for p in model.text.adapter.parameters()} <= {id(p) for p in encoder}


def test_groups_of_the_optimiser():
    model = build(*loss_switch(adversarial_mode="critic"))
    groups = {g["name"]: g for g in model.parameter_groups(1e-3)}
    assert {name: g["lr"] for name, g in groups.items()} == pytest.approx(
        {
            f"{part}{end}": lr
            for part, lr in (
                ("visual", 1e-3),
                ("text", 1e-4),
                ("heads", 1e-3),
                ("critic", 1e-3 * LossConfig().critic_lr_scale),
            )
            for end in ("", " without decay")
        }
    )
    where = {id(p): name for name, g in groups.items() for p in g["params"]}
    assert len(where) == sum(len(g["params"]) for g in groups.values()) == len(list(model.parameters()))
    names = {n: where[id(p)] for n, p in model.named_parameters()}
    assert names["log_temperature"] == names["fusion.layers.0.mamba.A_log"] == "heads without decay"
    assert names["bdam.gate.weight"] == "heads" and names["bdam.gate.bias"] == "heads without decay"
    assert names["text.backbone.embeddings.word_embeddings.weight"] == "text"
    assert names["visual.backbone.layernorm.weight"] == "visual without decay"
    assert all(("weight_decay" in g and g["weight_decay"] == 0) == name.endswith("decay") for name, g in groups.items())
    torch.optim.AdamW(groups.values(), weight_decay=1e-3)
    adapter = build(*paper())
    where = {id(p): g["name"] for g in adapter.parameter_groups(1.0) for p in g["params"]}
    assert {where[id(p)] for p in adapter.text.adapter.parameters()} == {"heads", "heads without decay"}


def test_gradients_through_leaves_equal_those_of_one_graph():
    loss = recommended()[1]
    straight, split = build(*recommended()), build(*recommended())
    total_loss(straight, loss).backward()
    encoded = split.encode(DATA)
    leaves = encoded.leaves()
    features = split.heads(leaves)
    tasks = task_losses(features, DATA.ids_B, DATA.clothing_group_B, loss, "reference")
    torch.stack([*tasks.values(), *fixed_losses(features, loss).values()]).sum().backward()
    assert all(p.grad is None for p in split.encoder_parameters())
    encoded.backward(leaves)
    for (name, a), b in zip(straight.named_parameters(), split.parameters(), strict=True):
        assert_close(a.grad, b.grad, msg=lambda text, name=name: f"{name}: {text}")


def test_backward_of_frozen_encoders_does_nothing():
    x = torch.zeros(2, 3, 4)
    encoded = EncoderOutput(x, x, x, torch.arange(2))
    leaves = encoded.leaves()
    (leaves.image_tokens_BPC * 2).sum().backward()
    encoded.backward(leaves)
    assert leaves.image_tokens_BPC.grad is not None and x.grad is None
