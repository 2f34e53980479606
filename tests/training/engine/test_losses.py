import math
from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from tests.support.models import batch, build, recommended, unit
from training.config import LossConfig
from training.engine import adversary, losses

IDS = torch.tensor([4, 4, 9, 2, 2, 2])


def by_hand(logits, positives):
    """Cross-entropy against a uniform target over each row's positives, in plain loops."""
    total = 0.0
    for row, positive in zip(logits.tolist(), positives.tolist(), strict=True):
        normaliser = math.log(sum(math.exp(x) for x in row))
        total += sum(normaliser - x for x, p in zip(row, positive, strict=True) if p) / sum(positive)
    return total / len(logits)


def test_info_nce_of_two_pairs():
    image, text = torch.eye(2), torch.tensor([[0.6, 0.8], [0.0, 1.0]])
    expected = (math.log(1 + math.exp((0.0 - 0.6) / 0.5)) + math.log(1 + math.exp((0.8 - 1.0) / 0.5))) / 2
    assert_close(losses.info_nce(image, text, torch.arange(2), 0.5, symmetric=False), torch.tensor(expected))


def test_info_nce_takes_every_pair_of_one_person_in_both_directions():
    image, text = unit(6, 5, dtype=torch.float64), unit(6, 5, seed=1, dtype=torch.float64)
    logits, positives = (image @ text.T / 0.07).detach(), IDS[:, None] == IDS[None]
    expected = (by_hand(logits, positives) + by_hand(logits.T, positives)) / 2
    assert float(losses.info_nce(image, text, IDS, 0.07, symmetric=True).detach()) == pytest.approx(expected)
    diagonal = losses.info_nce(image, text, IDS, 0.07, symmetric=False)
    assert float(diagonal.detach()) == pytest.approx(by_hand(logits, torch.eye(6)))


def test_info_nce_of_the_own_caption_leaves_the_others_of_the_person_out():
    """Row i: its own text against the texts of other people; neither positive nor negative are those of its person."""
    image, text = unit(6, 5, dtype=torch.float64), unit(6, 5, seed=1, dtype=torch.float64)
    logits = (image @ text.T / 0.07).detach().tolist()
    total = 0.0
    for i in range(6):
        kept = [j for j in range(6) if j == i or IDS[j] != IDS[i]]
        total += math.log(sum(math.exp(logits[i][j]) for j in kept)) - logits[i][i]
        total += math.log(sum(math.exp(logits[j][i]) for j in kept)) - logits[i][i]
    value = losses.info_nce(image, text, IDS, 0.07, symmetric=True, positives="own")
    assert float(value.detach()) == pytest.approx(total / 12)
    # The gradient of a pair that is left out is exactly zero: text 1 belongs to the person of image 0.
    value = losses.info_nce(image[:2], text[:2], IDS[:2], 0.07, symmetric=True, positives="own")
    assert float(value.detach()) == 0


def test_info_nce_in_half_precision_is_computed_in_fp32():
    image, text = unit(6, 32), unit(6, 32, seed=1)
    with torch.autocast("cpu", torch.bfloat16):
        value = losses.info_nce(image, text, IDS, 0.01, symmetric=True)
    assert value.dtype == torch.float32
    assert_close(value, losses.info_nce(image, text, IDS, 0.01, symmetric=True), rtol=1e-6, atol=0)


def test_triplet_by_hand():
    """Squared distances: anchor 0 to its positives 1 and 9, to the negatives 4 and 25."""
    x = torch.tensor([[0.0], [1.0], [3.0], [2.0], [5.0]], requires_grad=True)
    ids = torch.tensor([1, 1, 1, 2, 3])
    # Anchors 0, 1, 2 (farthest positive, nearest negative): 9-4, 4-1, 9-1; samples 3 and 4 have no positive.
    value = losses.triplet(x, ids, 0.3)
    assert_close(value, torch.tensor((5.3 + 3.3 + 8.3) / 3))
    value.backward()
    # From (0,2,3), (1,2,3) and (2,0,3): d/dx of |a-p|^2 is 2(a-p), of -|a-n|^2 is -2(a-n).
    expected = torch.tensor([(-6 + 4) - 6, -4 + 2, (6 + 4) + (6 - 2), -4 - 2 + 2, 0.0]) / 3
    assert_close(x.grad[:, 0], expected)


def test_triplet_against_plain_loops():
    x = unit(6, 4, dtype=torch.float64)
    distance = (x[:, None] - x[None]).square().sum(-1).tolist()
    terms = []
    for a in range(6):
        positive = [distance[a][j] for j in range(6) if IDS[j] == IDS[a] and j != a]
        negative = [distance[a][j] for j in range(6) if IDS[j] != IDS[a]]
        if positive:
            terms.append(max(max(positive) - min(negative) + 0.3, 0.0))
    assert len(terms) == 5
    assert float(losses.triplet(x, IDS, 0.3).detach()) == pytest.approx(sum(terms) / 5)


@pytest.mark.parametrize("ids", [torch.zeros(6, dtype=torch.int64), torch.arange(6)])
def test_triplet_without_positives_or_negatives_is_zero(ids):
    x = unit(6, 4)
    value = losses.triplet(x, ids, 0.3)
    value.backward()
    assert float(value.detach()) == 0 and not x.grad.any()


def test_match_probability_sums_over_the_texts_of_the_group():
    image, text = unit(6, 4, dtype=torch.float64), unit(6, 4, seed=1, dtype=torch.float64)
    p = (image @ text.T / 0.1).softmax(1)
    expected = torch.stack([p[i][IDS == IDS[i]].sum() for i in range(6)])
    log_p, log_not_p = adversary.log_match(image, text, IDS, 0.1)
    assert_close(log_p, expected.log())
    assert_close(log_not_p, torch.log1p(-expected))


def test_log_of_one_minus_p_is_right_where_p_rounds_to_one():
    """s = 1 for the right text and -1 for 3 others, tau 0.01: 1 - P = 3 exp(-200), which fp32 cannot even hold."""
    text = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [-1.0, 0.0], [-1.0, 0.0]])
    image = torch.tensor([[1.0, 0.0]] * 4, requires_grad=True)
    log_p, log_not_p = adversary.log_match(image, text, torch.arange(4), 0.01)
    assert float(log_p[0].detach().exp()) == 1
    assert_close(log_not_p[0], torch.tensor(math.log(3) - 200.0))
    log_not_p[0].backward()
    # d log(1-P) / ds: the right text pushes with -1/tau, the others share +1/tau.
    assert_close(image.grad[0], torch.tensor([-200.0, 0.0]))


def test_gate_regularisation_and_matching_by_hand():
    assert_close(losses.gate_regularisation(torch.tensor([[0.5, 1.0], [0.2, 0.5]])), torch.tensor((0.25 + 0.09) / 4))
    logits, labels = torch.tensor([2.0, 0.0, -1.0]), torch.tensor([1.0, 1.0, 0.0])
    right = (math.log(1 + math.exp(-2)) + math.log(2)) / 2
    assert_close(losses.matching(logits, labels), torch.tensor((right + math.log(1 + math.exp(-1))) / 2))
    assert_close(losses.matching(logits[:2], labels[:2]), torch.tensor(right))


@pytest.fixture(scope="module")
def features():
    with torch.no_grad():
        return build(*recommended())(batch())


DATA = batch()


def tasks(features, **changes):
    config = replace(LossConfig(), **changes)
    return losses.task_losses(features, DATA.ids_B, DATA.clothing_group_B, config, "reference")


ALL = ["info_nce", "triplet", "clothing", "adversarial", "decoupling", "matching"]


@pytest.mark.parametrize("name", ["info_nce", "triplet", "clothing", "adversarial", "decoupling"])
def test_a_loss_that_is_off_is_left_out(features, name):
    off = {"clothing_matching" if name == "clothing" else name: False}
    rest = tasks(features, **off)
    assert list(rest) == [n for n in ALL if n != name]
    assert rest == {n: v for n, v in tasks(features).items() if n != name}
    assert losses.task_names(replace(LossConfig(), **off), True) == list(rest)


def test_names_of_the_tasks(features):
    assert list(tasks(features)) == losses.task_names(LossConfig(), True) == ALL
    assert "matching" not in tasks(features, final_matching=False)
    assert losses.task_names(LossConfig(), False) == ALL[:-1]


def test_info_nce_averages_over_texts_and_adds_the_fused_feature(features):
    def value(**changes):
        return tasks(features, **{"both_captions": False, "final_wrong_pairs": False} | changes)["info_nce"]

    def own(image, text):
        return losses.info_nce(image, text, DATA.ids_B, 0.07, symmetric=True, positives="own")

    caption, identity = (value(info_nce_texts=t, final_info_nce=False) for t in ("caption", "identity"))
    assert_close(caption, own(features.v_id, features.t_caption))
    assert_close(identity, losses.info_nce(features.v_id, features.t_identity, DATA.ids_B, 0.07, symmetric=True))
    assert_close(value(final_info_nce=False, info_nce_texts="both"), (caption + identity) / 2)
    sums = features.v_id + features.v_clo
    scored, other = own(sums, features.t_caption), own(sums, features.t_other)
    assert_close(value(final_info_nce=False), (scored + identity) / 2)
    assert_close(value(final_info_nce=False, both_captions=True), ((scored + other) / 2 + identity) / 2)
    final = own(features.f_final, features.t_caption)
    assert_close(value(), (scored + identity) / 2 + final)
    # A wrong pair stands for its image.
    shown = features.wrong_images
    wrong = losses.info_nce(
        features.f_final_wrong, features.t_caption[shown], DATA.ids_B[shown], 0.07, symmetric=True, positives="own"
    )
    assert_close(value(final_wrong_pairs=True), (scored + identity) / 2 + (final + wrong) / 2)
    everybody = losses.info_nce(features.v_id, features.t_caption, DATA.ids_B, 0.07, symmetric=True)
    assert_close(value(info_nce_texts="caption", final_info_nce=False, caption_positives="identity"), everybody)
    assert_close(
        value(info_nce_symmetric=False, info_nce_texts="identity", final_info_nce=False),
        losses.info_nce(features.v_id, features.t_identity, DATA.ids_B, 0.07, symmetric=False),
    )


@pytest.mark.parametrize("texts", ["caption", "both", "scored"])
def test_a_text_that_is_no_other_caption_is_left_out(texts):
    features = build(*recommended())(DATA)
    config = LossConfig(info_nce_texts=texts, final_info_nce=False, both_captions=True)

    def value(has_other=None, t_other=features.t_other, **changes):
        parts = replace(features, t_other=t_other), DATA.ids_B, DATA.clothing_group_B, replace(config, **changes)
        return losses.task_losses(*parts, "reference", has_other)["info_nce"]

    everyone, nobody = torch.ones(8, dtype=torch.bool), torch.zeros(8, dtype=torch.bool)
    assert_close(value(everyone), value())
    assert torch.equal(value(nobody), value(both_captions=False))
    some = torch.tensor([True, True, False, True, False, False, True, True])
    rows, image = some.nonzero()[:, 0], features.v_id + features.v_clo if texts == "scored" else features.v_id

    def own(text, rows=slice(None)):
        ids = DATA.ids_B[rows]
        return losses.info_nce(image[rows], text[rows], ids, features.temperature, symmetric=True, positives="own")

    # Every caption weighs the same: 8 first ones and 5 others.
    captions = (8 * own(features.t_caption) + 5 * own(features.t_other, rows)) / 13
    identity = losses.info_nce(features.v_id, features.t_identity, DATA.ids_B, features.temperature, symmetric=True)
    assert_close(value(some), captions if texts == "caption" else (captions + identity) / 2)
    strange = torch.where(some[:, None], features.t_other, features.t_identity.flip(0))
    assert torch.equal(value(some, strange), value(some)), "what they hold in its place has no part in the loss"


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_captions_reach_the_identity_embedding_as_far_as_the_field_says(share):
    features = build(*recommended())(DATA)

    def gradient(loss):
        return torch.autograd.grad(loss, (features.v_id, features.v_clo), retain_graph=True, allow_unused=True)

    def own(texts):
        ids, sums = DATA.ids_B, features.v_id + features.v_clo
        return losses.info_nce(sums, texts, ids, features.temperature, symmetric=True, positives="own") / 2

    identity = losses.info_nce(features.v_id, features.t_identity, DATA.ids_B, features.temperature, symmetric=True) / 2
    caption = gradient(own(features.t_caption))
    config = LossConfig(captions_to_identity=share, final_info_nce=False, both_captions=False)
    value = losses.task_losses(features, DATA.ids_B, DATA.clothing_group_B, config, "reference")["info_nce"]
    assert_close(value, own(features.t_caption) + identity)
    v_id, v_clo = gradient(value)
    assert_close(v_id, gradient(identity)[0] + share * caption[0])
    assert_close(v_clo, caption[1])


def test_triplet_adds_the_fused_feature(features):
    plain, final = (losses.triplet(x, DATA.ids_B, 0.3, 0.2) for x in (features.v_id, features.f_final))
    assert_close(tasks(features, final_triplet=False)["triplet"], plain)
    assert_close(tasks(features, final_triplet=True)["triplet"], plain + final)
    assert_close(
        tasks(features, triplet_smoothing=0.0, final_triplet=False)["triplet"],
        losses.triplet(features.v_id, DATA.ids_B, 0.3),
    )


def test_smooth_triplet_is_the_printed_sum_and_tends_to_the_hardest() -> None:
    """Per positive a log-sum over the negatives; with two images an id and no smoothing what remains is batch-hard."""
    x, ids = unit(7, 4, dtype=torch.float64), torch.tensor([0, 0, 1, 1, 1, 2, 2])
    values = []
    for a in range(7):
        d = (x[a] - x).square().sum(1)
        others = d[ids != ids[a]]
        terms = [
            0.2 * (1 + ((d[p] - others + 0.3) / 0.2).exp().sum()).log() for p in range(7) if ids[p] == ids[a] and p != a
        ]
        values.append(torch.stack(terms).mean())
    assert_close(losses.triplet(x, ids, 0.3, 0.2), torch.stack(values).mean())
    pairs = torch.tensor([0, 0, 1, 1, 2, 2])
    assert_close(losses.triplet(x[:6], pairs, 0.3, 1e-4), losses.triplet(x[:6], pairs, 0.3), atol=1e-3, rtol=0)
    single = losses.triplet(x, torch.zeros(7), 0.3, 0.2)
    single.backward()
    assert float(single.detach()) == 0 and not x.grad.any()


def test_without_fusion_its_losses_are_gone(features):
    without = replace(features, f_final=None, fusion_weights=None, matching_logits=None, matching_labels=None)
    expected = tasks(features, final_info_nce=False, final_triplet=False, final_matching=False)
    assert tasks(without) == expected


def test_fixed_losses(features):
    expected = 0.01 * losses.gate_regularisation(features.gate)
    assert losses.fixed_losses(features, LossConfig()) == {"gate": expected}
    assert_close(losses.fixed_losses(features, LossConfig(gate_weight=0.5))["gate"], 50 * expected)
    assert losses.fixed_losses(features, LossConfig(gate_regularisation=False)) == {}
    assert losses.fixed_losses(replace(features, gate=None), LossConfig()) == {}
