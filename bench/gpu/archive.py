"""Rows and logs of a run of `make gpu` as one archive, for a machine that is given back afterwards."""

from __future__ import annotations

import os
import tarfile
from pathlib import Path

from bdam_fast import _tuning
from bench.harness import gpu_table

NAME = "bdam_fast-gpu.tar"


def obstacles(folder: Path) -> list[str]:
    """The reason why the archive cannot be written into a folder, which is made if need be; empty if it can."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        return [f"RESULTS must be a folder, or a path where one can be made, got {folder} ({error.strerror})"]
    return [] if os.access(folder, os.W_OK) else [f"RESULTS must be a folder that can be written to, got {folder}"]


def clear(logs: Path) -> None:
    """Removes the logs and outcomes of an earlier run, which would pass for this one's."""
    for path in logs.glob("*") if logs.is_dir() else ():
        if path.suffix in (".log", ".jsonl", ".json"):
            path.unlink()


def pack(logs: Path, rows: Path, into: Path) -> Path:
    """Writes `into`/bdam_fast-gpu.tar with the logs, rows and tables of GPUs, and the tuned sizes, and returns its path.

    It replaces one that is there, and is there as a whole or not at all.
    """
    tables = [path for path in sorted(rows.glob("*.csv")) if gpu_table.has_gpu_rows(path)]
    tables += [path.with_suffix(".md") for path in tables if path.with_suffix(".md").exists()]
    path, half = into / NAME, into / f".{NAME}.part"
    with tarfile.open(half, "w") as archive:
        for file in sorted(logs.glob("*")) if logs.is_dir() else ():
            if file.is_file():
                archive.add(file, f"logs/{file.name}")
        for file in (*tables, *([_tuning.TABLE] if _tuning.TABLE.exists() else [])):
            archive.add(file, f"rows/{file.name}")
    half.replace(path)
    return path
