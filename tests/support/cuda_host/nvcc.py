"""Compiles the CUDA sources with nvcc, for no GPU in particular, and reads what the compiler says about each kernel.

`python -m tests.support.cuda_host.nvcc` writes the budget of today's kernels (tests/cuda_host/budget.json), which
tests/cuda_host/test_compile.py holds later ones to.
"""

import json
import math
import re
import shutil
import subprocess
import tempfile
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import torch.utils.cpp_extension as cpp_extension

from bench.gpu import sass
from tests.support.cuda_host import build, flow

BUDGET = build.ROOT / "tests/cuda_host/budget.json"
BUDGET_ARCH = "90"
CACHE = build.ROOT / "build" / "cubin"
FLAGS = ["-std=c++17", "-O3", *cpp_extension.COMMON_NVCC_FLAGS, "-Xptxas", "-v", "-Werror", "all-warnings"]
ENTRY = re.compile(r"Compiling entry function '(\w+)' for")
STACK = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
USED = re.compile(r"Used (\d+) registers(?:.*?(\d+) bytes smem)?")


@dataclass(frozen=True)
class Resources:
    """Needs of one kernel: per thread registers and bytes of spilled registers, per block bytes of static memory."""

    registers: int
    spill: int
    shared: int


def sources() -> list[Path]:
    """Every file of device code below csrc/."""
    return build.cuda_sources(suffixes=[".cu"])


def nvcc() -> str | None:
    """The compiler's path, or None."""
    home = cpp_extension.CUDA_HOME
    found = shutil.which("nvcc") or shutil.which("nvcc", path=f"{home}/bin")
    return found


@cache
def compile_cubin(source: Path, arch: str) -> tuple[Path, dict[str, Resources]]:
    """The compiled file for sm_`arch`, cached under build/, and the resources by the kernels' short names.

    Raises:
        RuntimeError: nvcc is not there, or the source does not compile without a warning.
    """
    compiler = nvcc()
    if compiler is None:
        raise RuntimeError("nvcc was not found; install the CUDA toolkit or set CUDA_HOME")
    headers = sorted(p for p in (build.ROOT / "csrc").rglob("*") if p.suffix in (".h", ".cuh"))
    key = build.digest([p.read_bytes() for p in (source, *headers)] + [arch.encode(), *(f.encode() for f in FLAGS)])
    target, log = (CACHE / f"{source.stem}-{arch}-{key}{suffix}" for suffix in (".cubin", ".txt"))
    if not log.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as folder:
            output = Path(folder) / "out.cubin"
            command = [compiler, "-cubin", f"-arch=sm_{arch}", *FLAGS, f"-I{build.ROOT / 'csrc'}", source, "-o", output]
            run = subprocess.run(command, capture_output=True, text=True)
            if run.returncode != 0:
                raise RuntimeError(f"nvcc does not compile {source.name} for sm_{arch}:\n{run.stderr}")
            output.replace(target)
            (Path(folder) / "log").write_text(run.stderr)
            (Path(folder) / "log").replace(log)
    return target, read_resources(log.read_text())


def read_resources(text: str) -> dict[str, Resources]:
    """The output of `ptxas -v` by kernel."""
    parts = ENTRY.split(text)[1:]
    names = sass.short_names(parts[::2])
    found = {}
    for name, part in zip(names, parts[1::2], strict=True):
        stack, used = STACK.search(part), USED.search(part)
        assert stack is not None and used is not None, part
        found[name] = Resources(int(used[1]), int(stack[2]) + int(stack[3]), int(used[2] or 0))
    return found


def measure() -> dict[str, dict[str, float | None]]:
    """Every kernel: its resources, and how many instructions its main loop takes for one exp2.

    In the convolution an exp2 is one element (its SiLU), in the scan one state of one element. Of the usual scans also the
    instructions of the whole kernel for each element-state, by length (`whole_77`).
    """
    rows: dict[str, dict[str, float | None]] = {}
    for source in sources():
        cubin, resources = compile_cubin(source, BUDGET_ARCH)
        for name, kernel in sass.kernels(cubin).items():
            path = kernel.hot_path("MUFU.EX2")
            ratio = path.total() / path["MUFU.EX2"] if path else None
            rows[name] = {**asdict(resources[name]), "instructions_per_exp2": ratio, **flow.scan_counts(name, kernel)}
    return dict(sorted(rows.items()))


def spill_budget(row: dict[str, float | None], arch: str) -> float:
    """Bytes that a kernel may spill. The scan's use every register they may have: other architectures spill elsewhere."""
    allowed = row["spill"] if arch == BUDGET_ARCH else row.get("spill_elsewhere", row["spill"])
    assert allowed is not None
    return allowed


def write_budget() -> None:
    """Today's numbers, rounded up: registers to a multiple of 8 (they are allocated so), instructions by 5 %.

    `spill_elsewhere`, the most that the other architectures spill where that is more, is kept: edit it by hand.
    """
    rows, before = measure(), json.loads(BUDGET.read_text()) if BUDGET.exists() else {}
    for row in rows.values():
        registers, ratio = row["registers"], row["instructions_per_exp2"]
        assert registers is not None
        row["registers"] = -(-int(registers) // 8) * 8
        row["instructions_per_exp2"] = None if ratio is None else math.ceil(ratio * 10.5) / 10
    for name in rows.keys() & before.keys():
        rows[name].update({k: v for k, v in before[name].items() if k == "spill_elsewhere"})
    lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(row)}" for name, row in rows.items())
    BUDGET.write_text("{\n" + lines + "\n}\n")


if __name__ == "__main__":
    write_budget()
