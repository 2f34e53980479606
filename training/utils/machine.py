"""The machine of a run: its processor and number of threads, on which the last digits of every float depend."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from functools import cache
from pathlib import Path


@cache
def cpu_name() -> str:
    """Name of the processor as reported by the system."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def machine_name(versions: Mapping[str, str]) -> str:
    """Card if there is one, processor and threads in words, from the `gpu`, `cpu` and `threads` of a result's versions; early
    results have no `cpu`."""
    threads = versions.get("threads", "?")
    words = f"{versions.get('cpu', 'unknown CPU')}, {threads} thread{'' if threads == '1' else 's'}"
    return f"{versions['gpu']}, {words}" if "gpu" in versions else words
