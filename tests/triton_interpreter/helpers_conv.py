"""What the interpreter tests of causal_conv1d, its update and hsic share: memory that is NaN before a kernel runs."""

import pytest
import torch

EMPTY = ("empty", "empty_like", "empty_strided")


def poisoned(function):
    """`function`, which allocates, with NaN (or the largest integer) in what it returns."""

    def allocate(*args, **kwargs):
        t = function(*args, **kwargs)
        return t.fill_(float("nan") if t.is_floating_point() else torch.iinfo(t.dtype).max)

    return allocate


@pytest.fixture(autouse=True)
def poison(monkeypatch):
    """Results and workspaces are NaN until they are written."""
    for name in EMPTY:
        monkeypatch.setattr(torch, name, poisoned(getattr(torch, name)))
    monkeypatch.setattr(torch.Tensor, "new_empty", poisoned(torch.Tensor.new_empty))
