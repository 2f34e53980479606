"""`python -m bench.run --op NAME [--quick] [--dry] | --check`: measures, prints, appends a row per variant.

Rows are written after every case, so an interrupted run keeps what it measured.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import tyro
from rich.console import Console
from rich.table import Table

from bench.harness import machine as limits
from bench.harness import measure as harness
from bench.harness import results, targets
from bench.harness.case import Case
from bench.harness.results import Row

Op = Literal["selective_scan", "causal_conv1d", "hsic", "mamba_block", "transformers", "overhead"]
OPS: tuple[str, ...] = get_args(Op)
QUICK_ROUNDS = 3
QUIET_LOAD = 0.5
# glibc keeps freed memory instead of handing it back after every call: measures the kernels, not the page faults.
KEPT = {"MALLOC_TRIM_THRESHOLD_": "100000000000", "MALLOC_MMAP_THRESHOLD_": "100000000000"}


@dataclass(frozen=True)
class Arguments:
    """What to measure."""

    op: Literal[Op, "all"] = "all"
    # Few rounds, the main shapes only, nothing compiled: minutes, for a look. The rows say so; the report prefers full ones.
    quick: bool = False
    # Print only: append no rows to bench/results/.
    dry: bool = False
    # `kept` starts again with glibc told to keep freed memory; `asis` takes the environment as it is.
    malloc: Literal["asis", "kept"] = "asis"
    # Measure nothing: compare the newest rows with the targets.
    check: bool = False


def table(made: list[Row]) -> Table:
    """The rows of one case as a table for people."""
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
    """One line: ours, the fastest eager peer, the compiled loop."""
    made = [{**dict.fromkeys(results.COLUMNS, ""), **row} for row in made]
    own = results.ours(made)
    parts = [] if own is None else [f"ours {own['median_ms']} ms"]
    for kind in ("eager", "compiled"):
        peer, times = results.fastest(made, kind), results.ratio(made, kind)
        if peer is not None and times is not None:
            parts.append(f"fastest {kind} peer: {peer['variant']}, {times:.1f} × ours")
    return "; ".join(parts)


def groups(op: str, quick: bool, console: Console) -> Iterator[list[Row]]:
    """The rows of an operator, one case at a time."""
    module = importlib.import_module(f"bench.bench_{op}")
    reason = module.unavailable() if hasattr(module, "unavailable") else ""
    if reason:
        console.print(f"[yellow]{op} is not measured: {reason}[/yellow]")
        return
    harness.require_tests(op)
    machine = limits.measured()
    rounds = QUICK_ROUNDS if quick else harness.ROUNDS
    for case in module.cases(quick):
        yield _measure(case, machine, rounds, console)
    if hasattr(module, "extra_rows"):
        yield from module.extra_rows(quick)


def _measure(case: Case, machine: limits.Machine, rounds: int, console: Console) -> list[Row]:
    with console.status("") as status:
        title = f"{case.op} {case.shape} {case.order} {case.direction}"
        return harness.rows(case, machine, rounds, lambda text: status.update(f"{title}: {text}"))


def describe(machine: limits.Machine, console: Console) -> None:
    """The ceilings, and what is missing of them."""
    facts = ", ".join(f"{key} {value}" for key, value in results.facts().items() if key != "mode")
    console.print(
        f"{facts}\ncopy {machine.bandwidth / 1e9:.1f} GB/s, matrix products {machine.flops / 1e9:.0f} GFLOP/s"
    )
    if float(results.facts()["load"]) > QUIET_LOAD:
        console.print(f"[yellow]the machine is busy (load {results.facts()['load']}): these numbers are noise[/yellow]")
    if machine.reason:
        console.print(f"[yellow]no share of the limit: {machine.reason}[/yellow]")
    else:
        rates = ", ".join(f"{name} {rate / 1e9:.2f}" for name, rate in machine.rates.items())
        console.print(f"evaluations per second on one thread, G/s: {rates}")


def measure(arguments: Arguments, console: Console) -> None:
    """Measures the chosen operators and appends their rows as they come."""
    describe(limits.measured(), console)
    for op in OPS if arguments.op == "all" else (arguments.op,):
        for made in groups(op, arguments.quick, console):
            first = made[0]
            keys = ("op", "shape", "order", "dtype", "direction")
            console.print(table(made), " ".join(first.get(k, "") for k in keys), verdict(made), sep="\n")
            if not arguments.dry:
                results.append(made, mode="quick" if arguments.quick else "full")
    if not arguments.dry:
        console.print(f"rows in {results.machine_file(results.facts())}")


def main() -> None:
    """Runs the tests of each operator, then its cases."""
    arguments = tyro.cli(Arguments)
    console = Console(width=150)
    if arguments.malloc == "kept" and any(os.environ.get(k) != v for k, v in KEPT.items()):
        os.execve(sys.executable, [sys.executable, "-m", "bench.run", *sys.argv[1:]], {**os.environ, **KEPT})
    path = results.machine_file(results.facts())
    if not arguments.check:
        try:
            measure(arguments, console)
        except KeyboardInterrupt:
            console.print("interrupted; the cases above are measured and kept")
            sys.exit(130)
    rows = results.read(path) if path.exists() else []
    console.print(targets.table(results.newest(rows)))


if __name__ == "__main__":
    main()
