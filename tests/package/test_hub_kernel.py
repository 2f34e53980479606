"""The package as a kernel of the Hugging Face Hub: laid out, and loaded by `kernels` beside an installed bdam_fast."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import ROOT
from tests.support.house import hub_kernel

needs_kernels = pytest.mark.skipif(importlib.util.find_spec("kernels") is None, reason="needs `pip install kernels`")


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}", "TRITON_INTERPRET": "1"}
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, env=environment | {"HF_HUB_OFFLINE": "1"}, capture_output=True, text=True)


@needs_kernels
def test_two_versions_are_loaded_beside_the_package(tmp_path):
    """Triton's kernels, forward and backward, in a namespace for each copy."""
    first, _ = hub_kernel.lay_out(tmp_path / "first")
    package = Path(shutil.copytree(ROOT / "bdam_fast", tmp_path / "bdam_fast"))
    (package / "flops.py").write_text((package / "flops.py").read_text() + "\n# another version\n")
    second, _ = hub_kernel.lay_out(tmp_path / "second", package)
    found = run(ROOT / "tests/support/house/hub_check.py", first, second)
    assert found.returncode == 0, found.stderr
    one, other = found.stdout.split()
    assert one != other and one.startswith("bdam_fast_cuda_") and other.endswith("_triton")


@needs_kernels
def test_the_folders_are_variants_that_kernels_knows(tmp_path):
    hub_kernel.lay_out(tmp_path)
    code = "from kernels.variants import get_variants_local; from pathlib import Path; "
    code += f"print(*sorted(v.arch.backend_name for v in get_variants_local(Path({str(tmp_path / 'build')!r}))))"
    assert run("-c", code).stdout.split() == ["cuda", "rocm"]


def test_the_folder_of_older_loaders_hands_on_the_same_functions(tmp_path):
    variant, _ = hub_kernel.lay_out(tmp_path)
    identity = json.loads((variant / "metadata.json").read_text())["id"]
    code = f"import sys; sys.path.insert(0, {str(variant)!r}); import bdam_fast as older; "
    code += f"kernel = sys.modules[{identity!r}]; print(older.__file__, older.hsic is kernel.hsic, kernel.__file__)"
    path, same, own = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert (Path(path), same, Path(own)) == (variant / "bdam_fast/__init__.py", "True", variant / "__init__.py")


def test_loading_imports_nothing_but_torch_and_the_standard_library(tmp_path):
    """A rule of the Hub; what torch itself brings is allowed."""
    variant, _ = hub_kernel.lay_out(tmp_path)
    code = "import sys, torch, torch.utils.flop_counter; before = set(sys.modules); "
    code += f"sys.path.insert(0, {str(variant)!r}); import bdam_fast; "
    code += "print(*sorted({n.partition('.')[0] for n in set(sys.modules) - before} - set(sys.stdlib_module_names)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert [n for n in found if not n.startswith("bdam_fast")] == []


def test_a_package_without_its_namespace_is_an_error(tmp_path):
    package = tmp_path / "bdam_fast"
    package.mkdir()
    (package / "_namespace.py").write_text("NAMESPACES = 1\n")
    with pytest.raises(ValueError, match="_namespace.py must hold one line NAMESPACE, got 0"):
        hub_kernel.lay_out(tmp_path / "out", package)
