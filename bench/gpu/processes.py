"""Processes of the GPU tests: which operators by which backends, in how many processes each, and their costs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

# Of all steps of `make gpu`, counted where there is no GPU; the file says how.
COSTS: dict[str, Any] = json.loads(Path(__file__).with_name("costs.json").read_text())
OPERATORS = ("selective_scan", "selective_state_update", "causal_conv1d", "causal_conv1d_update", "hsic")
BACKENDS = {op: ("triton",) if op == "hsic" else ("cuda", "triton") for op in OPERATORS}
# Operators that the benchmark measures, with their backends.
MEASURED = {op: list(backends) for op, backends in BACKENDS.items() if not op.endswith("_update")}
# Triton compiles on one core, and so do the references run.
PROCESSES = {(op, backend): 1 for op in OPERATORS for backend in BACKENDS[op]}
PROCESSES |= {("selective_scan", "triton"): 10, ("causal_conv1d", "triton"): 2, ("hsic", "triton"): 3}
PROCESSES |= {("selective_scan", "cuda"): 3, ("causal_conv1d", "cuda"): 2}


def name_of(op: str, backend: str, number: int) -> str:
    """Name of the step that is one process of an operator's tests."""
    return f"test-{op}-{backend}-{number}"


def names_of(backend: str) -> tuple[str, ...]:
    """Names of all steps that test a backend."""
    return tuple(name_of(op, b, n) for (op, b), count in PROCESSES.items() if b == backend for n in range(1, count + 1))
