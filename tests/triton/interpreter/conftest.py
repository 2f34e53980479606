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
def programs_from_the_last(monkeypatch):
    """Called once, it has every later launch run its programs from the last to the first.

    The interpreter runs them one after another, a GPU in any order: no two of them may write the same place.
    """
    from triton.runtime import interpreter

    builder = interpreter.interpreter_builder
    set_index = builder.set_grid_idx

    def mirrored(*place: int) -> None:
        set_index(*(size - 1 - at for size, at in zip(builder.grid_dim, place, strict=True)))

    return lambda: monkeypatch.setattr(builder, "set_grid_idx", mirrored)


@pytest.fixture
def poison(monkeypatch):
    """Results and workspaces are NaN until they are written."""
    poison_allocations(monkeypatch)
