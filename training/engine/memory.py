"""Peak memory of a process, and the dataclass of RUN/resources.json that records it."""

from __future__ import annotations

import resource
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class Resources:
    """Contents of resources.json: peak memory of training, MB; of a continued run the largest of its processes. `machines`: the
    processor and threads of each process that trained it (`machine_name`); not in files of early versions."""

    memory_mb: float
    machines: list[str] | None = None


def peak_memory_mb(device: torch.device) -> float:
    """Peak memory in MB (2^20 bytes): allocated on a GPU; on a CPU the largest resident size of this process so far."""
    if device.type == "cuda":
        # Not at the top: a reader of resources.json needs no torch.
        import torch

        return torch.cuda.max_memory_allocated(device) / 2**20
    # Linux counts ru_maxrss in KiB, macOS in bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
