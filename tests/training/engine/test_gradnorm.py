import math

import pytest
import torch
from torch.testing import assert_close

from tests.support.models import gradnorm_config
from training.config import GradNormConfig
from training.engine.gradnorm import GradNorm, backward_tasks

TASKS = ["a", "b", "c"]


def toy(seed=0):
    """Three losses of one shared tensor, two parameters behind it."""
    g = torch.Generator().manual_seed(seed)
    theta = torch.randn(4, 3, generator=g, dtype=torch.float64).requires_grad_()
    head = torch.randn(3, 2, generator=g, dtype=torch.float64).requires_grad_()
    hidden = torch.tanh(theta @ head)
    return theta, head, {"a": hidden.square().sum(), "b": hidden.exp().mean(), "c": 0.1 * theta.sin().square().sum()}


def printed_update(config, first, s, theta, losses):
    """One update by double backward: eq. (5) with its penalty as a graph over s, targets as constants."""
    s = torch.tensor(s, dtype=torch.float64, requires_grad=True)
    norms = []
    for k, loss in enumerate(losses.values()):
        weighted = torch.autograd.grad(s[k].exp() * loss, theta, create_graph=True)[0]
        norms.append(weighted.norm())
    norms = torch.stack(norms)
    ratio = torch.stack(list(losses.values())).detach() / torch.tensor(first, dtype=torch.float64)
    ratio = ratio / ratio.mean()
    if config.form == "paper":
        objective = config.alpha * (norms - ratio * norms[0].detach()).abs().sum()
    else:
        objective = (norms - norms.detach().mean() * ratio**config.alpha).abs().sum()
    (objective + config.log_penalty * s.square().sum()).backward()
    w = (s - config.lr * s.grad).detach().exp().clamp(*config.clip)
    return w * len(w) / w.sum()


@pytest.mark.parametrize("form", ["recommended", "paper"])
def test_closed_form_equals_double_backward(form):
    config = gradnorm_config(form=form, lr=0.3, log_penalty=0.1)
    balance = GradNorm(TASKS, config)
    first = [1.5, 0.7, 0.2]
    balance.update(dict(zip(TASKS, first, strict=True)), dict.fromkeys(TASKS, 1.0))
    for seed in range(6):
        theta, head, losses = toy(seed)
        s = [math.log(w) for w in balance.weights().values()]
        expected = printed_update(config, first, s, theta, losses)
        theta, head, losses = toy(seed)
        norms = backward_tasks(losses, balance.weights(), {}, [theta], [head])
        balance.update({t: float(v.detach()) for t, v in losses.items()}, norms)
        assert_close(torch.tensor([*balance.weights().values()], dtype=torch.float64), expected)
    assert max(abs(w - 1) for w in balance.weights().values()) > 0.1


@pytest.mark.parametrize("form", ["recommended", "paper"])
def test_weights_sum_to_the_number_of_tasks_and_balance_the_norms(form):
    balance = GradNorm(TASKS, gradnorm_config(form=form))
    losses, norms = dict.fromkeys(TASKS, 1.0), {"a": 1.0, "b": 0.5, "c": 4.0}
    for _ in range(3000):
        balance.update(losses, norms)
        assert sum(balance.weights().values()) == pytest.approx(3)
    weighted = [balance.weights()[t] * norms[t] for t in TASKS]
    assert max(weighted) / min(weighted) < 1.2


def test_adam_balances_norms_of_the_sizes_that_occur():
    """Norms on the visual tokens from 0.0005 to 0.07: 40 updates, a quarter of an epoch of measurements at every step, bring
    the weighted norms within a factor of 2; plain steps of the same rate do not move them."""
    norms, losses = {"a": 0.07, "b": 0.02, "c": 0.002}, dict.fromkeys(TASKS, 1.0)

    def spread(**changes):
        balance = GradNorm(TASKS, gradnorm_config(lr=0.2, **changes))
        for _ in range(40):
            balance.update(losses, norms)
        weighted = [balance.weights()[t] * norms[t] for t in TASKS]
        return max(weighted) / min(weighted)

    assert spread(optimizer="adam") < 2 and spread(optimizer="plain") > 20


def test_adam_by_hand():
    """Against torch.optim.Adam on s, with the gradient of eq. (5) in its closed form, relative to the mean norm."""
    config = gradnorm_config(optimizer="adam", lr=0.05, log_penalty=0.0, clip=(1e-9, 1e9))
    balance = GradNorm(TASKS, config)
    losses = dict.fromkeys(TASKS, 1.0)
    balance.update(losses, losses)
    s = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([s], lr=0.05, betas=(0.9, 0.99), eps=0.0)
    for step in range(6):
        norms = {"a": 1.0 + step, "b": 0.5, "c": 4.0}
        weighted = s.detach().exp() * torch.tensor([*norms.values()], dtype=torch.float64)
        s.grad = (weighted - weighted.mean()).sign() * weighted / weighted.mean()
        adam.step()
        with torch.no_grad():
            s += math.log(3) - s.exp().sum().log()
        balance.update(losses, norms)
        assert [*balance.weights().values()] == pytest.approx(s.detach().exp().tolist())


def test_the_first_task_leads():
    balance = GradNorm(TASKS, gradnorm_config(optimizer="adam", lead=3.0))
    norms = {"a": 0.3, "b": 0.05, "c": 0.01}
    for _ in range(600):
        balance.update(dict.fromkeys(TASKS, 1.0), norms)
    weighted = [balance.weights()[t] * norms[t] for t in TASKS]
    assert [x / sum(weighted) for x in weighted] == pytest.approx([0.6, 0.2, 0.2], abs=0.03)


def test_a_task_that_learns_slowly_gains_weight():
    balance = GradNorm(TASKS, gradnorm_config())
    balance.update(dict.fromkeys(TASKS, 1.0), dict.fromkeys(TASKS, 1.0))
    for _ in range(50):
        balance.update({"a": 0.2, "b": 0.5, "c": 0.9}, dict.fromkeys(TASKS, 1.0))
    w = balance.weights()
    assert w["c"] > w["b"] > w["a"]


def test_weights_are_clipped_before_they_are_renormalised():
    balance = GradNorm(TASKS, gradnorm_config(lr=1e3, clip=(0.5, 2.0)))
    for _ in range(2):
        balance.update(dict.fromkeys(TASKS, 1.0), {"a": 1e6, "b": 1.0, "c": 1.0})
    # Task a is pushed below the lower bound, b and c above the upper one.
    w = balance.weights()
    assert [w["a"], w["b"], w["c"]] == pytest.approx([0.5 * 3 / 4.5, 2 * 3 / 4.5, 2 * 3 / 4.5])


def test_first_losses_are_averaged_while_the_weights_wait():
    balance = GradNorm(TASKS, gradnorm_config(warm_steps=4))
    for value in (1.0, 2.0, 3.0, 6.0):
        balance.update({"a": value, "b": 1.0, "c": 1.0}, {"a": 5.0, "b": 1.0, "c": 1.0})
        assert balance.weights() == dict.fromkeys(TASKS, 1.0)
    assert balance.state_dict()["first_losses"] == {"a": 3.0, "b": 1.0, "c": 1.0}
    balance.update(dict.fromkeys(TASKS, 1.0), {"a": 5.0, "b": 1.0, "c": 1.0})
    assert balance.weights()["a"] < 1


def test_a_loss_that_starts_near_zero_does_not_dominate():
    """HSIC starts at 1e-9 and rises to 1e-4: 100 000 times its start, a tenth of the floor."""
    balance = GradNorm(TASKS, gradnorm_config())
    balance.update({"a": 5.0, "b": 0.8, "c": 1e-9}, dict.fromkeys(TASKS, 1.0))
    for _ in range(200):
        balance.update({"a": 4.0, "b": 0.6, "c": 1e-4}, dict.fromkeys(TASKS, 1.0))
    assert balance.weights()["c"] < balance.weights()["b"]
    zero = GradNorm(TASKS, gradnorm_config())
    for _ in range(10):
        zero.update(dict.fromkeys(TASKS, 0.0), dict.fromkeys(TASKS, 1.0))
    assert zero.weights() == pytest.approx(dict.fromkeys(TASKS, 1.0))
    negative = GradNorm(TASKS, gradnorm_config())
    for _ in range(10):
        negative.update({"a": 1.0, "b": 1.0, "c": -1e-9}, dict.fromkeys(TASKS, 1.0))
    assert all(math.isfinite(w) for w in negative.weights().values())


@pytest.mark.parametrize("form", ["recommended", "paper"])
def test_a_dead_task_leaves_the_others_balanced(form):
    balance, live = GradNorm(["dead", *TASKS], gradnorm_config(form=form)), GradNorm(TASKS, gradnorm_config(form=form))
    for _ in range(500):
        balance.update({"dead": 7.0, "a": 1.0, "b": 1.0, "c": 1.0}, {"dead": 0.0, "a": 1.0, "b": 0.6, "c": 1.6})
        live.update(dict.fromkeys(TASKS, 1.0), {"a": 1.0, "b": 0.6, "c": 1.6})
    w, alone = balance.weights(), live.weights()
    assert 0.5 < w["dead"] < 2 and sum(w.values()) == pytest.approx(4)
    assert w["b"] > w["a"] > w["c"] and alone["b"] > alone["a"] > alone["c"]
    before = balance.weights()
    balance.update(dict.fromkeys(before, 1.0), dict.fromkeys(before, 0.0))
    assert balance.weights() == before


def test_a_huge_norm_does_not_overflow():
    balance = GradNorm(TASKS, gradnorm_config())
    for _ in range(3):
        balance.update(dict.fromkeys(TASKS, 1.0), {"a": 1e30, "b": 1e-30, "c": 1.0})
    assert sum(balance.weights().values()) == pytest.approx(3)


def test_switched_off_the_weights_stay_one():
    balance = GradNorm(TASKS, gradnorm_config(enabled=False))
    for _ in range(5):
        balance.update(dict.fromkeys(TASKS, 1.0), {"a": 9.0, "b": 1.0, "c": 0.1})
    assert balance.weights() == dict.fromkeys(TASKS, 1.0)


def test_bad_numbers_and_other_tasks_are_errors_and_change_nothing():
    balance = GradNorm(TASKS, gradnorm_config())
    good, before = dict.fromkeys(TASKS, 1.0), balance.state_dict()
    with pytest.raises(ValueError, match=r"GradNorm: losses must be finite numbers, got {'b': nan}"):
        balance.update({**good, "b": math.nan}, good)
    with pytest.raises(ValueError, match=r"GradNorm: norms must be finite numbers, got {'c': inf}"):
        balance.update(good, {**good, "c": math.inf})
    with pytest.raises(ValueError, match=r"GradNorm: norms must be of the tasks \['a', 'b', 'c'\], got \['a'\]"):
        balance.update(good, {"a": 1.0})
    assert balance.state_dict() == before


def test_state_continues_where_it_stopped():
    config = gradnorm_config(warm_steps=2, optimizer="adam")
    one = GradNorm(TASKS, config)
    steps = [({"a": 1.0, "b": 2.0 / i, "c": 1.0}, {"a": 1.0, "b": 2.0, "c": 0.5 * i}) for i in range(1, 8)]
    for losses, norms in steps[:4]:
        one.update(losses, norms)
    # A stored mapping may come back in another order; the reference task of the printed form is still the first.
    state = one.state_dict()
    state["log_weights"] = dict(reversed(state["log_weights"].items()))
    two = GradNorm(TASKS, config)
    two.load_state_dict(state)
    for losses, norms in steps[4:]:
        one.update(losses, norms)
        two.update(losses, norms)
    assert one.state_dict() == two.state_dict() and list(two.weights()) == TASKS
    with pytest.raises(
        ValueError, match=r"GradNorm: the stored state is of the tasks \['c', 'b', 'a'\], expected \['a'\]"
    ):
        GradNorm(["a"], GradNormConfig()).load_state_dict(state)


def test_the_sum_of_losses_does_not_train_the_weights_nor_eq_5_the_model():
    balance = GradNorm(TASKS, gradnorm_config())
    theta, head, losses = toy()
    norms = backward_tasks(losses, balance.weights(), {}, [theta], [head])
    assert balance.weights() == dict.fromkeys(TASKS, 1.0)
    collected = theta.grad.clone(), head.grad.clone()
    for _ in range(2):
        balance.update({t: float(v.detach()) for t, v in losses.items()}, norms)
    assert balance.weights() != dict.fromkeys(TASKS, 1.0)
    assert torch.equal(theta.grad, collected[0]) and torch.equal(head.grad, collected[1])


@pytest.mark.parametrize("optimizer", ["adam", "plain"])
def test_a_task_at_rest_keeps_its_weight_and_the_others_balance_below_it(optimizer):
    """An adversary at its bound has no gradient for thousands of steps; its weight must not drift until it wakes up."""
    balance = GradNorm(TASKS, gradnorm_config(optimizer=optimizer, lr=0.05))
    first, *rest = TASKS
    norms = {task: 10.0**i for i, task in enumerate(TASKS)}
    for step in range(2000):
        balance.update(dict.fromkeys(TASKS, 1.0), norms | {first: 0.0 if step > 20 else 1.0})
        if step == 20:
            before = balance.weights()[first]
    weights = balance.weights()
    assert weights[first] == pytest.approx(before) and sum(weights.values()) == pytest.approx(len(TASKS))
    spread = [weights[task] * norms[task] for task in rest]
    assert max(spread) < 2 * min(spread) or optimizer == "plain"
