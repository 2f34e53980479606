"""Ranks of a command that trains nothing: they encode batches in turn, and the first one does and writes everything else."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout

import torch

from training.engine.device import rank_device, select_device
from training.engine.distributed.group import joined
from training.engine.distributed.ranks import ONE_RANK, Ranks
from training.utils.machine import launched_ranks
from training.utils.preemption import preemption

# Seconds that a rank waits for the slowest one, which may have a slower disk; one that dies is noticed at once.
PATIENCE = 7 * 86400.0


@contextmanager
def shared_work(device: str) -> Iterator[tuple[Ranks, str]]:
    """(the ranks that torchrun started, the name of the device of this one) for a block that all run; without torchrun a single
    rank and `device`. Only the first rank prints in it.

    Raises what `joined` does, ValueError for a device that does not exist.
    """
    if launched_ranks() == 1:
        yield ONE_RANK, device
        return

    def choose(local_rank: int | None) -> torch.device:
        return select_device(rank_device(device, local_rank or 0))

    with preemption() as signals, joined(choose, signals, PATIENCE) as (ranks, place), ExitStack() as quiet:
        if not ranks.first:
            nowhere = quiet.enter_context(open(os.devnull, "w"))
            quiet.enter_context(redirect_stdout(nowhere))
            quiet.enter_context(redirect_stderr(nowhere))
        yield ranks, str(place)
