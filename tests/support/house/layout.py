"""Folders, files, names and imports of a checkout."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

FOLDERS = ("bdam_fast", "training", "bench", "tests")
# Names that Python prescribes.
PRESCRIBED = ("__init__.py", "__main__.py", "conftest.py")
# Functions that every operator's module once wrote for itself.
PLUMBING = ("_call", "_autograd_kernel", "_raw", "_fakes", "_ready")


@cache
def files(root: Path, folder: str, suffixes: tuple[str, ...] = (".py",)) -> list[Path]:
    """The files of a folder of the checkout, relative to the checkout, without what was built or cached."""
    found = (p.relative_to(root) for p in sorted((root / folder).rglob("*")) if p.suffix in suffixes and p.is_file())
    return [p for p in found if "__pycache__" not in p.parts]


def files_per_folder(root: Path) -> Counter[Path]:
    """The number of Python files of each folder that holds any."""
    return Counter(p.parent for folder in FOLDERS for p in files(root, folder))


def repeated_names(root: Path, folder: str) -> dict[str, list[Path]]:
    """File names that stand more than once below a folder."""
    homes: dict[str, list[Path]] = {}
    for path in files(root, folder):
        if path.name not in PRESCRIBED:
            homes.setdefault(path.name, []).append(path)
    return {name: paths for name, paths in homes.items() if len(paths) > 1}


@cache
def tree(path: Path) -> ast.Module:
    """The parsed file."""
    return ast.parse(path.read_text())


def operators(root: Path) -> list[str]:
    """Folders of bdam_fast/ops that hold an operator."""
    return sorted(p.name for p in (root / "bdam_fast/ops").iterdir() if (p / "op.py").exists())


def imported_names(root: Path, path: Path) -> Iterator[str]:
    """Absolute names of all that a file imports, wherever in the file."""
    for node in ast.walk(tree(root / path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def imports(root: Path, path: Path) -> Iterator[str]:
    """The modules of the checkout that a file imports."""
    for name in imported_names(root, path):
        if (found := _module(root, name)) is not None:
            yield found


@cache
def _module(root: Path, name: str) -> str | None:
    """`name`, or the module that it is a name of; None for what is no file of the checkout."""
    for module in (name, name.rpartition(".")[0]):
        base = root / module.replace(".", "/")
        if module and (base.with_suffix(".py").is_file() or (base / "__init__.py").is_file()):
            return module
    return None


def room(root: Path, module: str) -> str:
    """The folder of a module: `training.data.images.cache` lives in `training/data`; a loose file is a room of its own."""
    parts = module.split(".")
    is_room = len(parts) > 2 or (root / Path(*parts)).is_dir()
    return "/".join(parts[:2]) if len(parts) > 1 and is_room else "/".join(parts)


def arrows(root: Path, folder: str) -> dict[tuple[str, str], list[str]]:
    """Imports between the rooms of a folder: (from, to) and the files that draw the arrow."""
    found: dict[tuple[str, str], list[str]] = {}
    for path in files(root, folder):
        here = room(root, ".".join(path.with_suffix("").parts).removesuffix(".__init__"))
        for module in imports(root, path):
            there = room(root, module)
            if module.split(".")[0] == folder and there != here:
                found.setdefault((here, there), []).append(str(path))
    return found


def plumbing(root: Path) -> int:
    """Lines of the functions in PLUMBING below bdam_fast/ops."""
    lines = 0
    for path in files(root, "bdam_fast/ops"):
        for node in tree(root / path).body:
            if isinstance(node, ast.FunctionDef) and node.name in PLUMBING and node.end_lineno is not None:
                lines += node.end_lineno - node.lineno + 1 + len(node.decorator_list)
    return lines


def lines(root: Path, folder: str, *suffixes: str) -> int:
    """Lines of all files of a folder that end in one of `suffixes`."""
    return sum((root / p).read_text().count("\n") for p in files(root, folder, suffixes))
