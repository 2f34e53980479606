"""Targets of the operators, and the comparison of the newest rows with them. Targets, never results."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from rich.table import Table

from bench.harness import results
from bench.harness.results import Row

MAIN, LANGUAGE = "B 8 D 512 L 273 N 16", "B 1 D 1536 L 2048 N 16"
CONV, MODEL = "B 8 D 512 L 273 W 4", "2 layers, hidden 768, vocabulary 1024"


@dataclass(frozen=True)
class Target:
    """Bound for one number of one case."""

    op: str
    shape: str
    direction: str
    # eager, compiled: ratio of the fastest such peer's time to ours; a peer's name: ratio of its time; or a column of our row.
    measure: str
    bound: float
    order: str = ""
    dtype: str = "float32"
    # at_least or at_most.
    sense: str = "at_least"

    def value(self, cases: Iterable[list[Row]]) -> float | None:
        """Measured number; None where the newest rows lack it."""
        wanted = (self.op, self.shape, self.order, self.dtype, self.direction)
        case = next((c for c in cases if tuple(c[0][key] for key in results.CASE) == wanted), None)
        if case is None:
            return None
        if self.measure in ("eager", "compiled"):
            return results.ratio(case, self.measure)
        own = next((row for row in case if row["kind"] == "ours"), None)
        if own is not None and self.measure in own:
            return float(own[self.measure]) if own[self.measure] else None
        peer = next((row for row in case if row["variant"] == self.measure), None)
        if own is None or peer is None:
            return None
        column = "peak_mib" if own["peak_mib"] else "median_ms"
        if not own[column] or not peer[column]:
            return None
        return (
            float(own[column]) / float(peer[column])
            if column == "peak_mib"
            else float(peer[column]) / float(own[column])
        )

    def reached(self, value: float) -> bool:
        """Returns True where a measured number satisfies the target."""
        return value >= self.bound if self.sense == "at_least" else value <= self.bound


def _scan() -> list[Target]:
    op, both = "selective_scan", "forward+backward"
    found = [
        Target(op, MAIN, "forward", "eager", 15, "BLD"),
        Target(op, MAIN, "forward", "compiled", 5, "BLD"),
        Target(op, MAIN, both, "eager", 30, "BLD"),
        Target(op, MAIN, "forward", "speed_per_element", 0.8, "BDL"),
        Target(op, LANGUAGE, "forward", "eager", 25, "BLD"),
        Target(op, LANGUAGE, both, "eager", 50, "BLD"),
    ]
    for shape in (MAIN, LANGUAGE):
        found += [
            Target(op, shape, "forward", "share_of_limit", 0.6, "BLD"),
            Target(op, shape, "backward", "share_of_limit", 0.4, "BLD"),
        ]
    found += [Target(op, MAIN, d, "speed_per_element", 0.9, "BLD", "bfloat16") for d in ("forward", both)]
    for text in ("B 8 D 512 L 257 N 16", "B 8 D 500 L 273 N 16", "B 8 D 512 L 273 N 8", "B 8 D 512 L 273 N 17"):
        for direction in ("forward", both):
            # Per element N 8 is easy and N 17 hard, per element-state the reverse: both are shown.
            columns = ("speed_per_element", "speed_per_state") if not text.endswith("N 16") else ("speed_per_element",)
            found += [Target(op, text, direction, column, 0.7, "BLD") for column in columns]
    return found


def _others() -> list[Target]:
    both, conv = "forward+backward", "F.conv1d + SiLU"
    found = [
        Target("causal_conv1d", CONV, direction, conv, bound, order)
        for order, forward, full in (("BLD", 7, 18), ("BDL", 4, 6))
        for direction, bound in (("forward", forward), (both, full))
    ]
    found += [
        Target("hsic", "batch 1 N 64 D 768 linear", both, "textbook", 2),
        Target("hsic", "batch 16 N 64 D 768 linear", both, "textbook", 3),
        Target("hsic", "batch 1 N 4096 D 256 rbf", "forward, peak memory", "textbook", 0.05, sense="at_most"),
        Target("hsic", "batch 1 N 4096 D 256 rbf", f"{both}, peak memory", "textbook", 0.05, sense="at_most"),
        Target("transformers", f"{MODEL}, B 2 L 512", "forward", "unpatched", 5),
        Target("transformers", f"{MODEL}, B 2 L 512", both, "unpatched", 30),
        Target("transformers", f"{MODEL}, B 1", "generate 64 tokens", "unpatched", 1.5),
    ]
    for name in ("selective_scan", "causal_conv1d", "hsic"):
        shape = f"{name}, B 1 D 8 L 1" if name != "hsic" else "hsic, N 4 D 8"
        found += [
            Target("overhead", shape, "forward", "median_ms", 0.010, sense="at_most"),
            Target("overhead", shape, both, "median_ms", 0.080, sense="at_most"),
        ]
    return found


def targets() -> list[Target]:
    """All targets, in the order in which they are printed."""
    return _scan() + _others()


def verdict(target: Target, value: float | None) -> str:
    """Verdict in words; a share above 1 shows that the limit itself was measured too low."""
    if value is None:
        return "not measured"
    if target.measure.startswith("share_of") and value > 1:
        return "impossible: the limit is measured too low"
    return "reached" if target.reached(value) else "not reached"


def make_table(cases: list[list[Row]]) -> Table:
    """Table of the targets with the measured numbers and verdicts."""
    shown = Table("op", "case", "direction", "measure", "target", "measured", "")
    for target in targets():
        value = target.value(cases)
        sign = "≥" if target.sense == "at_least" else "≤"
        text = verdict(target, value)
        colour = {"reached": "green", "not measured": "dim"}.get(text, "red")
        case = " ".join(part for part in (target.shape, target.order, target.dtype) if part)
        number = "" if value is None else f"{value:.3g}"
        shown.add_row(
            target.op,
            case,
            target.direction,
            target.measure,
            f"{sign} {target.bound:g}",
            number,
            f"[{colour}]{text}[/{colour}]",
        )
    return shown
