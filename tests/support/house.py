"""`python -m tests.support.house [CHECKOUT ...]`: how a checkout is laid out, in numbers; the rules test reads them too."""

from __future__ import annotations

import ast
import statistics
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

from tests.support import ROOT

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


def imports(root: Path, path: Path) -> Iterator[str]:
    """The modules that a file imports, wherever in the file, as far as they are files of the checkout."""
    for node in ast.walk(ast.parse((root / path).read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
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
        for node in ast.parse((root / path).read_text()).body:
            if isinstance(node, ast.FunctionDef) and node.name in PLUMBING and node.end_lineno is not None:
                lines += node.end_lineno - node.lineno + 1 + len(node.decorator_list)
    return lines


def lines(root: Path, folder: str, *suffixes: str) -> int:
    """Lines of all files of a folder that end in one of `suffixes`."""
    return sum((root / p).read_text().count("\n") for p in files(root, folder, suffixes))


def numbers(root: Path) -> dict[str, str | int]:
    """What is printed, by name."""
    folders = files_per_folder(root)
    fullest, most = folders.most_common(1)[0]
    found: dict[str, str | int] = {
        "Python files a folder, median": f"{statistics.median(folders.values()):g}",
        "Python files in the fullest folder": f"{most} ({fullest})",
    }
    for folder in ("training", "tests", "bench"):
        found[f"loose files on top of {folder}"] = sum(p.parent == Path(folder) for p in files(root, folder))
    found["file names used twice in training"] = len(repeated_names(root, "training"))
    count: Callable[[str], int] = lambda folder: len({r for pair in arrows(root, folder) for r in pair})  # noqa: E731
    for folder in ("training", "bench"):
        found[f"rooms and arrows of {folder}"] = f"{count(folder)} and {len(arrows(root, folder))}"
    found["lines of operator plumbing"] = plumbing(root)
    parts = {name: lines(root, name, ".py") for name in FOLDERS}
    parts["csrc"] = lines(root, "csrc", ".cpp", ".h", ".inl", ".cu", ".cuh")
    found["lines in all"] = sum(parts.values())
    return found | {f"lines of {name}": number for name, number in parts.items()}


if __name__ == "__main__":
    columns = [numbers(Path(argument).resolve()) for argument in sys.argv[1:] or [str(ROOT)]]
    for name in columns[0]:
        print(f"{name:<38}", *(f"{column[name]!s:<36}" for column in columns))
