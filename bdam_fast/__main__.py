"""`python -m bdam_fast`: what is built, what `auto` takes on each device, why not the others, and what has run where."""

import platform
import sys

import torch

from . import __version__, _backend, _native

OPERATORS = _native.OPERATORS
# Device, backend, and what is known of the kernels there. The README's table is this one.
SUPPORT = (
    ("CPU, x86-64", "cpu", "run with AVX-512, and on emulated processors with AVX2 and without AVX; GCC and Clang"),
    ("CPU, aarch64", "cpu", "run under emulation (Linux, NEON); on no such processor yet"),
    ("CPU, macOS arm64", "cpu", "compiled by Clang for macOS 11, without Apple's libraries; not run yet"),
    ("CPU, others", "cpu", "portable vectors; not run yet"),
    (
        "NVIDIA GPU",
        "cuda",
        "run on an H200, all tests; compiled by nvcc 13.0 for sm_80 to sm_120; run on a CPU, under an emulation of CUDA",
    ),
    (
        "NVIDIA GPU",
        "triton",
        "run on an H200, a sample of the tests; compiled for sm_80, 90 and 100; run under Triton's interpreter",
    ),
    ("AMD GPU", "triton", "not run on a GPU yet; compiled by Triton for gfx942"),
)


def describe() -> str:
    """The whole report as text."""
    lines = [
        f"bdam_fast {__version__}, torch {torch.__version__}, Python {platform.python_version()}, "
        f"{platform.system()} {platform.machine()}",
        *_extension_lines(),
    ]
    for name in _devices():
        lines += ["", f"tensors on {name}", *_device_lines(torch.device(name))]
    lines += ["", "what has run where, up to this version"]
    lines += [f"  {device + ', ' + backend:<22}{state}" for device, backend, state in SUPPORT]
    return "\n".join(lines)


def _extension_lines() -> list[str]:
    if not _native.available():
        return [f"extension: not available ({_native.why_missing()})", f"  remedy: {_native.REMEDY}"]
    module = _native.extension()
    return [
        f"extension: {module.__file__}",
        f"  instruction set: {module.isa()} of {', '.join(module.available_isas())} (BDAM_FAST_ISA chooses less)",
        f"  threads: {torch.get_num_threads()}",
        *_cuda_lines(),
    ]


def _cuda_lines() -> list[str]:
    if not _native.cuda_available():
        found, reason = _native.cuda_library(), _native._attempt_cuda()[1]
        return [f"CUDA kernels: {found} is not used: {reason}"] if found else []
    built = _backend.architectures() or "unknown architectures"
    return [f"CUDA kernels: {_native.cuda_extension().__file__}", f"  compute capabilities: {built}"]


def _devices() -> list[str]:
    """Names of the devices of the report: GPUs by number where there are several, which may differ."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return ["cpu", *([f"cuda:{i}" for i in range(count)] if count > 1 else ["cuda"])]


def _device_lines(device: torch.device) -> list[str]:
    """For each backend the operators that `auto` gives it, then those it gives to others, each reason once."""
    lines = []
    for backend in _backend.BACKENDS[1:]:
        groups: dict[str, list[str]] = {}
        for operator in OPERATORS:
            groups.setdefault(_reason(operator, backend, device), []).append(operator)
        for reason, operators in groups.items():
            whom = "all operators" if len(operators) == len(OPERATORS) else ", ".join(operators)
            lines.append(f"  {backend:<11}{whom}: {reason}")
    return lines


def _reason(operator: str, backend: str, device: torch.device) -> str:
    if _backend.automatic(operator, device) == backend:
        here = device.type == "cpu" or torch.cuda.is_available()
        return "auto takes it" if here else "auto would take it, but there is no GPU here"
    refusal = _backend.refusal(operator, backend, device)
    if refusal:
        return "no, " + refusal.removeprefix(f"{operator}: ").removeprefix("bdam_fast: ")
    slow = ", but is the slow one" if backend == "reference" else ""
    return f"runs here{slow}; only on request"


if __name__ == "__main__":
    sys.stdout.write(describe() + "\n")
