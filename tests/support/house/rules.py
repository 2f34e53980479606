"""The rules of the house as functions of a checkout: each returns what breaks it, one line each."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.support.house import layout

# A folder of training imports from its left only; those in one entry stand side by side.
FLOW = [
    ("utils",),
    ("config",),
    ("data",),
    ("synthetic",),
    ("models",),
    ("engine",),
    ("evaluation",),
    ("export",),
    ("retrieval", "disentangle", "report"),
    ("describe",),
    ("experiment",),
    ("commands",),
]
COMMANDS = (
    "__init__.py",
    "__main__.py",
    "evaluate.py",
    "gallery.py",
    "prepare.py",
    "search.py",
    "serve.py",
    "train.py",
)
MOST_FILES = 16
MOST_LINES = {".py": 300, ".cpp": 500, ".h": 500, ".inl": 500, ".cu": 500, ".cuh": 500}
REASON = re.compile(r"(#|//|\"\"\").*longer than \d+ lines because")
# With these a docstring says a subordinate clause instead of naming a thing or an action.
WEAK = ("What", "Whether", "How", "Where", "Why", "Of", "That")


def missing_homes(root: Path, op: str, *, cuda: bool) -> list[str]:
    """Files that an operator has to have under its name and are not there; `cuda`: it has CUDA C++ kernels."""
    homes = [f"csrc/{op}/{op}.h", f"csrc/{op}/{op}.cpp", f"csrc/{op}/cpu/dispatch.cpp", f"csrc/{op}/cpu/kernel.inl"]
    parts = ("__init__", "op", "reference", "triton_impl", "triton_kernels")
    homes += [f"bdam_fast/ops/{op}/{part}.py" for part in parts]
    homes += [f"tests/{folder}/test_{op}.py" for folder in ("triton/interpreter", "gpu")]
    homes += [f"tests/ops/{op}/test_values.py", f"tests/support/triton/{op}.py"]
    if cuda:
        homes += [f"csrc/{op}/cuda/{part}" for part in ("binding.cpp", "forward.cuh")]
        homes += [f"tests/cuda_host/test_{op}.py"]
    return [home for home in homes if not (root / home).exists()]


def imports_against_the_flow(root: Path) -> list[str]:
    """Imports of a room of training that stands to the right of the importing one, or in no place at all."""
    rank = {name: i for i, names in enumerate(FLOW) for name in names}
    wrong = []
    for (here, there), paths in layout.arrows(root, "training").items():
        a, b = (Path(room).name if (root / room).is_dir() else "commands" for room in (here, there))
        if "training" in (a, b):
            continue
        if a not in rank or b not in rank or (rank[b] >= rank[a] and not a == b == "commands"):
            wrong += [f"{path} imports {there}" for path in paths]
    return wrong


def packages_beside_the_list(root: Path) -> list[str]:
    """Folders of bdam_fast that the wheel lacks, or packages in its list that are not folders of bdam_fast."""
    project = root / "pyproject.toml"
    listed = re.search(r"^packages = \[(.*?)\]$", project.read_text(), re.M | re.S) if project.exists() else None
    names = set(re.findall(r'"([^"]+)"', listed[1])) if listed else set()
    folders = {str(p.parent).replace("/", ".") for p in layout.files(root, "bdam_fast") if p.name == "__init__.py"}
    return sorted(folders ^ names)


def package_imports_pipeline(root: Path) -> list[str]:
    """Files of the installed package that import the pipeline, its tests or benchmarks."""
    outside = ("training", "tests", "bench")
    return [
        f"{path} imports {name}"
        for path in layout.files(root, "bdam_fast")
        for name in layout.imported_names(root, path)
        if name.split(".")[0] in outside
    ]


def absolute_imports_of_the_package(root: Path) -> list[str]:
    """Files of the installed package that import it by its name: it is loaded under others too."""
    return [
        f"{path} imports {name}"
        for path in layout.files(root, "bdam_fast")
        for name in layout.imported_names(root, path)
        if name.split(".")[0] == "bdam_fast"
    ]


def names_used_twice(root: Path) -> list[str]:
    """File names that stand twice in training."""
    return [f"{name}: {', '.join(map(str, paths))}" for name, paths in layout.repeated_names(root, "training").items()]


def full_folders(root: Path) -> list[str]:
    """Folders with too many Python files."""
    counts = layout.files_per_folder(root)
    return [
        f"{folder}: {count} Python files, at most {MOST_FILES}"
        for folder, count in counts.items()
        if count > MOST_FILES
    ]


def loose_files(root: Path) -> list[str]:
    """Files on top of training that are no commands."""
    return [str(p) for p in layout.files(root, "training") if p.parent == Path("training") and p.name not in COMMANDS]


def helpers_outside_support(root: Path) -> list[str]:
    """Files of tests that hold neither tests nor fixtures and stand outside tests/support."""
    return [
        str(p)
        for p in layout.files(root, "tests")
        if "support" not in p.parts and not p.name.startswith("test_") and p.name not in ("__init__.py", "conftest.py")
    ]


def colliding_objects(root: Path) -> list[str]:
    """Sources that would be compiled to one object file: builds name it after the path without its suffix."""
    homes: dict[Path, list[Path]] = {}
    for path in layout.files(root, "csrc", (".cpp", ".cu")):
        homes.setdefault(path.with_suffix(".o"), []).append(path)
    return [f"{name}: {', '.join(map(str, paths))}" for name, paths in homes.items() if len(paths) > 1]


def weak_docstrings(root: Path) -> list[str]:
    """Docstrings that begin with neither a noun nor a verb."""
    found = []
    for path, node in _nodes(root, *layout.FOLDERS):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            first = (ast.get_docstring(node) or "").partition(" ")[0].strip(".,:")
            if first in WEAK:
                found.append(f"{path}:{getattr(node, 'lineno', 1)} begins with {first}")
    return found


def missing_docstrings(root: Path) -> list[str]:
    """Public functions and classes without a docstring; tests and dataclasses, whose fields have comments, need none."""
    bare = []
    for path in _paths(root, "bdam_fast", "training", "bench"):
        tree = layout.tree(root / path)
        for scope in [tree, *(n for n in tree.body if isinstance(n, ast.ClassDef) and not n.name.startswith("_"))]:
            overridden = ("check", "forward", "backward") if isinstance(scope, ast.ClassDef) else ()
            for node in scope.body:
                named = isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_")
                if named and node.name not in overridden and not ast.get_docstring(node) and not _is_dataclass(node):
                    bare.append(f"{path}:{node.lineno} {node.name}")
    return bare


def long_files(root: Path) -> list[str]:
    """Files with more lines than their kind may have and no reason at the top."""
    found = []
    for path in (*_paths(root, *layout.FOLDERS), *layout.files(root, "csrc", tuple(MOST_LINES))):
        text = (root / path).read_text()
        if text.count("\n") > MOST_LINES[path.suffix] and not REASON.search(text[:2000]):
            found.append(f"{path}: {text.count(chr(10))} lines, at most {MOST_LINES[path.suffix]}")
    return found


def long_functions(root: Path) -> list[str]:
    """Functions of more than 50 lines, docstrings aside, without a reason beside them."""
    found = []
    for path, node in _nodes(root, *layout.FOLDERS):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.end_lineno is not None:
            doc = ast.get_docstring(node, clean=False)
            length = node.end_lineno - node.lineno + 1 - (doc.count("\n") + 1 if doc else 0)
            beside = (root / path).read_text().splitlines()[max(node.lineno - 4, 0) : node.lineno + 3]
            if length > 50 and not REASON.search("\n".join(beside)):
                found.append(f"{path}:{node.lineno} {node.name}: {length} lines, at most 50")
    return found


def _paths(root: Path, *folders: str) -> list[Path]:
    return [path for folder in folders for path in layout.files(root, folder)]


def _nodes(root: Path, *folders: str) -> Iterator[tuple[Path, ast.AST]]:
    for path in _paths(root, *folders):
        for node in ast.walk(layout.tree(root / path)):
            yield path, node


def _is_dataclass(node: ast.AST) -> bool:
    return isinstance(node, ast.ClassDef) and any("dataclass" in ast.unparse(d) for d in node.decorator_list)


RULES: list[Callable[[Path], list[str]]] = [
    imports_against_the_flow,
    packages_beside_the_list,
    package_imports_pipeline,
    absolute_imports_of_the_package,
    names_used_twice,
    full_folders,
    loose_files,
    helpers_outside_support,
    colliding_objects,
    weak_docstrings,
    missing_docstrings,
    long_files,
    long_functions,
]
