"""Limits of the machine: copy bandwidth, matrix products, and the elementary functions as our kernels compute them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache

import torch

from bdam_fast import _native
from bench.harness.case import Work

FUNCTIONS = ("exp2", "softplus", "sigmoid")


@dataclass(frozen=True)
class Machine:
    """Measured limits of a machine."""

    # Bytes per second of a large copy, read plus written.
    bandwidth: float
    # float32 operations per second of a large matrix product.
    flops: float
    threads: int
    # Evaluations per second of each function on one thread, from L1; empty when the extension cannot measure them.
    rates: dict[str, float] = field(default_factory=dict)
    # Reason why `rates` is empty.
    reason: str = ""


def best_seconds(call: Callable[[], object], rounds: int = 9) -> float:
    """Seconds of the fastest of several calls after a warm-up: a limit is the undisturbed speed of the machine."""
    call()
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def copy_bandwidth(megabytes: int = 256) -> float:
    """Bytes per second, read plus written, of a tensor copy far larger than the caches."""
    source = torch.ones(megabytes * 2**20 // 4)
    target = torch.empty_like(source)
    return 2 * source.numel() * 4 / best_seconds(lambda: target.copy_(source))


def matrix_rate(size: int = 1024) -> float:
    """float32 operations per second of a square matrix product."""
    a, b = torch.ones(size, size), torch.ones(size, size)
    target = torch.empty(size, size)
    return 2 * size**3 / best_seconds(lambda: torch.mm(a, b, out=target))


def elementary_rates() -> tuple[dict[str, float], str]:
    """Returns (evaluations per second of one thread by function, as the kernels compute them; the reason if empty)."""
    measure_rate = getattr(_native.extension(), "elementary_rate", None)
    if measure_rate is None:
        return {}, "this build of the extension has no elementary_rate, so the speed of its own functions is unknown"
    return {name: float(measure_rate(name)) for name in FUNCTIONS}, ""


@lru_cache(maxsize=1)
def measure_machine() -> Machine:
    """Measures this machine, once per process."""
    rates, reason = elementary_rates()
    return Machine(copy_bandwidth(), matrix_rate(), torch.get_num_threads(), rates, reason)


def bandwidth_seconds(work: Work, machine: Machine) -> float:
    """Seconds to move the bytes alone."""
    return work.bytes / machine.bandwidth


def limit_seconds(work: Work, machine: Machine) -> float | None:
    """Seconds that no implementation on these functions can beat; None where a needed speed is unknown.

    max(bytes / bandwidth, sum of evaluations / (speed of one thread * threads), matrix operations / speed). It assumes
    that the three overlap perfectly and that threads do not slow each other.
    """
    needed = {name: getattr(work, name) for name in FUNCTIONS if getattr(work, name) > 0}
    if needed and not machine.rates:
        return None
    functions = sum(count / (machine.rates[name] * machine.threads) for name, count in needed.items())
    return max(bandwidth_seconds(work, machine), functions, work.flops / machine.flops)
