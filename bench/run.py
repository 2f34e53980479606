"""`python -m bench.run --op selective_scan|causal_conv1d|hsic|training|all`: measures, prints a table, appends rows."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Literal

import tyro
from rich.console import Console
from rich.table import Table

from bench import harness

OPS = ("selective_scan", "causal_conv1d", "hsic")


@dataclass(frozen=True)
class Arguments:
    """What to measure."""

    op: Literal["selective_scan", "causal_conv1d", "hsic", "all"] = "all"
    # Print only: do not append rows to bench/results/.
    dry: bool = False


def table(made: list[dict[str, str]]) -> Table:
    """The rows as a table for people."""
    shown = Table("op", "shape", "direction", "variant", "median ms", "p20–p80", "× ours", "of bandwidth")
    for row in made:
        spread = f"{row['p20_ms']}–{row['p80_ms']}"
        cells = [row[k] for k in ("op", "shape", "direction", "variant", "median_ms")]
        shown.add_row(*cells, spread, row["times_ours"], row["share_of_bandwidth"])
    return shown


def main() -> None:
    """Runs the tests of each operator, then its cases."""
    arguments = tyro.cli(Arguments)
    chosen = OPS if arguments.op == "all" else (arguments.op,)
    for op in chosen:
        harness.require_tests(op)
    bandwidth = harness.copy_bandwidth()
    made = []
    for op in chosen:
        for case in importlib.import_module(f"bench.bench_{op}").cases():
            made += harness.rows(case, bandwidth)
    Console(width=160).print(table(made), f"copy bandwidth {bandwidth / 1e9:.1f} GB/s, {harness.facts()}")
    if not arguments.dry:
        print(harness.append(made))


if __name__ == "__main__":
    main()
