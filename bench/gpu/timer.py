"""Timing of kernels on a GPU: events around every call, queued while it sleeps, from a cold L2 cache, variants in turn."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from bench.harness.case import Variant
from bench.harness.machine import Machine
from bench.harness.measure import VariantRun

# Samples per variant, in blocks that alternate between the variants, so that a change of the clock affects all of them.
SAMPLES = 30
BLOCK = 10
WARM_UP = 3
# A peer slower than SLOW_MS a call gets SLOW_SAMPLES: a loop over thousands of steps takes seconds.
SLOW_MS = 50.0
SLOW_SAMPLES = 5
# The device sleeps so many times as long as the host takes to queue a call before each, and at most LONGEST_SLEEP seconds: else
# small kernels wait for the host, and the time between the events is the host's (0.3 ms for 60 us of work, on an H200).
LEAD = 2.0
LONGEST_SLEEP = 0.02
# Cycles a second of the clock that a sleep counts; a slower one sleeps longer.
SLEEP_HERTZ = 2e9
# Writing this much evicts the L2 cache of any card so far (H200: 50 MiB, B200: 126 MiB).
FLUSH_BYTES = 256 * 2**20
COPY_BYTES = 2**30


class HostEvent:
    """Event of the CPU, on which the tests of this file run: its work is done when `record` is called."""

    def record(self) -> None:
        """Records the time."""
        self.seconds = time.perf_counter()

    def elapsed_time(self, later: HostEvent) -> float:
        """Milliseconds until another event."""
        return (later.seconds - self.seconds) * 1e3


class Stopwatch:
    """Times calls on one device, in milliseconds."""

    def __init__(self, device: str = "cuda", flush_bytes: int = FLUSH_BYTES):
        self.device = device
        self._flush = torch.empty(flush_bytes, dtype=torch.int8, device=device)

    def _event(self) -> Any:
        return torch.cuda.Event(enable_timing=True) if self.device == "cuda" else HostEvent()

    def samples(self, call: Callable[[], object], count: int, lead: float = 0.0) -> list[float]:
        """Times `count` calls, each from a cold cache; all are queued before the first time is read.

        Args:
            lead: seconds that the device sleeps before each, in which the host queues the call's kernels.
        """
        pairs = []
        for _ in range(count):
            start, end = self._event(), self._event()
            self._flush.zero_()
            self._sleep(lead)
            start.record()
            call()
            end.record()
            pairs.append((start, end))
        self.wait()
        return [start.elapsed_time(end) for start, end in pairs]

    def _sleep(self, seconds: float) -> None:
        if self.device == "cuda" and seconds > 0:
            torch.cuda._sleep(int(min(seconds, LONGEST_SLEEP) * SLEEP_HERTZ))

    def host_seconds(self, call: Callable[[], object], count: int = WARM_UP) -> float:
        """Seconds in which the host queues a call on an idle device: the fastest of `count`."""
        taken = []
        for _ in range(count):
            self.wait()
            started = time.perf_counter()
            call()
            taken.append(time.perf_counter() - started)
        self.wait()
        return min(taken)

    def wait(self) -> None:
        """Waits until the device has finished."""
        if self.device == "cuda":
            torch.cuda.synchronize()

    def measure(self, runs: Sequence[VariantRun], rounds: int, tick: Callable[[str], None]) -> None:
        """Fills the samples of all variants: warm-up, then `rounds` samples each in alternating blocks."""
        leads = {}
        for run in runs:
            tick(f"warm-up, {run.variant.name}")
            lead = leads[run.variant.name] = LEAD * self.host_seconds(run.variant.call)
            run.estimate = min(self.samples(run.variant.call, WARM_UP, lead))
            slow = run.estimate > SLOW_MS and run.variant.kind != "ours"
            run.rounds = min(rounds, SLOW_SAMPLES) if slow else rounds
        while any(len(run.samples) < run.rounds for run in runs):
            for run in runs:
                missing = min(BLOCK, run.rounds - len(run.samples))
                lead = leads[run.variant.name]
                run.samples += self.samples(run.variant.call, missing, lead) if missing > 0 else []

    def bandwidth(self, size: int = COPY_BYTES) -> float:
        """Bytes per second, read plus written, of a copy far larger than the caches: the fastest of ten."""
        source = torch.ones(size, dtype=torch.int8, device=self.device)
        target = torch.empty_like(source)
        return 2 * size / min(self.samples(lambda: target.copy_(source), 10)) * 1e3

    def matrix_rate(self, size: int = 4096) -> float:
        """float32 operations per second of a square matrix product."""
        a, b = torch.ones(size, size, device=self.device), torch.ones(size, size, device=self.device)
        target = torch.empty_like(a)
        return 2 * size**3 / min(self.samples(lambda: torch.mm(a, b, out=target), 10)) * 1e3


def peak_mib(variant: Variant) -> float:
    """Peak MiB that a call allocates, its result included."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    variant.call()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def gpu_machine(bandwidth: float, exponentials: float, flops: float) -> Machine:
    """Limits of a GPU for `machine.limit_seconds`; of the functions only the exp2 of the recurrence counts.

    Args:
        bandwidth: bytes per second of a copy.
        exponentials: evaluations per second of the exp units of all multiprocessors.
        flops: float32 operations per second of matrix products.
    """
    infinite = float("inf")
    return Machine(bandwidth, flops, 1, {"exp2": exponentials, "softplus": infinite, "sigmoid": infinite})
