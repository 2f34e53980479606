"""Peak memory of one call, in a process of its own: `python -m bench.harness.memory MODULE VARIANT DIRECTION` prints MiB.

Linux counts resident pages (VmHWM), so that workspaces outside of PyTorch's allocator are included. Inputs exist before the
measurement, and a small problem runs first so that libraries and thread stacks are loaded.
"""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

from bench.harness.results import ROOT

STATUS = Path("/proc/self/status")


def resident_mib(field: str) -> float:
    """VmRSS (current) or VmHWM (peak) of this process, MiB. Raises RuntimeError where the system has neither."""
    for line in STATUS.read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"bench: {STATUS} has no {field}; peak memory is measured on Linux only")


def peak_mib(module: str, variant: str, direction: str) -> float:
    """Measures the peak memory of a variant in a child process, MiB. Raises RuntimeError when it fails."""
    command = [sys.executable, "-m", "bench.harness.memory", module, variant, direction]
    child = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if child.returncode != 0:
        raise RuntimeError(f"bench: peak memory of {variant} failed: {child.stderr.strip().splitlines()[-1]}")
    return float(child.stdout.split()[-1])


def main() -> None:
    """Runs the child: `module.memory_call(variant, direction, small)` returns the call to measure."""
    module, variant, direction = sys.argv[1:]
    prepare = importlib.import_module(module).memory_call
    prepare(variant, direction, True)()
    call = prepare(variant, direction, False)
    before, peak_before = resident_mib("VmRSS"), resident_mib("VmHWM")
    call()
    peak = resident_mib("VmHWM")
    # An earlier peak (loading torch) would hide a smaller one: then the call needs at most this much.
    print(f"{(peak if peak > peak_before else peak_before) - before:.2f}")


if __name__ == "__main__":
    main()
