"""`python -m bdam_fast`: what is built, what `auto` takes for each operator and device, and why not the others."""

import platform
import sys

import torch

import bdam_fast
from bdam_fast import _backend, _native

OPERATORS = _native.OPERATORS
DEVICES = ("cpu", "cuda")


def describe() -> str:
    """The whole report as text."""
    lines = [
        f"bdam_fast {bdam_fast.__version__}, torch {torch.__version__}, Python {platform.python_version()}, "
        f"{platform.system()} {platform.machine()}",
        *_extension_lines(),
        "",
        f"{'operator':<24}{'device':<8}{'auto takes':<12}why not the others",
    ]
    for operator in OPERATORS:
        for device_name in DEVICES:
            device = torch.device(device_name)
            chosen = _backend.automatic(operator, device)
            others = [b for b in _backend.BACKENDS[1:] if b != chosen]
            reasons = [f"{b}: {_reason(operator, b, device)}" for b in others]
            lines.append(f"{operator:<24}{device_name:<8}{chosen:<12}{reasons[0]}")
            lines += [" " * 44 + reason for reason in reasons[1:]]
    return "\n".join(lines)


def _extension_lines() -> list[str]:
    if not _native.available():
        return [f"extension: not available ({_native.why_missing()})", f"  remedy: {_native.REMEDY}"]
    module = _native.extension()
    return [
        f"extension: {module.__file__}",
        f"  instruction set: {module.isa()} of {', '.join(module.available_isas())} (BDAM_FAST_ISA chooses less)",
        f"  threads: {torch.get_num_threads()}",
    ]


def _reason(operator: str, backend: str, device: torch.device) -> str:
    refusal = _backend.refusal(operator, backend, device)
    return refusal.removeprefix(f"{operator}: ") or "runs here, but is the slow one; only on request"


if __name__ == "__main__":
    sys.stdout.write(describe() + "\n")
