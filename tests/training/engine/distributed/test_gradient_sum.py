"""The sum of gradients in buckets, on a group whose other rank has the same gradients: sums are doubled."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from training.engine.distributed.failures import RankLost
from training.engine.distributed.gradient_sum import BucketedSum


class Layers(nn.Module):
    """Four weights in the order of their use, and one that only some passes use."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.ParameterList(torch.full((3,), float(i + 2)) for i in range(4))
        self.spare = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor, spare: bool = False) -> Tensor:
        for weight in self.weights:
            x = x * weight
        return (x * self.spare if spare else x).sum()


class Doubling:
    """Notes what begins, and the gradients that are there at that moment."""

    def __init__(self, model: Layers) -> None:
        self.model, self.begun = model, list[tuple[int, int]]()

    def __call__(self, flat: Tensor) -> Callable[[], None]:
        self.begun.append((len(flat), sum(p.grad is not None for p in self.model.parameters())))
        return lambda: (flat.mul_(2), None)[1]


def step(model: Layers, total: BucketedSum, spare: bool = False) -> list[Tensor | None]:
    """A step of two micro-batches; gradients that the ranks then have."""
    for part in (1.0, 2.0):
        if part == 2.0:
            total.follow()
        model(torch.tensor([part, 2 * part, 3 * part]), spare).backward()
    total.start()
    total.wait()
    found = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    model.zero_grad(set_to_none=True)
    return found


def expected(model: Layers, spare: bool = False) -> list[Tensor | None]:
    model(torch.tensor([3.0, 6.0, 9.0]), spare).backward()
    found = [None if p.grad is None else 2 * p.grad for p in model.parameters()]
    model.zero_grad(set_to_none=True)
    return found


def check(found: list[Tensor | None], right: list[Tensor | None]) -> None:
    assert len(found) == len(right)
    for ours, theirs in zip(found, right, strict=True):
        assert (ours is None and theirs is None) or (ours is not None and theirs is not None and ours.equal(theirs))


def test_buckets_begin_in_the_last_backward_pass_each_when_its_gradients_are_there() -> None:
    model = Layers()
    arrived = list[int]()
    for i, weight in enumerate(model.weights):
        weight.register_post_accumulate_grad_hook(lambda _, i=i: arrived.append(i))
    seen = list[int]()
    total = BucketedSum([*model.weights], 2, lambda flat: (seen.append(len(arrived)), lambda: None)[1])
    step(model, total)
    # 4 gradients of the first micro-batch, then 2 of the last, then all of it.
    assert seen == [6, 8] and arrived == [3, 2, 1, 0] * 2


def test_a_bucket_waits_for_those_before_it() -> None:
    """Every rank begins them in one order, whatever comes first."""
    model = Layers()
    begin = Doubling(model)
    # The reverse order begins with the weight whose gradient comes last.
    total = BucketedSum([*reversed(model.weights)], 2, begin)
    check(step(model, total), expected(model))
    assert begin.begun == [(6, 4), (6, 4)]


def test_no_bucket_waits_for_a_parameter_that_had_no_gradient() -> None:
    model = Layers()
    arrived = list[nn.Parameter]()
    for parameter in model.weights:
        parameter.register_post_accumulate_grad_hook(arrived.append)
    begun = list[tuple[int, int]]()

    def begin(flat: Tensor) -> Callable[[], None]:
        begun.append((len(flat), len(arrived)))
        return lambda: (flat.mul_(2), None)[1]

    total = BucketedSum([*model.weights, model.spare], 2, begin)
    check(step(model, total), expected(model))
    # The spare parameter is in the first bucket: it keeps both until the pass has ended.
    assert begun == [(6, 8), (6, 8)] and total.silent == {model.spare}
    begun.clear()
    arrived.clear()
    check(step(model, total), expected(model))
    assert begun == [(6, 6), (6, 8)]


def test_a_parameter_that_is_used_again_is_added_up_once() -> None:
    model = Layers()
    begin = Doubling(model)
    total = BucketedSum([*model.weights, model.spare], 2, begin)
    for spare in (False, True, True, False):
        check(step(model, total, spare), expected(model, spare))
    lengths = [length for length, _ in begin.begun]
    assert lengths == [6, 6, 6, 6, 3, 9, 6, 6, 6]


def test_without_a_pass_to_follow_everything_begins_at_once() -> None:
    model = Layers()
    begin = Doubling(model)
    total = BucketedSum([*model.weights], 1, begin)
    model(torch.tensor([1.0, 2.0, 3.0])).backward()
    total.start()
    assert begin.begun == [(12, 4)]
    total.wait()
    none = BucketedSum([], 16, begin)
    none.follow()
    none.start()
    none.wait()
    assert begin.begun == [(12, 4)]


def test_a_rank_that_is_gone_ends_the_backward_pass_by_its_error() -> None:
    def begin(flat: Tensor) -> Callable[[], None]:
        raise RankLost("gone")

    model = Layers()
    total = BucketedSum([*model.weights], 4, begin)
    total.follow()
    with pytest.raises(RankLost, match="gone"):
        model(torch.ones(3)).backward()
