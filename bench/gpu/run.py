"""Benchmark on the GPU, rows appended case by case: `python -m bench.gpu.run --ops selective_scan=cuda,triton …`.

`make gpu` runs it for the backends that passed their tests; called directly it runs no tests.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch

from bench.gpu import cases, outcomes, timer
from bench.gpu.cases import Group
from bench.gpu.processes import MEASURED
from bench.gpu.steps import say
from bench.harness import gpu_table, measure, results
from bench.harness.machine import Machine
from bench.harness.results import Row

# Evaluations of exp2 per clock and multiprocessor (CUDA C++ Programming Guide, throughput of native instructions).
EXP_PER_CLOCK = 16


def parse_op(text: str) -> tuple[str, list[str]]:
    """Parses `op=backend,backend` into (op, backends). Raises ArgumentTypeError."""
    op, _, backends = text.partition("=")
    names = [name for name in backends.split(",") if name]
    if op not in cases.OPS or not names:
        raise argparse.ArgumentTypeError(f"must be OP=BACKEND[,BACKEND] with OP one of {cases.OPS}, got {text!r}")
    return op, names


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu.run", description=__doc__)
    parser.add_argument("--ops", nargs="+", type=parse_op, default=[*MEASURED.items()], metavar="OP=BACKENDS")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="measure what should fit; by default all")
    parser.add_argument("--failed", type=Path, help="JSON of tests that failed, whose cases are not measured")
    parser.add_argument("--compile", action="store_true", help="call our Triton kernels once, measure nothing")
    parser.add_argument("--dry", action="store_true", help="print only, append no rows")
    return parser.parse_args(words)


def nvidia_smi(*fields: str) -> dict[str, str]:
    """Fields of the first GPU as reported by nvidia-smi; empty strings where it reports none."""
    if shutil.which("nvidia-smi") is None:
        return dict.fromkeys(fields, "")
    command = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits", "-i", "0"]
    said = subprocess.run(command, capture_output=True, text=True).stdout.strip().splitlines()
    values = said[0].split(", ") if said else []
    return dict(zip(fields, values, strict=True)) if len(values) == len(fields) else dict.fromkeys(fields, "")


def facts(bandwidth: float) -> Row:
    """Columns that every row of a GPU carries. The clock is read while the device is warm."""
    properties = torch.cuda.get_device_properties(0)
    smi = nvidia_smi("driver_version", "clocks.sm")
    try:
        triton = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        triton = ""
    return {
        "gpu": properties.name,
        "gpu_memory_gib": f"{properties.total_memory / 2**30:.0f}",
        "driver": smi["driver_version"],
        "cuda": str(torch.version.cuda),
        "triton": triton,
        "copy_gb_s": f"{bandwidth / 1e9:.0f}",
        "clock_mhz": smi["clocks.sm"],
    }


def measure_machine(stopwatch: timer.Stopwatch) -> tuple[Machine, Row]:
    """Returns (limits of this GPU, its facts). Without a clock the speed of the exp units is unknown, and so is the limit."""
    bandwidth, flops = stopwatch.bandwidth(), stopwatch.matrix_rate()
    found = facts(bandwidth)
    if not found["clock_mhz"].isdigit():
        return Machine(bandwidth, flops, 1, reason="nvidia-smi gives no clock"), found
    units = torch.cuda.get_device_properties(0).multi_processor_count * EXP_PER_CLOCK
    return timer.gpu_machine(bandwidth, units * float(found["clock_mhz"]) * 1e6, flops), found


def measure_group(group: Group, limits: Machine, stopwatch: timer.Stopwatch) -> list[list[Row]]:
    """Measures both directions and returns their rows."""
    made = []
    for case in group.cases():
        rows = measure.measure_case(case, limits, timer.SAMPLES, stopwatch=stopwatch.measure)
        if stopwatch.device == "cuda":
            timed = {row["variant"]: row for row in rows if row.get("median_ms")}
            for variant in case.variants:
                if variant.name in timed:
                    timed[variant.name]["peak_mib"] = f"{timer.peak_mib(variant):.1f}"
                    timed[variant.name]["host_us"] = f"{1e6 * stopwatch.host_seconds(variant.call):.1f}"
        made.append(rows)
    return made


def measure_groups(
    groups: Iterable[Group],
    seconds: float,
    limits: Machine,
    stopwatch: timer.Stopwatch,
    keep: Callable[[list[Row]], object],
) -> list[str]:
    """Measures groups in order while there is time, passes the rows of each case to `keep`, and returns the problems.

    Cuts those that would probably end too late: by their estimates, which are corrected by what the groups before them took.
    """
    start, expected, problems, cut = time.perf_counter(), 0.0, [], []
    for group in groups:
        spent = time.perf_counter() - start
        if spent + group.seconds * max(1.0, spent / expected if expected else 1.0) > seconds:
            cut.append(group.title)
            continue
        expected += group.seconds
        try:
            for rows in measure_group(group, limits, stopwatch):
                keep(rows)
                say(summary(rows))
        except Exception as problem:  # a kernel that is wrong or fails here must not hide the others
            problems.append(f"{group.title}: {type(problem).__name__}: {str(problem).splitlines()[0][:200]}")
            say(f"FAILED {problems[-1]}")
            if "CUDA error" in str(problem):
                say("the device no longer responds to this process: the rest is not measured")
                break
        if stopwatch.device == "cuda":
            torch.cuda.empty_cache()
    if cut:
        say(f"cut, {len(cut)}, for this machine takes longer than planned: {'; '.join(cut)}")
    return problems


def compile_groups(groups: Iterable[Group]) -> list[str]:
    """Calls our variants of each case once, so that what they compile is there when they are measured; the problems."""
    problems = []
    for group in groups:
        try:
            for case in group.cases():
                for variant in case.variants:
                    if variant.kind in ("ours", "other"):
                        variant.call()
        except Exception as problem:  # as above: the benchmark will report it with the case
            problems.append(f"{group.title}: {type(problem).__name__}: {str(problem).splitlines()[0][:200]}")
    return problems


def chosen_groups(options: argparse.Namespace) -> list[Group]:
    """Groups to measure: those whose tests passed, as many as fit into the time by their estimates."""
    failed = outcomes.read_failed(options.failed) if options.failed else []
    chosen, cut = cases.within(cases.groups(dict(options.ops), failed=failed), options.seconds)
    if cut:
        say(f"cut, for they do not fit into {options.seconds:.0f} s: {'; '.join(group.title for group in cut)}")
    kept = {group.title for group in (*chosen, *cut)}
    gone = [group.title for group in cases.groups(dict(options.ops)) if group.title not in kept]
    if gone:
        say(f"not measured, for tests of these cases failed: {'; '.join(gone)}")
    return chosen


def summary(rows: list[Row]) -> str:
    """Summary of one case in one line."""
    whole = [{**dict.fromkeys(results.COLUMNS, ""), **row} for row in rows]
    timed = [f"{r['variant']} {results.milliseconds(r['median_ms'])}" for r in whole if r["median_ms"]]
    refused = [f"{r['variant']}: {r['note'][:60]}" for r in whole if r["note"]]
    return f"{gpu_table.title(whole[0])}, {whole[0]['direction']}: " + ", ".join(timed + refused)


def main() -> None:
    """Measures; exits with code 1 if one of our kernels was wrong or failed."""
    options = arguments()
    if not torch.cuda.is_available():
        sys.exit("bench: there is no GPU that this PyTorch can use")
    groups = chosen_groups(options)
    if options.compile:
        sys.exit("\n".join(compile_groups(groups)) or 0)
    stopwatch = timer.Stopwatch()
    limits, found = measure_machine(stopwatch)
    say(", ".join(f"{key} {value}" for key, value in found.items()))
    paths: list[Path] = []

    def keep(rows: list[Row]) -> None:
        if not options.dry:
            paths.append(results.append(rows, mode="full", **found))

    problems = measure_groups(groups, options.seconds, limits, stopwatch, keep)
    if paths:
        say(gpu_table.write_page(paths[-1]))
        say(f"rows in {paths[-1]}, table in {paths[-1].with_suffix('.md')}")
    sys.exit("\n".join(problems) if problems else 0)


if __name__ == "__main__":
    main()
