"""The plan of `make gpu`: its steps in order, the seconds that each may take, and a simulation of the whole from counted costs.

`python -m bench.gpu --plan` prints it, without a GPU. All seconds of a share stand in STEPS, all counted costs in costs.json. The
shares alone bound a run: with every step stopped at the end of its share it takes `total(shares)`, which is at most TOTAL. The
simulation says whether the steps should fit into their shares; it gives each job a core of CORES, the first in the plan first.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from bench.gpu import cases
from bench.gpu.costs import COSTS
from bench.gpu.processes import MEASURED, PROCESSES, name_of, names_of

# Steps that are no commands of their own.
IN_PROCESS = ("checks", "pack")
CORES = 16
TOTAL = 540.0
BENCH_SHARE = 215.0
# Of the benchmark's share, for its start and its table.
BENCH_END = 15.0


@dataclass(frozen=True)
class Planned:
    """A step of the plan.

    Args:
        share: seconds after its start at which it is stopped.
        jobs: counted seconds of a core, job by job.
        after: steps that end before it starts.
        lanes: jobs at a time.
        end: seconds on one core after the jobs.
    """

    name: str
    share: float
    jobs: tuple[float, ...]
    after: tuple[str, ...] = ()
    lanes: int = 1
    end: float = 0.0


def seconds_of_tests(op: str, backend: str) -> float:
    """Seconds of a core that an operator's tests by a backend take: references, and what Triton compiles."""
    references = COSTS["tests"][op]["references"] + COSTS["tests"][op]["inductor"] * COSTS["inductor_seconds"]
    return references + (compile_seconds(COSTS["tests"][op]["triton"]) if backend == "triton" else 0.0)


def compile_seconds(kernels: dict[str, int]) -> float:
    """Seconds of a core that Triton takes for so many variants of each kernel."""
    return sum(count * COSTS["triton_seconds"][name] for name, count in kernels.items())


def steps_of_tests(backend: str, share: float, after: str) -> list[Planned]:
    """Steps of a backend's tests, the longest first."""
    made = []
    for (op, b), processes in PROCESSES.items():
        seconds = seconds_of_tests(op, b) / processes + COSTS["start"]
        made += [Planned(name_of(op, b, n + 1), share, (seconds,), (after,)) for n in range(processes) if b == backend]
    return sorted(made, key=lambda step: -step.jobs[0])


def sanitizer_step(tool: str, backend: str, share: float, after: Sequence[str]) -> Planned:
    """compute-sanitizer's step; Triton's kernels come from the cache that the tests have filled."""
    tests = COSTS["sanitized"][f"{tool}-{backend}"] * COSTS["sanitized_seconds"]
    return Planned(f"{tool}-{backend}", share, (tests + COSTS["start"],), tuple(after))


def seconds_of_groups() -> float:
    """Seconds of the cases that are measured."""
    chosen, _ = cases.within(cases.groups(MEASURED), bench_seconds())
    return sum(group.seconds for group in chosen)


def build_step(share: float) -> Planned:
    """The build: a job for each file, the longest first, then the link."""
    files = sorted((s for seconds in COSTS["nvcc"].values() for s in seconds), reverse=True)
    return Planned("build", share, tuple(files), ("checks",), 9, COSTS["link"])


def all_steps() -> list[Planned]:
    """All steps in order: of two that could start, the first one gets the cores."""
    start = ("checks",)
    steps = [
        Planned("checks", 15, (COSTS["checks"],)),
        build_step(170),
        *steps_of_tests("triton", 240, "checks"),
        Planned("compile", 240, (compile_seconds(COSTS["benchmark"]) + COSTS["start"],), start),
        Planned("peers", 285, tuple(COSTS["peers"]), start, 4, COSTS["link"]),
        Planned("load", 10, (COSTS["start"],), ("build",)),
        *steps_of_tests("cuda", 90, "load"),
        sanitizer_step("memcheck", "cuda", 105, ["load"]),
        sanitizer_step("racecheck", "cuda", 105, ["load"]),
        sanitizer_step("memcheck", "triton", 45, names_of("triton")),
    ]
    everything = tuple(step.name for step in steps)
    steps.append(Planned("bench", BENCH_SHARE, (COSTS["start"] + seconds_of_groups(),), everything))
    steps.append(Planned("pack", 5, (COSTS["pack"],), ("bench",)))
    return steps


def without(step: Planned, names: Sequence[str]) -> Planned:
    """The step, which waits for none of these."""
    return replace(step, after=tuple(name for name in step.after if name not in names))


def by_name() -> dict[str, Planned]:
    """The steps by their names."""
    return {step.name: step for step in all_steps()}


def total(seconds: Callable[[Planned], float], steps: Sequence[Planned] | None = None) -> float:
    """Seconds of a run in which each step takes `seconds(step)`: of the longest chain of steps that wait for each other."""
    ends: dict[str, float] = {}
    for step in all_steps() if steps is None else steps:
        ends[step.name] = max((ends[name] for name in step.after), default=0.0) + seconds(step)
    return max(ends.values())


@dataclass
class _Progress:
    """A step in the simulation: what is left of it, when it started and when it ended."""

    step: Planned
    jobs: list[float]
    running: int = 0
    started: float | None = None
    ended: float | None = None

    def __post_init__(self) -> None:
        self.closing = self.step.end == 0  # the last job is on its way, or there is none

    def next_job(self) -> float | None:
        """Seconds of a job that can start now."""
        if self.jobs and self.running < self.step.lanes:
            return self.jobs.pop(0)
        if not self.jobs and not self.running and not self.closing:
            self.closing = True
            return self.step.end
        return None


def simulate(cores: int = CORES, steps: Sequence[Planned] | None = None) -> dict[str, tuple[float, float]]:
    """Returns (start, end) in seconds of each step, whose jobs take the cores that are free; shares stop nothing here."""
    states = {step.name: _Progress(step, list(step.jobs)) for step in (all_steps() if steps is None else steps)}
    ends: list[tuple[float, str]] = []
    now, free = 0.0, cores
    while True:
        for state in states.values():
            if any(states[name].ended is None for name in state.step.after):
                continue
            state.started = now if state.started is None else state.started
            while free and (seconds := state.next_job()) is not None:
                heapq.heappush(ends, (now + seconds, state.step.name))
                free, state.running = free - 1, state.running + 1
        if not ends:
            return {name: (_known(s.started), _known(s.ended)) for name, s in states.items()}
        now, name = heapq.heappop(ends)
        state = states[name]
        free, state.running = free + 1, state.running - 1
        if not state.jobs and not state.running and state.closing:
            state.ended = now


def _known(value: float | None) -> float:
    assert value is not None, "a step waits for one that is not in the plan"
    return value


def lines(cores: int = CORES) -> Iterable[str]:
    """The plan as text: the steps in order of their starts, then what is measured in order, and what is cut."""
    times = simulate(cores)
    ordered = sorted(all_steps(), key=lambda step: times[step.name])
    yield f"{'step':34}{'starts':>8}{'ends':>8}{'takes':>8}{'share':>8}   at the same time"
    for step in ordered:
        begin, end = times[step.name]
        beside = [o.name for o in ordered if o is not step and times[o.name][0] < end and times[o.name][1] > begin]
        yield f"{step.name:34}{begin:8.0f}{end:8.0f}{end - begin:8.0f}{step.share:8.0f}   {len(beside) or 'nothing'}"
    chosen, cut = cases.within(cases.groups(MEASURED), bench_seconds())
    yield "\nMeasured, in this order (both directions of each):"
    for number, group in enumerate(chosen, 1):
        yield f"{number:4}. {group.title} ({group.seconds:.1f} s)"
    yield f"Cut, for they do not fit: {'; '.join(group.title for group in cut) or 'nothing'}"
    yield f"\nExpected on {cores} cores, by the costs in bench/gpu/costs.json: {times['pack'][1]:.0f} s"
    yield f"At most, every step stopped at the end of its share: {total(lambda step: step.share):.0f} s, of {TOTAL:.0f} s"


def bench_seconds() -> float:
    """Seconds of the benchmark's share that its cases may take."""
    return BENCH_SHARE - BENCH_END
