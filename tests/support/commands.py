"""The commands that an experiment starts as processes, in this process instead, which has imported everything."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path


def run_here(
    words: Sequence[str], *, log: Path, tick: Callable[[], None] = lambda: None, threads: int | None = None
) -> None:
    """In place of child_process.run_command."""
    tick()
    importlib.import_module(words[0]).main(words[1:])
