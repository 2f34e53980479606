from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from tests.support.models import batch, build, paper, recommended
from tests.training.models.test_model import loss_switch
from training.models.model import VIEWS
from training.models.model_outputs import hard_negatives, negative_indices

DATA = batch()


@pytest.mark.parametrize(
    ("configs", "view"),
    [(recommended(), "other"), (loss_switch(final_text="caption"), "caption"), (paper(), "identity")],
)
def test_which_text_is_fused(configs, view):
    model = build(*configs)
    encoded = model.encode(DATA)
    before = model.heads(encoded)
    # The other caption is encoded where it is fused, and nowhere else.
    assert len(encoded.text_tokens_VBTC) == (4 if view == "other" else 3)
    for i, name in enumerate(VIEWS[: len(encoded.text_tokens_VBTC)]):
        changed = encoded.text_tokens_VBTC.clone()
        changed[i] += torch.randn(16)
        after = model.heads(replace(encoded, text_tokens_VBTC=changed))
        assert torch.equal(before.f_final, after.f_final) == (name != view)
        if name != "other":
            assert not torch.equal(getattr(before, f"t_{name}"), getattr(after, f"t_{name}"))


def test_wrong_pairs_are_of_another_person():
    ids = torch.tensor([7, 7, 7, 3, 3, 5])
    others = negative_indices(ids)
    assert (ids != ids[others]).all()
    # From half a batch further on: 0 -> 3, 1 -> 4, 2 -> 5, 3 -> 0, 4 -> 1, 5 -> 2.
    assert others.tolist() == [3, 4, 5, 0, 1, 2]
    assert negative_indices(torch.tensor([1, 1, 2, 1])).tolist() == [2, 2, 0, 2]
    assert negative_indices(torch.tensor([4, 4, 4])) is None


def test_batch_of_one_identity_has_only_right_pairs():
    f = build(*recommended())(batch(4, images_per_id=4))
    assert f.matching_labels.tolist() == [1.0] * 4


def logits_of(model, encoded, images, texts):
    """Logits of the matching head for pairs of rows, each pair as a right pair of its own."""
    paired = replace(
        encoded,
        image_tokens_BPC=encoded.image_tokens_BPC[images],
        text_tokens_VBTC=encoded.text_tokens_VBTC[:, texts],
        text_mask_VBT=encoded.text_mask_VBT[:, texts],
    )
    return model.heads(paired).matching_logits[: len(images)]


def test_wrong_pairs_in_order_are_images_with_the_text_of_another_person():
    """Row B + i is image i with the text of its wrong partner: what a separate fusion of that pair gives."""
    model = build(*loss_switch(final_negatives="next"))
    encoded = model.encode(DATA)
    assert_close(
        model.heads(encoded).matching_logits[8:],
        logits_of(model, encoded, torch.arange(8), negative_indices(DATA.ids_B)),
    )


def test_hard_wrong_pairs_are_the_most_similar_ones():
    """For even rows the text that the image is most similar to, for odd rows the image that the text is most similar to,
    among those of other people; found by plain loops."""
    model = build(*recommended())
    encoded = model.encode(DATA)
    f = model.heads(encoded)
    fused = F.normalize(
        model.text_projection(model._pool(encoded.text_tokens_VBTC[3], encoded.text_mask_VBT[3])), dim=1
    )
    similar = ((f.v_id + f.v_clo) @ fused.T).tolist()
    images, texts = [], []
    for i in range(8):
        others = [j for j in range(8) if DATA.ids_B[j] != DATA.ids_B[i]]
        images.append(i if i % 2 == 0 else max(others, key=lambda j, i=i: similar[j][i]))
        texts.append(max(others, key=lambda j, i=i: similar[i][j]) if i % 2 == 0 else i)
    expected = logits_of(model, encoded, torch.tensor(images), torch.tensor(texts))
    assert_close(f.matching_logits[8:], expected)
    assert not torch.allclose(expected, f.matching_logits[:8])
    assert hard_negatives(torch.eye(3), torch.tensor([4, 4, 4])) is None


@pytest.mark.parametrize("share", [0.0, 0.25])
def test_the_losses_of_the_fusion_reach_the_encoders_as_far_as_the_field_says(share):
    gradients = []
    for model in (build(*loss_switch(final_gradient=part)) for part in (1.0, share)):
        leaves = model.encode(DATA).leaves()
        features = model.heads(leaves)
        losses = features.matching_logits.square().sum() + features.f_final.pow(3).sum()
        losses.backward()
        gradients.append([leaf.grad for leaf in leaves.tensors()])
        assert all(p.grad.abs().max() > 0 for p in model.matching_head.parameters())
    for whole, part in zip(*gradients, strict=True):
        assert_close(torch.zeros_like(whole) if part is None else part, share * whole, atol=1e-7, rtol=1e-4)
        assert whole.abs().max() > 0
