"""The rules of the house: where files live, who imports whom, how long things are. Each rule is shown a tree that breaks it."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from bdam_fast import _native
from tests.ops.test_raw_errors import RAW
from tests.support import ROOT
from tests.support.house import layout, rules
from tests.support.operators.kernels import KERNELS
from tests.support.operators.updates import UPDATES
from tests.support.operators.wrong_arguments import CASES


def test_there_are_five_operators():
    assert layout.operators(ROOT) == sorted(_native.OPERATORS) and len(_native.OPERATORS) == 5


@pytest.mark.parametrize("op", _native.OPERATORS)
def test_one_name_per_operator_in_every_folder(op):
    assert rules.missing_homes(ROOT, op, cuda=op in _native.CUDA_OPERATORS) == []


def test_the_tests_that_operators_share_have_every_operator():
    assert (
        sorted(kernel.name for kernel in (*KERNELS, *UPDATES)) == sorted(RAW) == sorted(CASES) == layout.operators(ROOT)
    )


@pytest.mark.parametrize("rule", rules.RULES, ids=lambda rule: rule.__name__)
def test_rule_holds(rule):
    assert rule(ROOT) == []


# A tree that breaks each rule: files by path.
BROKEN = {
    rules.imports_against_the_flow: {
        "training/data/x.py": "from training.engine import y\n",
        "training/engine/y.py": "",
    },
    rules.packages_beside_the_list: {
        "pyproject.toml": 'packages = [\n  "bdam_fast",\n]\n',
        "bdam_fast/__init__.py": "",
        "bdam_fast/ops/__init__.py": "",
    },
    rules.package_imports_pipeline: {"bdam_fast/x.py": "import training.data\n"},
    rules.absolute_imports_of_the_package: {"bdam_fast/x.py": "from bdam_fast import nn\n"},
    rules.names_used_twice: {"training/data/run.py": "", "training/report/run.py": ""},
    rules.full_folders: {f"tests/ops/test_{i}.py": "" for i in range(17)},
    rules.loose_files: {"training/evaluate.py": "", "training/losses.py": ""},
    rules.helpers_outside_support: {"tests/training/helpers.py": ""},
    rules.colliding_objects: {"csrc/a/cuda/x.cu": "", "csrc/a/cuda/x.cpp": ""},
    rules.weak_docstrings: {"bench/x.py": 'def f():\n    """What it does."""\n'},
    rules.missing_docstrings: {"bench/x.py": "def f():\n    pass\n"},
    rules.long_files: {"csrc/a.h": "\n" * 501, "bench/x.py": "\n" * 300},
    rules.long_functions: {"bench/x.py": "def f():\n" + "    x = 1\n" * 50},
}


@pytest.mark.parametrize("rule", rules.RULES, ids=lambda rule: rule.__name__)
def test_rule_can_fail(rule, tmp_path: Path):
    for name, text in BROKEN[rule].items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert len(rule(tmp_path)) == 1


def test_missing_homes_can_be_found(tmp_path: Path):
    assert f"csrc/{_native.OPERATORS[0]}/cpu/dispatch.cpp" in rules.missing_homes(
        tmp_path, _native.OPERATORS[0], cuda=True
    )


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import bdam_fast", ("triton", "training", "bdam_fast._C", "bdam_fast._C_cuda", "transformers")),
        ("import training.report", ("torch",)),
    ],
)
def test_imports_are_lazy(statement, absent):
    code = f"{statement}; import sys, json; print(json.dumps(sorted(sys.modules)))"
    modules = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert [name for name in absent if re.search(rf'"{re.escape(name)}"', modules)] == []
