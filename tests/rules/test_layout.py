"""The rules of the house, as tests: where files live, who imports whom, how long things are, that errors are tested."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from bdam_fast import _native
from tests.support import ROOT

OPS = sorted(p.name for p in (ROOT / "bdam_fast/ops").iterdir() if (p / "op.py").exists())
UPDATES = {"selective_state_update": "selective_scan", "causal_conv1d_update": "causal_conv1d"}
PYTHON = sorted(p for folder in ("bdam_fast", "training", "tests", "bench") for p in (ROOT / folder).rglob("*.py"))
CSRC = sorted(p for p in (ROOT / "csrc").rglob("*") if p.suffix in (".cpp", ".h", ".inl", ".cu", ".cuh"))
# A stage imports from its left only; several names in one entry are one stage.
FLOW = [
    ("fields", "files", "config", "audit"),
    ("recipes", "tables"),
    ("semantics",),
    ("data",),
    ("models",),
    ("losses",),
    ("gradnorm",),
    ("checkpoint",),
    ("step", "journal"),
    ("trainer",),
    ("evaluator", "protocols", "efficiency", "comparison"),
    ("disentangle",),
    ("retrieval",),
    ("summary",),
    ("report",),
]
ENTRY_POINTS = (
    "cli",
    "prepare",
    "describe",
    "train",
    "evaluate",
    "experiment",
    "schedule",
    "runner",
    "process",
    "search",
)
REASON = re.compile(r"(#|//|\"\"\").*longer than \d+ lines because")


def stage_of(module: str) -> str:
    """training.data.loader -> data"""
    return module.split(".")[1]


def imports(path: Path) -> set[str]:
    """Absolute names of all modules that a file imports, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def test_there_are_operators():
    assert OPS == ["causal_conv1d", "hsic", "selective_scan"]


def test_every_public_operator_is_known():
    assert set(OPS) | set(UPDATES) == set(_native.OPERATORS)


@pytest.mark.parametrize("op", UPDATES)
def test_one_name_per_update_in_its_family_s_folders(op):
    """An operator that updates a state in place lives with the operator whose step it is."""
    family = f"csrc/{UPDATES[op]}/{op}"
    homes = [f"{family}.h", f"{family}.cpp", f"{family}_cpu.cpp", f"{family}_cpu.inl"]
    homes += [f"bdam_fast/ops/{UPDATES[op]}/{op}.py", f"tests/test_{op}.py", f"tests/test_{op}_errors.py"]
    homes += [f"{family}_cuda.cu", f"{family}_cuda.cpp", f"bdam_fast/ops/{UPDATES[op]}/{op}_triton.py"]
    assert [h for h in homes if not (ROOT / h).exists()] == []
    assert f"def {op}_reference(" in (ROOT / f"bdam_fast/ops/{UPDATES[op]}/reference.py").read_text()


@pytest.mark.parametrize("op", OPS)
def test_one_name_per_operation_in_every_folder(op):
    homes = [f"csrc/{op}/{op}.h", f"csrc/{op}/{op}.cpp", f"csrc/{op}/{op}_cpu.cpp", f"tests/test_{op}.py"]
    homes += [f"bdam_fast/ops/{op}/{name}.py" for name in ("__init__", "op", "reference", "triton_impl")]
    homes += [f"bench/bench_{op}.py", f"tests/triton_interpreter/test_{op}.py", f"tests/gpu/test_gpu_{op}.py"]
    if op in _native.CUDA_OPERATORS:
        homes += [f"csrc/{op}/{op}_cuda.cpp", f"tests/test_cuda_host_{op}.py"]
    assert [h for h in homes if not (ROOT / h).exists()] == []


def test_package_list_is_exactly_the_folders_of_bdam_fast():
    listed = re.search(r"^packages = \[(.*)\]$", (ROOT / "pyproject.toml").read_text(), re.M)
    assert listed is not None
    folders = {str(p.parent.relative_to(ROOT)).replace("/", ".") for p in (ROOT / "bdam_fast").rglob("__init__.py")}
    assert set(re.findall(r'"([^"]+)"', listed[1])) == folders


def test_bdam_fast_never_imports_the_pipeline():
    assert [
        p for p in PYTHON if "bdam_fast" in p.parts[-4:-1] and any(m.split(".")[0] == "training" for m in imports(p))
    ] == []


def test_stages_import_from_their_left_only():
    rank = {name: i for i, names in enumerate(FLOW) for name in names}
    wrong = []
    for path in (ROOT / "training").rglob("*.py"):
        stage = path.relative_to(ROOT / "training").parts[0].removesuffix(".py")
        if stage == "__init__" or stage in ENTRY_POINTS or path.name == "__main__.py":
            continue
        for module in imports(path):
            if module.startswith("training."):
                other = stage_of(module)
                if other not in rank or rank[other] > rank[stage]:
                    wrong.append(f"{path.relative_to(ROOT)} imports {module}")
    assert wrong == []


def test_every_training_file_has_a_place():
    known = {name for names in FLOW for name in names} | set(ENTRY_POINTS) | {"__init__", "__pycache__"}
    assert {p.name.removesuffix(".py") for p in (ROOT / "training").iterdir()} <= known


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import bdam_fast", ("triton", "training", "bdam_fast._C", "transformers")),
        ("import training.report", ("torch",)),
    ],
)
def test_imports_are_lazy(statement, absent):
    code = f"{statement}; import sys, json; print(json.dumps(sorted(sys.modules)))"
    modules = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert [name for name in absent if f'"{name}"' in modules] == []


def test_files_are_short():
    long = []
    for paths, limit in ((PYTHON, 300), (CSRC, 500)):
        for path in paths:
            text = path.read_text()
            if text.count("\n") > limit and not REASON.search(text[:2000]):
                long.append(f"{path.relative_to(ROOT)}: {text.count(chr(10))} lines, at most {limit}")
    assert long == []


def test_functions_are_short():
    long = []
    for path in PYTHON:
        text = path.read_text()
        lines = text.splitlines()
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.end_lineno is not None:
                length = node.end_lineno - node.lineno + 1
                doc = ast.get_docstring(node, clean=False)
                length -= doc.count("\n") + 1 if doc else 0
                if length > 50 and not REASON.search("\n".join(lines[max(node.lineno - 4, 0) : node.lineno + 3])):
                    long.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.name}: {length} lines, at most 50")
    assert long == []


def test_public_functions_have_docstrings():
    bare = []
    for path in PYTHON:
        if path.relative_to(ROOT).parts[0] == "tests":
            continue
        tree = ast.parse(path.read_text())
        scopes = [tree, *(n for n in tree.body if isinstance(n, ast.ClassDef) and not n.name.startswith("_"))]
        for scope in scopes:
            for node in scope.body:
                named = isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_")
                overrides = (
                    isinstance(scope, ast.ClassDef) and node.name in ("check", "forward", "backward")
                    if named
                    else False
                )
                if named and not overrides and ast.get_docstring(node) is None and not _is_dataclass(node):
                    bare.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.name}")
    assert bare == []


def _is_dataclass(node: ast.AST) -> bool:
    """A dataclass documents itself by its fields' comments."""
    return isinstance(node, ast.ClassDef) and any("dataclass" in ast.unparse(d) for d in node.decorator_list)
