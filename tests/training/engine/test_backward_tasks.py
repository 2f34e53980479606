from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from tests.support.models import batch, build, recommended
from tests.training.engine.test_gradnorm import toy
from training.engine.gradnorm import backward_tasks
from training.engine.losses import fixed_losses, task_losses


def heads_of_a_model():
    loss = recommended()[1]
    model, data = build(*recommended()), batch()
    encoded = model.encode(data)
    leaves = encoded.leaves()
    features = model.heads(leaves)
    tasks = task_losses(features, data.ids_B, data.clothing_group_B, loss, "reference")
    return model, encoded, leaves, tasks, fixed_losses(features, replace(loss, gate_weight=3.0))


WEIGHTS = {"info_nce": 0.3, "triplet": 1.7, "clothing": 1.1, "adversarial": 2.0, "decoupling": 0.5, "matching": 0.5}


@pytest.mark.parametrize("measure", [True, False])
def test_backward_tasks_is_one_backward_of_the_weighted_sum(measure):
    model, encoded, leaves, tasks, fixed = heads_of_a_model()
    heads = model.head_parameters()
    expected_norms = {
        k: torch.autograd.grad(v, leaves.image_tokens_BPC, retain_graph=True)[0].norm() for k, v in tasks.items()
    }
    norms = backward_tasks(tasks, WEIGHTS, fixed, leaves.tensors(), heads, measure=measure)
    if measure:
        assert norms == pytest.approx({k: float(v) for k, v in expected_norms.items()})
        # An adversary that finds no more than chance has no gradient.
        assert min(norm for name, norm in norms.items() if name != "adversarial") > 0
    else:
        assert norms == {}
    assert all(p.grad is None for p in model.encoder_parameters())
    encoded.backward(leaves)

    plain, _, plain_leaves, tasks, fixed = heads_of_a_model()
    # The leaves hide the encoders from this graph: heads here, encoders in test_models.
    (sum(WEIGHTS[k] * v for k, v in tasks.items()) + fixed["gate"]).backward()
    for leaf, other in zip(leaves.tensors(), plain_leaves.tensors(), strict=True):
        assert_close(leaf.grad, other.grad)
    for (name, p), q in zip(plain.named_parameters(), model.parameters(), strict=True):
        if p.grad is not None:
            assert_close(q.grad, p.grad, msg=lambda text, name=name: f"{name}: {text}")
    assert all(p.grad is not None for p in model.encoder_parameters())


def test_gradients_add_up_over_calls_and_a_loss_apart_from_the_shared_layer_has_norm_zero():
    theta, head, losses = toy()
    apart = {"apart": head.square().sum(), "c": losses["c"]}
    norms = backward_tasks(apart, {"apart": 2.0, "c": 1.0}, {}, [theta], [head])
    assert norms["apart"] == 0 and norms["c"] > 0
    assert_close(head.grad, 4 * head.detach())
    theta2, head2, losses2 = toy()
    for _ in range(2):
        backward_tasks({"a": toy_a(theta2, head2)}, {"a": 1.0}, {}, [theta2], [head2])
    once = torch.autograd.grad(losses2["a"], theta2)[0]
    assert_close(theta2.grad, 2 * once)


def toy_a(theta, head):
    return torch.tanh(theta @ head).square().sum()


def test_nothing_to_do_without_losses():
    theta = torch.ones(2, requires_grad=True)
    assert backward_tasks({}, {}, {}, [theta], []) == {} and theta.grad is None
