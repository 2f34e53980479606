"""Side-by-side measurement: the variants of a case in one process, interleaved, one row of medians each."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from bench.harness.case import Case, Variant, relative_error
from bench.harness.machine import Machine, bandwidth_seconds, limit_seconds
from bench.harness.results import ROOT, Row

# A sample repeats its call for this long, so that neither the clock's resolution nor the cache contents left by the previous
# variant matter: at 0.01 s forward + backward of the convolution took 0.73 ms, in steady state 0.60.
SAMPLE_SECONDS = 0.05
ROUNDS = 9
# A peer slower than SLOW_SECONDS is measured SLOW_ROUNDS times, the fastest eager peer at least MIN_ROUNDS times
# (unless a call takes VERY_SLOW_SECONDS).
SLOW_SECONDS = 1.0
SLOW_ROUNDS = 3
MIN_ROUNDS = 7
# The check of a variant this slow is its first round: a warm-up would cost minutes and change nothing.
VERY_SLOW_SECONDS = 10.0
# Tests below tests/ that must pass before an op is measured, as patterns; by default those in ops/OP.
TESTS = {
    "mamba_block": ("package/test_nn*.py", "ops/selective_scan", "ops/causal_conv1d"),
    "transformers": ("package/test_compat*.py", "package/test_transformers*.py"),
    "overhead": ("ops/selective_scan", "ops/causal_conv1d", "ops/hsic"),
    "loading": ("training/data/images", "training/data/test_loader.py"),
}


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one variant: median, 20th and 80th percentile over the rounds."""

    median: float
    p20: float
    p80: float
    rounds: int


@dataclass
class VariantRun:
    """Samples of one variant, milliseconds, and the plan for them."""

    variant: Variant
    # Seconds of a call.
    estimate: float = 0.0
    repeats: int = 1
    rounds: int = ROUNDS
    samples: list[float] = field(default_factory=list)


def find_tests(op: str) -> list[str]:
    """Test files and folders of an operator. Raises RuntimeError when there are none for one of its patterns."""
    found: list[str] = []
    for pattern in TESTS.get(op, (f"ops/{op}",)):
        matches = sorted(str(path) for path in (ROOT / "tests").glob(pattern))
        if not matches:
            raise RuntimeError(f"bench: there are no tests of {op} (tests/{pattern}), so it is not measured")
        found += matches
    return found


def require_tests(op: str) -> None:
    """Runs the operator's tests, since the speed of a wrong kernel means nothing. Raises RuntimeError when they fail."""
    tests = find_tests(op)
    if subprocess.run([sys.executable, "-m", "pytest", "-x", *tests], cwd=ROOT).returncode != 0:
        raise RuntimeError(f"bench: the tests of {op} fail, so it is not measured")


def timing(milliseconds: Sequence[float]) -> Timing:
    """Median and percentiles of samples, without interpolation (except for the median of an even number)."""
    ordered = sorted(milliseconds)
    last = len(ordered) - 1
    median = (ordered[last // 2] + ordered[(last + 1) // 2]) / 2
    return Timing(median, ordered[round(last * 0.2)], ordered[round(last * 0.8)], len(ordered))


def _seconds(run: VariantRun, repeats: int) -> tuple[float, object]:
    with run.variant.around():
        start = time.perf_counter()
        # The result of a call is freed before the next call starts: two of them would not fit in the cache.
        for _ in range(repeats - 1):
            run.variant.call()
        result = run.variant.call()
        return (time.perf_counter() - start) / repeats, result


def check_variants(case: Case) -> tuple[list[VariantRun], dict[str, float], dict[str, str]]:
    """Runs every variant once and compares it with the exact result: (correct variants, all errors, reasons of the others).

    Raises RuntimeError when ours is wrong: that is an error of the program, not a row.
    """
    exact = None if case.exact is None else [t.detach() for t in case.exact()]
    correct, errors, refused = [], {}, {}
    for variant in case.variants:
        run = VariantRun(variant)
        try:
            run.estimate, result = _seconds(run, 1)
            if exact is not None and variant.checked:
                errors[variant.name] = relative_error(result, exact)
        except Exception as problem:  # a peer is foreign code: it may fail in any way, and the row gives the reason
            if variant.kind == "ours":
                raise
            refused[variant.name] = f"failed: {type(problem).__name__}: {str(problem).splitlines()[0][:120]}"
            continue
        if errors.get(variant.name, 0.0) > case.allowed():
            text = f"wrong: error {errors[variant.name]:.1e}, allowed {case.allowed():.0e}"
            if variant.kind == "ours":
                raise RuntimeError(f"bench: {case.op} {case.shape} {case.direction}: ours is {text}")
            refused[variant.name] = text
            continue
        correct.append(run)
    return correct, errors, refused


def time_variants(
    runs: Sequence[VariantRun], rounds: int = ROUNDS, tick: Callable[[str], None] = lambda _: None
) -> None:
    """Times every variant once per round, in turn, so that a slow phase of the machine affects all of them.

    The first estimate comes from the check. Slow peers end after SLOW_ROUNDS; if the fastest eager peer is one of them, it is
    measured together with ours until it has MIN_ROUNDS.
    """
    for run in runs:
        if run.variant.kind == "compiled":  # its check compiled, and its second call may do so again for a guard
            _seconds(run, 1)
            run.estimate = _seconds(run, 1)[0]
        elif run.estimate > VERY_SLOW_SECONDS:
            run.samples.append(run.estimate * 1e3)
        elif run.estimate < SLOW_SECONDS or run.variant.kind == "ours":
            run.estimate = min(run.estimate, _seconds(run, 1)[0])
        run.repeats = max(1, round(SAMPLE_SECONDS / max(run.estimate, 1e-7)))
        slow = run.estimate > SLOW_SECONDS and run.variant.kind != "ours"
        run.rounds = min(rounds, SLOW_ROUNDS) if slow else rounds
    for number in range(rounds):
        for run in runs:
            if len(run.samples) < run.rounds:
                tick(f"round {number + 1} of {rounds}, {run.variant.name}")
                run.samples.append(_seconds(run, run.repeats)[0] * 1e3)
    eager = [run for run in runs if run.variant.kind == "eager"]
    best = min(eager, key=lambda run: timing(run.samples).median, default=None)
    # Beyond VERY_SLOW_SECONDS a call (a model's backward over a loop takes a minute) three rounds must suffice.
    while best is not None and best.estimate <= VERY_SLOW_SECONDS and len(best.samples) < min(rounds, MIN_ROUNDS):
        for run in (best, *(run for run in runs if run.variant.kind == "ours")):
            tick(f"extra round, {run.variant.name}")
            run.samples.append(_seconds(run, run.repeats)[0] * 1e3)


def measure_case(
    case: Case,
    machine: Machine,
    rounds: int = ROUNDS,
    tick: Callable[[str], None] = lambda _: None,
    stopwatch: Callable[[Sequence[VariantRun], int, Callable[[str], None]], None] = time_variants,
) -> list[Row]:
    """Checks and measures a case: one row per variant; skipped and wrong ones have a note and no time.

    stopwatch: fills the samples of every run; a GPU needs another one. Raises RuntimeError when ours is wrong.
    """
    tick("float64 reference and check")
    runs, errors, refused = check_variants(case)
    stopwatch(runs, rounds, tick)
    timings = {run.variant.name: timing(run.samples) for run in runs}
    own = next(run.variant for run in runs if run.variant.kind == "ours")
    anchor = next((run.variant for run in runs if run.variant.kind == "anchor"), None)
    common = {k: getattr(case, k) for k in ("op", "shape", "order", "dtype", "direction")}
    made = []
    for run in runs:
        row = {**common, "variant": run.variant.name, "kind": run.variant.kind}
        row |= numbers(timings[run.variant.name], timings[own.name].median)
        if run.variant.kind != "anchor":
            row |= shares(case, machine, timings[run.variant.name].median)
        if run.variant is own and anchor is not None:
            row |= speeds(own, timings[own.name].median, anchor, timings[anchor.name].median)
        if run.variant.name in errors:
            row["error"] = f"{errors[run.variant.name]:.1e}"
        made.append(row)
    kinds = {variant.name: variant.kind for variant in case.variants}
    for name, note in {**refused, **case.skipped}.items():
        made.append({**common, "variant": name, "kind": kinds.get(name, "skipped"), "note": note})
    return made


def numbers(times: Timing, ours: float) -> Row:
    """The columns of a row's times, in milliseconds; `ours` is the median of ours."""
    values = {"median_ms": times.median, "p20_ms": times.p20, "p80_ms": times.p80, "times_ours": times.median / ours}
    return {"rounds": str(times.rounds)} | {key: f"{value:.4g}" for key, value in values.items()}


def shares(case: Case, machine: Machine, milliseconds: float) -> Row:
    """Shares of the copy bandwidth and of the machine's limit, as fractions; absent where they are undefined."""
    seconds = milliseconds / 1e3
    limit = limit_seconds(case.work, machine)
    row = {}
    if case.work.bytes:
        row["share_of_bandwidth"] = f"{bandwidth_seconds(case.work, machine) / seconds:.3f}"
    if limit:
        row["share_of_limit"] = f"{limit / seconds:.3f}"
    return row


def speeds(own: Variant, own_ms: float, anchor: Variant, anchor_ms: float) -> Row:
    """Our speed in this case relative to the main one: per element (B·D·L) and per element-state (B·D·L·N)."""
    row = {}
    for column, count in (("speed_per_element", "elements"), ("speed_per_state", "states")):
        here, there = getattr(own, count), getattr(anchor, count)
        if here and there:
            row[column] = f"{(here / own_ms) / (there / anchor_ms):.3f}"
    return row
