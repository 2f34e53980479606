"""Predicted times of selective_scan on a GPU, from instruction counts: `python -m bench.gpu.roofline [--gpu H200]`.

A prediction, never a result: it needs no GPU and is written to no CSV. A kernel's floor is the largest of the times to issue its
instructions, to compute its exponentials on the exp units, and to move its bytes at the speed of a copy (bench/gpu/counts.json
has the counts and their explanation). Real kernels reach 0.6 to 0.8 of such a floor.

B batch, D channels, L length, N states.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.gpu.cases import BF16, STREAMS
from bench.gpu.timer import gpu_machine
from bench.harness.gpu_table import markdown
from bench.harness.machine import limit_seconds
from bench.ops.selective_scan import work

COUNTS = Path(__file__).with_name("counts.json")
Shape = tuple[int, int, int, int]
# Those of the benchmark in bfloat16, each once, and two lengths of vision models; one step alone has a kernel of its own.
SHAPES: list[Shape] = [(*shape, 16) for _, shape, _, dtype in STREAMS if dtype == BF16 and shape[2] > 1]
SHAPES = sorted({*SHAPES, *((64, 1536, length, 16) for length in (256, 512))}, key=lambda s: (s[2], s))
DIRECTIONS = ("forward", "forward+backward")
WARP = 32
ITEM_BYTES = 2
# An exp unit takes a warp's 32 lanes in 8 cycles (16 results a clock and multiprocessor, which has 4 schedulers).
EXP_CYCLES = 8
SCHEDULERS = 4


@dataclass(frozen=True)
class Gpu:
    """Constants of a card."""

    multiprocessors: int
    # Clock under load, not the highest one.
    hertz: float
    # Bytes per second of a copy, read plus written.
    bandwidth: float

    @property
    def cycles(self) -> float:
        """Scheduler cycles per second of the whole card."""
        return self.multiprocessors * SCHEDULERS * self.hertz


# The H200's copy and clock were measured; the H100's are 0.9 of its data sheet's copy and the H200's clock.
GPUS = {"H200": Gpu(132, 1.98e9, 4.22e12), "H100": Gpu(132, 1.98e9, 3.0e12)}


@dataclass(frozen=True)
class Floor:
    """Smallest time of one or more kernels, and its limiter."""

    seconds: float
    limiter: str

    def __add__(self, other: Floor) -> Floor:
        names = dict.fromkeys([*self.limiter.split(" + "), *other.limiter.split(" + ")])
        return Floor(self.seconds + other.seconds, " + ".join(names))


def read_counts(path: Path = COUNTS) -> dict[str, Any]:
    """Reads the committed counts."""
    return json.loads(path.read_text())


def round_up(value: int, unit: int) -> int:
    """`value` rounded up to a multiple of `unit`."""
    return -(-value // unit) * unit


def floor(kernel: Mapping[str, Any], shape: Shape, saving: bool, gpu: Gpu) -> Floor | None:
    """Floor of one kernel; None where its instructions were not counted at this length."""
    batch, channels, length, states = shape
    found = steps_and_issue(kernel, length)
    if found is None:
        return None
    steps, issue = found
    warps = batch * channels * steps * states / WARP
    elements = batch * channels * length
    moved = elements * (ITEM_BYTES * kernel["streams"] + (kernel.get("saved", 0) if saving else 0))
    moved += 2 * ITEM_BYTES * batch * length * states
    times = {
        "issue": issue * warps / gpu.cycles,
        "exp unit": kernel["mufu"] * warps / gpu.cycles,
        "bytes": moved / gpu.bandwidth,
    }
    limiter = max(times, key=lambda name: times[name])
    return Floor(times[limiter], limiter)


def steps_and_issue(kernel: Mapping[str, Any], length: int) -> tuple[int, float] | None:
    """Returns (steps computed at a length, padding included; instructions for each), None where not counted."""
    if "chunks" not in kernel:
        steps, issue = round_up(length, kernel["tile"]), kernel["issue"]
    else:
        row = next(c for c in kernel["chunks"] if c["up_to"] is None or length <= c["up_to"])
        steps = round_up(length, row["chunk"])
        issue = row["even" if steps == length else "ragged"]
    whole = kernel.get("whole", {}).get(str(length))
    if whole is not None:
        issue = whole * length / steps
    return None if issue is None else (steps, issue)


def predict(kernels: Mapping[str, Any], shape: Shape, direction: str, gpu: Gpu) -> Floor | None:
    """Floor of a direction: a forward pass saves states only if a backward pass follows."""
    both = direction != "forward"
    floors = [floor(kernels["forward"], shape, both, gpu)]
    if both:
        floors.append(floor(kernels["backward"], shape, True, gpu))
    known = [f for f in floors if f is not None]
    return sum(known[1:], known[0]) if len(known) == len(floors) else None


def limit(shape: Shape, direction: str, gpu: Gpu) -> float:
    """Seconds that no implementation can beat: the inputs and results moved once, or the exponentials alone."""
    exponentials = gpu.cycles * WARP / EXP_CYCLES
    machine = gpu_machine(gpu.bandwidth, exponentials, float("inf"))
    seconds = limit_seconds(work(shape, direction, ITEM_BYTES), machine)
    assert seconds is not None  # it is None only where a rate is unknown
    return seconds


def line(counts: Mapping[str, Any], shape: Shape, direction: str, gpu: Gpu) -> list[str]:
    """One line of the table."""
    own, peer = (predict(counts[who], shape, direction, gpu) for who in ("ours", "peer"))
    assert own is not None  # our kernels have one count for every length
    best = limit(shape, direction, gpu)
    text = "B {} D {} L {} N {}".format(*shape) + ("" if shape[0] * shape[1] >= counts["fills"] else " *")
    cells = [text, direction, own.limiter, f"{own.seconds * 1e6:.0f}", f"{best / own.seconds:.0%}"]
    if peer is None:
        return [*cells, "not counted", "", ""]
    return [*cells, f"{peer.seconds * 1e6:.0f}", f"{best / peer.seconds:.0%}", f"{peer.seconds / own.seconds:.1f}"]


def table(counts: Mapping[str, Any], name: str, shapes: Iterable[Shape] = SHAPES) -> str:
    """Table of the predictions for one card, with an explanation."""
    gpu = GPUS[name]
    head = ["shape", "direction", "limiter", "floor, µs", "limit / floor", "mamba-ssm, µs", "limit / it", "ratio"]
    lines = [line(counts, shape, direction, gpu) for shape in shapes for direction in DIRECTIONS]
    return "\n\n".join(
        [
            f"PREDICTED, not measured: selective_scan on an {name} ({gpu.multiprocessors} multiprocessors at "
            f"{gpu.hertz / 1e9:g} GHz, copy {gpu.bandwidth / 1e12:g} TB/s), bfloat16.",
            markdown(head, lines),
            f"Counts: {counts['note']}\n* fewer than {counts['fills']} channels in all batch items: the floor holds only "
            "if the steps are cut into enough pieces to fill the card.",
        ]
    )


def main() -> None:
    """Prints the predictions for one card."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu.roofline", description=__doc__)
    parser.add_argument("--gpu", choices=sorted(GPUS), default="H200")
    sys.stdout.write(table(read_counts(), parser.parse_args().gpu) + "\n")


if __name__ == "__main__":
    main()
