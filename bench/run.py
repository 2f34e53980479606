"""Benchmark of the operators: `python -m bench.run --op NAME [--quick] [--dry] | --check`.

Measures, prints, and appends a row per variant after every case, so that an interrupted run keeps its rows.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Literal, get_args

import tyro
from rich.console import Console
from rich.table import Table

from bench.harness import machine, measure, results, targets
from bench.harness.case import Case
from bench.harness.machine import Machine
from bench.harness.results import Row

Op = Literal["selective_scan", "causal_conv1d", "hsic", "mamba_block", "transformers", "overhead"]
OPS: tuple[str, ...] = get_args(Op)
# Modules whose name is not that of their operator: `bench.ops.transformers` would be mistaken for the package.
MODULES = {"transformers": "hf_mamba"}
QUICK_ROUNDS = 3
QUIET_LOAD = 0.5
# glibc keeps freed memory instead of returning it after every call: measures the kernels, not the page faults.
KEPT = {"MALLOC_TRIM_THRESHOLD_": "100000000000", "MALLOC_MMAP_THRESHOLD_": "100000000000"}


@dataclass(frozen=True)
class Arguments:
    """Choice of operators, and what to do with the rows."""

    # Operator to measure.
    op: Literal[Op, "all"] = "all"
    # Few rounds, main shapes only, nothing compiled: minutes. Rows carry the mode; the report prefers full ones.
    quick: bool = False
    # Print only: append no rows to bench/results/.
    dry: bool = False
    # `kept` restarts the process with glibc set to keep freed memory; `asis` leaves the environment as it is.
    malloc: Literal["asis", "kept"] = "asis"
    # Only compare the newest rows with the targets.
    check: bool = False


def make_table(made: list[Row]) -> Table:
    """Table of the rows of one case."""
    shown = Table("variant", "median ms", "p20–p80", "rounds", "× ours", "error", "bandwidth", "limit", "per element")
    for row in made:
        if row.get("note"):
            shown.add_row(row["variant"], f"[dim]{row['note']}[/dim]")
            continue
        spread = f"{row.get('p20_ms', '')}–{row.get('p80_ms', '')}"
        keys = ("rounds", "times_ours", "error", "share_of_bandwidth", "share_of_limit", "speed_per_element")
        shown.add_row(
            row["variant"], row.get("median_ms") or f"{row['peak_mib']} MiB", spread, *(row.get(k, "") for k in keys)
        )
    return shown


def verdict(made: list[Row]) -> str:
    """Summary of a case in one line: ours, the fastest eager peer, the fastest compiled one."""
    made = [{**dict.fromkeys(results.COLUMNS, ""), **row} for row in made]
    own = results.ours(made)
    parts = [] if own is None else [f"ours {own['median_ms']} ms"]
    for kind in ("eager", "compiled"):
        peer, times = results.fastest(made, kind), results.ratio(made, kind)
        if peer is not None and times is not None:
            parts.append(f"fastest {kind} peer: {peer['variant']}, {times:.1f} × ours")
    return "; ".join(parts)


def import_op(op: str) -> ModuleType:
    """The module with the cases of an operator."""
    return importlib.import_module(f"bench.ops.{MODULES.get(op, op)}")


def measure_op(op: str, quick: bool, console: Console) -> Iterator[list[Row]]:
    """Runs the tests of an operator, then measures it and yields its rows, one case at a time."""
    module = import_op(op)
    reason = module.unavailable() if hasattr(module, "unavailable") else ""
    if reason:
        console.print(f"[yellow]{op} is not measured: {reason}[/yellow]")
        return
    measure.require_tests(op)
    limits = machine.measure_machine()
    rounds = QUICK_ROUNDS if quick else measure.ROUNDS
    for case in module.cases(quick):
        yield _measure_case(case, limits, rounds, console)
    if hasattr(module, "extra_rows"):
        yield from module.extra_rows(quick)


def _measure_case(case: Case, limits: Machine, rounds: int, console: Console) -> list[Row]:
    with console.status("") as status:
        title = f"{case.op} {case.shape} {case.order} {case.direction}"
        return measure.measure_case(case, limits, rounds, lambda text: status.update(f"{title}: {text}"))


def print_machine(limits: Machine, console: Console) -> None:
    """Prints the machine, its measured limits, and which of them are unknown."""
    facts = ", ".join(f"{key} {value}" for key, value in results.facts().items() if key != "mode")
    console.print(f"{facts}\ncopy {limits.bandwidth / 1e9:.1f} GB/s, matrix products {limits.flops / 1e9:.0f} GFLOP/s")
    if float(results.facts()["load"]) > QUIET_LOAD:
        console.print(f"[yellow]the machine is busy (load {results.facts()['load']}): these numbers are noise[/yellow]")
    if limits.reason:
        console.print(f"[yellow]no share of the limit: {limits.reason}[/yellow]")
    else:
        rates = ", ".join(f"{name} {rate / 1e9:.2f}" for name, rate in limits.rates.items())
        console.print(f"evaluations per second on one thread, G/s: {rates}")


def measure_ops(arguments: Arguments, console: Console) -> None:
    """Measures the chosen operators, prints their rows and appends them case by case."""
    print_machine(machine.measure_machine(), console)
    for op in OPS if arguments.op == "all" else (arguments.op,):
        for made in measure_op(op, arguments.quick, console):
            first = made[0]
            keys = ("op", "shape", "order", "dtype", "direction")
            console.print(make_table(made), " ".join(first.get(k, "") for k in keys), verdict(made), sep="\n")
            if not arguments.dry:
                results.append(made, mode="quick" if arguments.quick else "full")
    if not arguments.dry:
        console.print(f"rows in {results.machine_file(results.facts())}")


def main() -> None:
    """Measures, or only checks, and prints the targets."""
    arguments = tyro.cli(Arguments, description=__doc__)
    console = Console(width=150)
    if arguments.malloc == "kept" and any(os.environ.get(k) != v for k, v in KEPT.items()):
        os.execve(sys.executable, [sys.executable, "-m", "bench.run", *sys.argv[1:]], {**os.environ, **KEPT})
    path = results.machine_file(results.facts())
    if not arguments.check:
        try:
            measure_ops(arguments, console)
        except KeyboardInterrupt:
            console.print("interrupted; the rows of the cases above are kept")
            sys.exit(130)
    rows = results.read(path) if path.exists() else []
    console.print(targets.make_table(results.newest(rows)))


if __name__ == "__main__":
    main()
