"""Measures the sizes of the Triton kernels' blocks on this GPU and writes the best into bdam_fast/tuned.json.

`python -m bench.gpu.tune`; `make gpu` runs it last, so that its rows are of the sizes before. A size that gives another result
than the default is refused.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bdam_fast import _tuning
from bench.gpu import timer
from bench.gpu.steps import say
from bench.harness import measure
from bench.harness.case import Variant, relative_error
from bench.harness.measure import VariantRun
from bench.ops import causal_conv1d, selective_scan

# A size replaces the default if it is faster by more than this share: less is noise.
MARGIN = 0.02
# Largest error relative to the default's results, which differ by the order of sums and the rounding of bfloat16.
ALLOWED = 2e-2
# (B, D, L) that the benchmark measures first.
SHAPE = (64, 1536, 192)
Measure = Callable[[Sequence[VariantRun], int, Callable[[str], None]], None]
Call = Callable[[], Any]


def scan_call(shape: tuple[int, int, int], device: str = "cuda") -> Call:
    """Forward and backward of the scan with 16 states."""
    problem = selective_scan.Problem((*shape, 16), "BLD", torch.bfloat16, device)
    return problem.variant("", "forward+backward", partial(selective_scan.run_scan, backend="triton")).call


def conv_call(shape: tuple[int, int, int], device: str = "cuda") -> Call:
    """Forward and backward of the convolution of width 4."""
    problem = causal_conv1d.Problem((*shape, 4), "BLD", torch.bfloat16, device)
    return problem.variant("", "forward+backward", partial(causal_conv1d.run_conv, backend="triton")).call


CALLS: dict[str, Callable[[tuple[int, int, int]], Call]] = {
    "selective_scan.states": scan_call,
    "causal_conv1d.tile": conv_call,
}


def with_size(name: str, value: int, call: Call) -> list[Tensor]:
    """Results of a call with one size fixed."""
    with _tuning.fixed(name, value):
        return [t.detach() for t in call()]


def best(name: str, call: Call, timing: Measure) -> int:
    """The fastest of a size's choices by its median, the default where no other is faster by MARGIN."""
    default, *others = _tuning.CHOICES[name]
    expected = with_size(name, default, call)
    runs = [VariantRun(Variant(str(default), partial(with_size, name, default, call), "ours"))]
    for value in others:
        error = relative_error(with_size(name, value, call), expected)
        if error <= ALLOWED:
            runs.append(VariantRun(Variant(str(value), partial(with_size, name, value, call), "ours")))
        else:
            say(f"{name} = {value} is refused: its results differ by {error:.1e}")
    timing(runs, timer.SAMPLES, lambda text: None)
    medians = {int(run.variant.name): measure.timing(run.samples).median for run in runs}
    say(f"{name}: " + ", ".join(f"{value} {median:.4g} ms" for value, median in medians.items()))
    fastest = min(medians, key=lambda value: medians[value])
    return fastest if medians[fastest] < medians[default] * (1 - MARGIN) else default


def write(card: str, sizes: Mapping[str, int], path: Path = _tuning.TABLE) -> None:
    """Puts a card's sizes into the table, as a whole or not at all; those of other cards stay.

    Raises:
        ValueError: there is a table that cannot be read.
    """
    table = _tuning.read(path) if path.exists() else {}
    table[card] = dict(sizes)
    half = path.with_suffix(".part")
    half.write_text(json.dumps(dict(sorted(table.items())), indent=2) + "\n")
    os.replace(half, path)


def main() -> None:
    """Measures and writes; with --compile only compiles."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu.tune", description=__doc__)
    parser.add_argument("--compile", action="store_true", help="call every choice once, measure and write nothing")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("tune: there is no GPU that this PyTorch can use")
    if options.compile:
        for name, make in CALLS.items():
            call = make(SHAPE)
            for value in _tuning.CHOICES[name]:
                with_size(name, value, call)
        return
    stopwatch = timer.Stopwatch()
    sizes = {name: best(name, make(SHAPE), stopwatch.measure) for name, make in CALLS.items()}
    try:
        write(torch.cuda.get_device_name(), sizes)
    except ValueError as error:
        sys.exit(f"tune: {error}; move it away")
    say(f"{_tuning.TABLE}: {json.dumps(sizes)}")


if __name__ == "__main__":
    main()
