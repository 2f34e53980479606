"""The machine of a run: its processor and number of threads, on which the last digits of every float depend, and its memory."""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

# Blocks of so many bytes are mapped one by one (mallopt(3): M_MMAP_THRESHOLD), as glibc does it until it adjusts the number.
MAPPED_FROM, M_MMAP_THRESHOLD = 2**17, -3


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


def available_memory_mb(root: Path = Path("/")) -> tuple[float, str] | None:
    """(MB that this process can still take, what sets this limit): free memory of the machine, or the rest of a limit of its
    control groups (containers, Slurm jobs), version 1 or 2. None where the system does not say.

    root: root of the file system, for tests.
    """
    limits = []
    info = root / "proc/meminfo"
    if info.exists():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("MemAvailable:"):
                limits.append((int(line.split()[1]) / 2**10, "free memory of this machine"))
    for folder in _control_groups(root):
        for limit, usage in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
            bound, used = _number(folder / limit), _number(folder / usage)
            if bound is not None and used is not None:
                # Cached files count as used, and the system takes them back first.
                limits.append(((bound - used + _inactive(folder)) / 2**20, f"limit of the control group {folder}"))
    return min(limits, default=None)


def resident_memory_mb() -> float:
    """Memory of this process now, in MB; 0 where the system does not say."""
    path = Path("/proc/self/status")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return next((int(line.split()[1]) / 2**10 for line in lines if line.startswith("VmRSS:")), 0.0)


def return_freed_memory() -> bool:
    """Makes the C library return every large block to the system when it is freed; False where it has no such setting.

    By default glibc raises the size from which it returns a block to that of the largest one freed so far (up to 32 MB), keeps
    twice as much at the end of each arena, and makes eight arenas for each core: a server of many threads with arrays of 13 MB
    grows for minutes. Not for training, which allocates the same blocks step after step.
    """
    try:
        return bool(ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, MAPPED_FROM))
    except (AttributeError, OSError, TypeError):
        # musl and macOS have no mallopt, Windows no library without a name.
        return False


def _control_groups(root: Path) -> Iterator[Path]:
    """Folders of the memory control groups of this process, the innermost first."""
    listed = root / "proc/self/cgroup"
    for line in listed.read_text(encoding="utf-8").splitlines() if listed.exists() else []:
        _, controllers, name = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        top = root / "sys/fs/cgroup" / ("memory" if controllers else "")
        inner = top / name.strip("/")
        yield from (folder for folder in (inner, *inner.parents) if folder == top or top in folder.parents)


def _number(path: Path) -> int | None:
    """The number in a file; None for "max" and for a missing file."""
    try:
        text = path.read_text(encoding="utf-8").strip()
    except OSError:
        return None
    return int(text) if text.isdecimal() else None


def _inactive(folder: Path) -> int:
    """Bytes of cached files of a control group that are not in use."""
    path = folder / "memory.stat"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    values = dict(line.split()[:2] for line in lines)
    return int(values.get("total_inactive_file", values.get("inactive_file", 0)))


def launched_ranks() -> int:
    """Number of processes that torchrun started to do this command together; 1 without it."""
    together = "RANK" in os.environ and "MASTER_ADDR" in os.environ
    return int(os.environ.get("WORLD_SIZE", "1")) if together else 1
