"""Facts of a run as rows of text: configuration, operator calls, and the command that repeats the run."""

from __future__ import annotations

import shlex
from typing import Any

from training.config import to_dict
from training.config.recipes import get_recipe
from training.evaluation.result import flatten
from training.utils.io import encode


def show(value: Any) -> str:
    """A value as text for a table: numbers with few digits, lists separated by spaces."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, int) and abs(value) >= 10_000:
        return f"{value:,}"
    if isinstance(value, (list, tuple)):
        return " ".join(map(show, value))
    return str(value)


def rows(values: Any) -> list[tuple[str, str]]:
    """(name, text) for each leaf of a dict or dataclass; empty for None."""
    return [(key, show(value)) for key, value in flatten(encode(values) or {}).items()]


def call_rows(calls: dict[str, int]) -> list[dict[str, Any]]:
    """{"op", "backend", "forward", "backward"} for each operator and backend of counts {"op.backend.direction": n}."""
    table: dict[tuple[str, str], dict[str, Any]] = {}
    for key, count in sorted(calls.items()):
        op, backend, direction = (key.split(".") + ["", ""])[:3]
        row = table.setdefault((op, backend), {"op": op, "backend": backend, "forward": 0, "backward": 0})
        row[direction] = count
    return list(table.values())


def repeat_command(config: dict[str, Any], out: str) -> str | None:
    """Shell commands that train this configuration into `out` and evaluate it; None for an unknown recipe.

    Options of `training.train` are the dotted names of the fields; only those that differ from the recipe are given.
    """
    try:
        base = flatten(to_dict(get_recipe(config["recipe"])))
    except ValueError:
        return None
    words = ["python", "-m", "training.train", config["recipe"], "--out", out]
    for key, value in flatten(config).items():
        if key != "recipe" and base.get(key) != value:
            words += _option(key.replace("_", "-"), value)
    return f"{shlex.join(words)}\n{shlex.join(['python', '-m', 'training.evaluate', out])}"


def _option(name: str, value: Any) -> list[str]:
    if isinstance(value, bool):
        head, _, last = name.rpartition(".")
        return ["--" + ".".join(filter(None, (head, last if value else f"no-{last}")))]
    return [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
