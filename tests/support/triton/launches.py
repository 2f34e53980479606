"""Compiles the Triton kernels that a call would launch, for a GPU that need not be here, and reads what came out.

Needs a process in which triton compiles (no TRITON_INTERPRET). A call's launches are caught where Triton would look for
the device: the arguments are specialised by Triton's own rule, so what is compiled is what would run.
"""

import re
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime import jit

from bench.gpu import sass
from tests.support.cuda_host import flow

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"


@dataclass
class Case:
    name: str
    call: Callable[[], Any]  # makes tensors on the CPU and calls an implementation
    budget: dict[str, tuple[int, int]]  # by kernel: registers and bytes of local memory a thread on sm_90, at most
    main: bool = False  # compiled for every target in the default suite, not for sm_90 alone
    slow: bool = False  # not compiled in the default suite
    # By kernel of the scan with 16 states in a thread: instructions for each element-state of 192 steps on sm_90, at most.
    whole: dict[str, float] = field(default_factory=dict)


@dataclass
class Compiled:
    kernel: str
    binary: bytes
    registers: int = 0
    local: int = 0  # bytes of local memory a thread: what was spilled


def launches_of(call: Callable[[], Any], target: GPUTarget, monkeypatch: Any) -> list[tuple[ASTSource, Any]]:
    """Source and options that Triton would compile for each launch of a call; nothing is compiled or run."""
    backend = make_backend(target)
    found: list[tuple[ASTSource, Any]] = []

    def record(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        binder = jit.create_function_from_signature(self.signature, self.params, backend)
        bound, specialization, options = binder(*args, **kwargs)
        options, signature, constexprs, attrs = self._pack_args(backend, kwargs, bound, specialization, options)
        found.append((ASTSource(self, signature, constexprs, attrs), options))

    monkeypatch.setattr(jit.JITFunction, "run", record)
    call()
    return found


def launch_keys(call: Callable[[], Any], target: GPUTarget, monkeypatch: Any) -> set[tuple[str, str]]:
    """(kernel, all that makes Triton compile it anew) of each launch of a call."""
    return {
        (source.fn.__name__, f"{source.signature} {source.constants} {source.attrs} {options}")
        for source, options in launches_of(call, target, monkeypatch)
    }


def compile_call(call: Callable[[], Any], target: GPUTarget, monkeypatch: Any) -> list[Compiled]:
    """Every kernel that the call launches, compiled for the target; nothing is run."""
    return [
        read(source.fn.__name__, triton.compile(source, target=target, options=options.__dict__), target)
        for source, options in launches_of(call, target, monkeypatch)
    ]


def read(name: str, kernel: Any, target: GPUTarget) -> Compiled:
    """A compiled kernel's binary; of a cubin also what cuobjdump, which Triton brings along, says it uses."""
    if target.backend == "hip":
        return Compiled(name, kernel.asm["hsaco"])
    binary = kernel.asm["cubin"]
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary)
        file.flush()
        command = [str(TOOLS / "cuobjdump"), "--dump-resource-usage", file.name]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = {key: int(value) for key, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage)}
    return Compiled(name, binary, found["REG"], found["STACK"] + found["LOCAL"])


def whole_count(binary: bytes) -> float:
    """Instructions of the one kernel of a cubin, a scan's, for each element-state of 192 steps."""
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(binary)
        (kernel,) = sass.kernels(cubin).values()
    return flow.whole_count(kernel, 192)
