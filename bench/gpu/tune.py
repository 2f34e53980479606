"""Measures the sizes that the kernels may choose on this GPU and writes the best into bdam_fast/tuned.json.

`python -m bench.gpu.tune`; `make gpu` runs it after the benchmark, whose rows are of the sizes before. A size that gives another
result than the default is refused.
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
from bench.ops import causal_conv1d, hsic, selective_scan

# A size replaces the default if it is faster by more than this share: less is noise.
MARGIN = 0.02
# Largest error relative to the default's results, which differ by the order of sums and the rounding of bfloat16.
ALLOWED = 2e-2
# (B, D, L) that the benchmark measures first.
SHAPE = (64, 1536, 192)
Measure = Callable[[Sequence[VariantRun], int, Callable[[str], None]], None]
Call = Callable[[], Any]


def scan_call(shape: tuple[int, int, int], device: str = "cuda", backend: str = "triton") -> Call:
    """Forward and backward of the scan with 16 states."""
    problem = selective_scan.Problem((*shape, 16), "BLD", torch.bfloat16, device)
    return problem.variant("", "forward+backward", partial(selective_scan.run_scan, backend=backend)).call


def conv_call(shape: tuple[int, int, int], device: str = "cuda") -> Call:
    """Forward and backward of the convolution of width 4."""
    problem = causal_conv1d.Problem((*shape, 4), "BLD", torch.bfloat16, device)
    return problem.variant("", "forward+backward", partial(causal_conv1d.run_conv, backend="triton")).call


def hsic_call(shape: tuple[int, int, int], device: str = "cuda") -> Call:
    """Forward and backward of the Gaussian hsic of 64 samples, of as many problems as the shape has batch items."""
    tensors = hsic.inputs((shape[0], 64, 768), torch.float32, device)
    return hsic.runner(partial(hsic.run_hsic, backend="triton"), tensors, 768**0.5, "forward+backward")


# By backend, sizes in the order in which they are measured: each with the best of those before it.
CALLS: dict[str, dict[str, Callable[..., Call]]] = {
    "triton": {"selective_scan.states": scan_call, "causal_conv1d.tile": conv_call, "hsic.features": hsic_call},
    "cuda": {
        "selective_scan.block_channels": partial(scan_call, backend="cuda"),
        "selective_scan.saved_steps": partial(scan_call, backend="cuda"),
    },
}


def with_sizes(sizes: Mapping[str, int], call: Call) -> list[Tensor]:
    """Results of a call with some sizes fixed."""
    with _tuning.fixed(sizes):
        return [t.detach() for t in call()]


def best(name: str, call: Call, timing: Measure, others: Mapping[str, int] | None = None) -> int:
    """The fastest of a size's choices by its median, the default where none is faster by MARGIN; `others` are fixed too."""
    default, *rest = _tuning.CHOICES[name]
    at = {value: partial(with_sizes, {**(others or {}), name: value}, call) for value in (default, *rest)}
    expected = at[default]()
    runs = [VariantRun(Variant(str(default), at[default], "ours"))]
    for value in rest:
        error = relative_error(at[value](), expected)
        if error <= ALLOWED:
            runs.append(VariantRun(Variant(str(value), at[value], "ours")))
        else:
            say(f"{name} = {value} is refused: its results differ by {error:.1e}")
    timing(runs, timer.SAMPLES, lambda text: None)
    medians = {int(run.variant.name): measure.timing(run.samples).median for run in runs}
    say(f"{name}: " + ", ".join(f"{value} {median:.4g} ms" for value, median in medians.items()))
    fastest = min(medians, key=lambda value: medians[value])
    return fastest if medians[fastest] < medians[default] * (1 - MARGIN) else default


def measure_backend(backend: str, timing: Measure) -> dict[str, int]:
    """The best sizes of a backend's kernels. One that fails leaves its defaults, and the others their measurements."""
    sizes: dict[str, int] = {}
    try:
        for name, make in CALLS[backend].items():
            sizes[name] = best(name, make(SHAPE), timing, sizes)
    except RuntimeError as error:
        say(f"{backend} is not tuned any further: {str(error).splitlines()[0][:200]}")
    return sizes


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
    """Measures and writes; with --compile only compiles what Triton needs for it."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu.tune", description=__doc__)
    parser.add_argument("--compile", action="store_true", help="call every choice of Triton once, measure nothing")
    parser.add_argument("--backends", nargs="+", choices=[*CALLS], default=[*CALLS])
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("tune: there is no GPU that this PyTorch can use")
    if options.compile:
        for name, make in CALLS["triton"].items():
            call = make(SHAPE)
            for value in _tuning.CHOICES[name]:
                with_sizes({name: value}, call)
        return
    stopwatch = timer.Stopwatch()
    sizes = {name: v for b in options.backends for name, v in measure_backend(b, stopwatch.measure).items()}
    try:
        write(torch.cuda.get_device_name(), sizes)
    except ValueError as error:
        sys.exit(f"tune: {error}; move it away")
    say(f"{_tuning.TABLE}: {json.dumps(sizes)}")


if __name__ == "__main__":
    main()
