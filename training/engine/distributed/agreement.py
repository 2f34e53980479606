"""Facts that all ranks need to have in common, and the words for those that differ."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

ROOT = Path(__file__).parents[3]
# Packages whose files make up the version of this project.
PACKAGES = ("bdam_fast", "training")


def versions() -> dict[str, str]:
    """Versions of what computes: this project by a digest of its files, since a checkout has no number of its own."""
    return {
        "version of Python": ".".join(platform.python_version_tuple()[:2]),
        "version of torch": torch.__version__,
        "version of numpy": np.__version__,
        "version of transformers": transformers.__version__,
        "version of this project": _digest_of_code(),
    }


def differences(ours: Any, theirs: Any, name: str = "") -> list[str]:
    """Words for each value that differs, by its dotted name: ours, then theirs."""
    if isinstance(ours, Mapping) and isinstance(theirs, Mapping):
        keys = dict.fromkeys([*ours, *theirs])
        return [
            text for key in keys for text in differences(ours.get(key), theirs.get(key), f"{name}.{key}".lstrip("."))
        ]
    return [] if ours == theirs else [f"{name} ({theirs!r:.80} in place of {ours!r:.80})"]


@cache
def _digest_of_code() -> str:
    digest = hashlib.sha256()
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*")):
            if path.suffix in (".py", ".so"):
                digest.update(f"{path.relative_to(ROOT)}\0".encode())
                digest.update(path.read_bytes())
    return digest.hexdigest()[:12]
