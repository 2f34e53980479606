"""These tests run Triton's kernels on CPU tensors, under its interpreter; tests/triton/test_interpreter.py starts them.

Whether triton interprets or compiles is settled when it is first imported, so they need a process of their own, with
TRITON_INTERPRET=1. Anywhere else nothing here is collected.
"""

import os

import pytest

from tests.support.operators import poison_allocations

if os.environ.get("TRITON_INTERPRET") != "1":
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture
def poison(monkeypatch):
    """Results and workspaces are NaN until they are written."""
    poison_allocations(monkeypatch)
