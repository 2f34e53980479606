"""These tests run Triton's kernels on CPU tensors, under its interpreter; tests/test_triton_interpreter.py starts them.

Whether triton interprets or compiles is settled when it is first imported, so they need a process of their own, with
TRITON_INTERPRET=1. Anywhere else nothing here is collected.
"""

import os

import pytest
import torch

if os.environ.get("TRITON_INTERPRET") != "1":
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture
def poison(monkeypatch):
    """Fresh memory from `torch.empty` and its relatives is NaN (127 in integers), so that what no kernel writes shows."""

    def poisoned(make):
        def wrapper(*args, **kwargs):
            result = make(*args, **kwargs)
            return result.fill_(float("nan") if result.is_floating_point() else 127)

        return wrapper

    for owner, name in (
        (torch, "empty"),
        (torch, "empty_like"),
        (torch, "empty_strided"),
        (torch.Tensor, "new_empty"),
        (torch.Tensor, "new_empty_strided"),
    ):
        monkeypatch.setattr(owner, name, poisoned(getattr(owner, name)))
