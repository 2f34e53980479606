"""Prints the numbers of one checkout or of several beside each other."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable
from pathlib import Path

from tests.support import ROOT
from tests.support.house import layout


def numbers(root: Path) -> dict[str, str | int]:
    """All that is printed, by name."""
    folders = layout.files_per_folder(root)
    fullest, most = folders.most_common(1)[0]
    found: dict[str, str | int] = {
        "Python files a folder, median": f"{statistics.median(folders.values()):g}",
        "Python files in the fullest folder": f"{most} ({fullest})",
    }
    for folder in ("training", "tests", "bench"):
        found[f"loose files on top of {folder}"] = sum(p.parent == Path(folder) for p in layout.files(root, folder))
    found["file names used twice in training"] = len(layout.repeated_names(root, "training"))
    count: Callable[[str], int] = lambda folder: len({r for pair in layout.arrows(root, folder) for r in pair})  # noqa: E731
    for folder in ("training", "bench"):
        found[f"rooms and arrows of {folder}"] = f"{count(folder)} and {len(layout.arrows(root, folder))}"
    found["lines of operator plumbing"] = layout.plumbing(root)
    parts = {name: layout.lines(root, name, ".py") for name in layout.FOLDERS}
    parts["csrc"] = layout.lines(root, "csrc", ".cpp", ".h", ".inl", ".cu", ".cuh")
    found["lines in all"] = sum(parts.values())
    return found | {f"lines of {name}": number for name, number in parts.items()}


if __name__ == "__main__":
    columns = [numbers(Path(argument).resolve()) for argument in sys.argv[1:] or [str(ROOT)]]
    for name in columns[0]:
        print(f"{name:<38}", *(f"{column[name]!s:<36}" for column in columns))
