"""The clothing matching loss and the adversary in every mode (reading 6), by plain softmax."""

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler
from torch.testing import assert_close

from tests.support.models import batch, build, recommended, unit
from training.engine import adversary, losses
from training.models.clothing_head import ClothingHead

IDS = torch.tensor([4, 4, 9, 2, 2, 2])


def test_a_batch_of_one_clothing_group_says_nothing():
    image, text = unit(4, 3), unit(4, 3, seed=1)
    log_p, log_not_p = adversary.log_match(image, text, torch.zeros(4), 0.07)
    assert not log_p.any() and not log_not_p.any()
    values = [adversary.clothing_matching(image, text, torch.zeros(4), 0.07)]
    for mode in ("paper", "intent", "odds", "minimax"):
        values.append(adversary.clothing_adversarial(image, image, text, torch.zeros(4), 0.07, mode))
    for value in values:
        image.grad = None
        value.backward(retain_graph=True)
        assert float(value.detach()) == 0 and not image.grad.any()


def backward(mode, seed=0):
    """One head on random branches: the head, its inputs and the value of the loss, after one backward pass; the matching
    loss for the mode "matching"."""
    torch.manual_seed(seed)
    head = ClothingHead(5, 4, "intent" if mode == "matching" else mode)
    f_id, f_clo = (torch.randn(6, 5, requires_grad=True) for _ in range(2))
    text, tau = unit(6, 4, seed=2), torch.tensor(0.2, requires_grad=True)
    v_clo, v_id_hat_clo, v_critic = head(f_id, f_clo)
    assert (v_critic is not None) == (mode == "critic")
    if mode == "matching":
        value = adversary.clothing_matching(v_clo, text, IDS, tau)
    else:
        value = adversary.clothing_adversarial(v_clo, v_id_hat_clo, text, IDS, tau, mode, v_critic)
    value.backward()
    return head, f_id, f_clo, text, tau, float(value.detach())


def reference(projection, f, text):
    """P of raw features through a copy of a projection, by plain softmax; a graph of its own, with its leaves."""
    copied = copy.deepcopy(projection)
    f, t = (x.detach().clone().requires_grad_() for x in (f, text))
    p = (F.normalize(copied(f), dim=1) @ t.T / 0.2).softmax(1)
    return (p * (IDS[:, None] == IDS[None])).sum(1), ([*copied.parameters()], f, t)


def trained(module):
    return [p.grad for p in module.parameters()]


def gradients(loss, inputs):
    return torch.autograd.grad(loss, inputs)


@pytest.mark.parametrize("mode", ["paper", "matching"])
def test_losses_of_the_clothing_branch_train_all_of_it(mode):
    """Eq. (1) as printed pushes everything away from the clothing text, the matching loss pulls everything towards it."""
    head, f_id, f_clo, text, tau, value = backward(mode)
    p, inputs = reference(head.projection, f_clo, text)
    loss = -torch.log1p(-p).mean() if mode == "paper" else -p.log().mean()
    assert value == pytest.approx(float(loss.detach()), rel=1e-5)
    weights, f, t = inputs
    assert_close([*trained(head.projection), f_clo.grad, text.grad], [*gradients(loss, [*weights, f, t])])
    assert f_id.grad is None and tau.grad is None


@pytest.mark.parametrize("mode", ["intent", "odds"])
def test_adversary_trains_the_identity_feature_alone(mode):
    head, f_id, f_clo, text, tau, value = backward(mode)
    q, inputs = reference(head.projection, f_id, text)
    if mode == "intent":
        push = -torch.log1p(-q).mean()
    else:
        chance = (IDS[:, None] == IDS[None]).float().mean(1)
        push = ((q / (1 - q)).log() - (chance / (1 - chance)).log()).mean().clamp_min(0)
    assert value == pytest.approx(float(push.detach()), rel=1e-5)
    assert_close(f_id.grad, gradients(push, inputs[1])[0])
    others = (head.projection.weight, head.projection.bias, f_clo, text, tau)
    assert all(x.grad is None for x in others)


def test_critic_learns_what_the_identity_feature_says_and_the_feature_answers_it():
    head, f_id, f_clo, text, tau, value = backward("critic")
    q, inputs = reference(head.probe, f_id, text)
    chance = (IDS[:, None] == IDS[None]).float().mean(1)
    push, seek = ((q / (1 - q)).log() - (chance / (1 - chance)).log()).mean().clamp_min(0), -q.log().mean()
    assert value == pytest.approx(float((push + seek).detach()), rel=1e-5)
    assert_close(f_id.grad, torch.autograd.grad(push, inputs[1], retain_graph=True)[0])
    assert_close(trained(head.probe), [*gradients(seek, inputs[0])])
    assert all(x.grad is None for x in (head.projection.weight, f_clo, text, tau))


def test_probe_reads_channels_of_any_scale():
    """A reader of the trained feature can scale a channel up, so the critic does; a single image has no scale."""
    torch.manual_seed(0)
    probe, f = ClothingHead(5, 4, "critic").probe, torch.randn(6, 5)
    assert_close(probe(f), probe(f * torch.tensor([1.0, 0.01, 100.0, 3.0, 1.0]) + 7), atol=2e-2, rtol=0)
    assert probe(f[:1]).shape == (1, 4)


def test_readable_variance_is_that_of_ridge_regression_between_people():
    g = torch.Generator().manual_seed(0)
    ids = torch.arange(12).repeat_interleave(3)
    feature = torch.randn(36, 5, generator=g, dtype=torch.float64)
    text = feature @ torch.randn(5, 4, generator=g, dtype=torch.float64) + torch.randn(
        36, 4, generator=g, dtype=torch.float64
    )
    x, y, first = StandardScaler().fit_transform(feature), text.numpy(), (ids < 6).numpy()
    expected = []
    for fitted in (first, ~first):
        # sklearn divides nothing by the number of channels.
        reader = Ridge(alpha=adversary.RIDGE * 5).fit(x[fitted], y[fitted])
        rest = ((y[~fitted] - reader.predict(x[~fitted])) ** 2).sum()
        expected.append(1 - rest / ((y[~fitted] - y[fitted].mean(0)) ** 2).sum())
    feature.requires_grad_()
    value = adversary.readable_variance(feature, text, ids)
    assert float(value.detach()) == pytest.approx(sum(expected) / 2, rel=1e-5) and float(value.detach()) > 0.3
    # Down the gradient less is read.
    moved = feature.detach() - 3 * torch.autograd.grad(value, feature)[0]
    assert adversary.readable_variance(moved, text, ids) < float(value)


@pytest.mark.parametrize("people", [1, 12])
def test_where_nothing_can_be_read_there_is_nothing_to_train(people):
    """A single person, or noise: a reader is worse than the mean."""
    g = torch.Generator().manual_seed(0)
    feature, text = torch.randn(24, 5, generator=g, requires_grad=True), torch.randn(24, 4, generator=g)
    value = adversary.readable_variance(feature, text, torch.arange(24) % people)
    value.backward()
    assert float(value) == 0 and not feature.grad.any()


def test_each_form_has_its_own_value_where_clothes_can_be_read():
    """Through `task_losses`, on an identity feature that is a linear map of the clothing texts."""
    data, clothing = batch(64), unit(64, 12, seed=5).detach()
    values = []
    for mode in ("paper", "intent", "odds", "critic", "minimax", "ridge"):
        model_config, loss = recommended()
        loss = replace(loss, adversarial_mode=mode)
        features = build(model_config, loss)(data)
        told = replace(features, t_clothing=clothing, f_id=clothing @ torch.eye(12, 16), v_id_hat_clo=clothing)
        values.append(
            float(losses.task_losses(told, data.ids_B, data.clothing_group_B, loss, "reference")["adversarial"])
        )
        off = losses.task_losses(told, data.ids_B, data.clothing_group_B, replace(loss, adversarial=False), "reference")
        assert "adversarial" not in off
    assert len({round(value, 4) for value in values}) == 6 and values[-1] > 0.3, values


def test_odds_pull_where_the_printed_form_does_not():
    """Near chance among 64 texts the gradient of -log(1 - P) is 1/63 of that of -log P, and the log-odds are their sum; below
    chance they leave the feature alone."""
    text, group = unit(64, 8, seed=3).detach(), torch.arange(64)

    def pull(loss, sign=1.0):
        f = (sign * 0.1 * text + unit(64, 8, seed=4).detach()).requires_grad_()
        return torch.autograd.grad(loss(f), f)[0]

    def loss_of(mode):
        return lambda f: adversary.clothing_adversarial(f, f, text, group, 1e3, mode)

    match = pull(lambda f: adversary.clothing_matching(f, text, group, 1e3))
    assert_close(pull(loss_of("intent")), -match / 63, rtol=0.02, atol=1e-9)
    assert_close(pull(loss_of("odds")), -match * 64 / 63, rtol=0.02, atol=1e-9)
    assert not pull(loss_of("odds"), sign=-20.0).any()


def test_minimax_probe_seeks_what_the_identity_feature_hides():
    head, f_id, f_clo, text, tau, value = backward("minimax")
    q, id_inputs = reference(head.probe, f_id, text)
    seek = -q.log().mean()
    assert value == pytest.approx(float(seek.detach()), rel=1e-5)
    *weights, hidden = gradients(seek, [*id_inputs[0], id_inputs[1]])
    assert_close(trained(head.probe), weights)
    assert_close(f_id.grad, -hidden)
    assert all(x.grad is None for x in (head.projection.weight, f_clo, text, tau))
