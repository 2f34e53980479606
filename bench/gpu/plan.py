"""The plan of `make gpu`: its steps in order, the seconds that each may take, and a simulation of the whole from counted costs.

`python -m bench.gpu --plan` prints it, without a GPU. All seconds of a share stand in STEPS, all counted costs in costs.json. The
shares alone bound a run: with every step stopped at the end of its share it takes `total(shares)`, which is at most TOTAL. The
simulation says whether the steps should fit into their shares on CORES cores.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

from bench.gpu import cases
from bench.gpu.processes import COSTS, MEASURED, PROCESSES, name_of, names_of

# Steps that are no commands of their own.
IN_PROCESS = ("checks", "pack")
CORES = 16
TOTAL = 540.0
BENCH_SHARE = 130.0
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
        nice: its jobs take only cores that no other step wants.
    """

    name: str
    share: float
    jobs: tuple[float, ...]
    after: tuple[str, ...] = ()
    lanes: int = 1
    end: float = 0.0
    nice: bool = False


def seconds_of_tests(op: str, backend: str) -> float:
    """Seconds of a core of the slowest process of an operator's tests by a backend: references, and what is compiled."""
    costs = COSTS["tests"][op]
    even = (costs["references"] + costs["inductor"] * COSTS["inductor_seconds"]) / PROCESSES[op, backend]
    return even + (costs["slowest"] if backend == "triton" else 0.0) + COSTS["start"]


def compile_seconds(kernels: dict[str, int]) -> float:
    """Seconds of a core that Triton takes for so many variants of each kernel."""
    return sum(count * COSTS["triton_seconds"][name] for name, count in kernels.items())


def steps_of_tests(backend: str, share: float, after: str) -> list[Planned]:
    """Steps of a backend's tests, the longest first."""
    made = []
    for (op, b), processes in PROCESSES.items():
        jobs = (seconds_of_tests(op, b),)
        made += [Planned(name_of(op, b, n + 1), share, jobs, (after,)) for n in range(processes) if b == backend]
    return sorted(made, key=lambda step: -step.jobs[0])


def sanitizer_step(tool: str, backend: str, share: float, after: Sequence[str]) -> Planned:
    """compute-sanitizer's step; Triton's kernels come from the cache that the tests have filled."""
    tests = COSTS["sanitized"][f"{tool}-{backend}"] * COSTS["sanitized_seconds"][tool]
    return Planned(f"{tool}-{backend}", share, (tests + COSTS["start"],), tuple(after))


def seconds_of_groups() -> float:
    """Seconds of the cases that are measured."""
    chosen, _ = cases.within(cases.groups(MEASURED), bench_seconds())
    return sum(group.seconds for group in chosen)


def build_step(share: float) -> Planned:
    """The build: a job for each file, the longest first, then the link."""
    files = sorted((s for seconds in COSTS["nvcc"].values() for s in seconds), reverse=True)
    return Planned("build", share, tuple(files), ("checks",), 8, COSTS["link"])


def all_steps() -> list[Planned]:
    """All steps in order: each after those that it waits for."""
    start = ("checks",)
    steps = [
        Planned("checks", 15, (COSTS["checks"],)),
        build_step(170),
        *steps_of_tests("triton", 240, "checks"),
        Planned("compile", 240, (compile_seconds(COSTS["benchmark"]) + COSTS["start"],), start),
        Planned("sizes", 120, (compile_seconds(COSTS["tuning"]) + COSTS["start"],), start),
        Planned("peers", 300, tuple(COSTS["peers"]), start, 12, COSTS["link"], nice=True),
        Planned("load", 25, (COSTS["start"],), ("build",)),
        *steps_of_tests("cuda", 90, "load"),
        sanitizer_step("memcheck", "cuda", 125, ["load"]),
        sanitizer_step("racecheck", "cuda", 125, ["load"]),
        sanitizer_step("memcheck", "triton", 80, names_of("triton")),
        Planned("inductor", 125, (COSTS["inductor"], COSTS["inductor"]), ("load",), 2, COSTS["start"]),
        Planned("pipeline", 125, (COSTS["start"] + COSTS["pipeline"],), ("load",), 2),
    ]
    everything = tuple(step.name for step in steps)
    steps.append(Planned("bench", BENCH_SHARE, (COSTS["start"] + seconds_of_groups(),), everything))
    steps.append(Planned("tune", 20, (COSTS["start"] + COSTS["tune"],), ("bench",)))
    steps.append(Planned("training", 50, (COSTS["start"] + COSTS["training"],), ("tune",)))
    steps.append(Planned("pack", 5, (COSTS["pack"],), ("training",)))
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
    """A step in the simulation: its jobs that wait, the rest of those that run, and when it started and ended."""

    step: Planned
    waiting: list[float]
    running: list[float] = field(default_factory=list)
    started: float | None = None
    ended: float | None = None

    def fill(self, now: float) -> None:
        """Starts jobs on free lanes; after the last job the end, as a job of its own; then the step has ended."""
        self.started = now if self.started is None else self.started
        while self.waiting and len(self.running) < self.step.lanes:
            self.running.append(self.waiting.pop(0))
        if self.step.end and not self.running:
            self.running, self.step = [self.step.end], replace(self.step, end=0.0)
        if not self.running:
            self.ended = now

    def advance(self, seconds: float) -> None:
        """Lets so many seconds of a core pass on each running job."""
        self.running = [rest - seconds for rest in self.running if rest - seconds > 1e-9]


def simulate(cores: int = CORES, steps: Sequence[Planned] | None = None) -> dict[str, tuple[float, float]]:
    """Returns (start, end) in seconds of each step; shares stop nothing here.

    All jobs that could run do, and share the cores evenly, as the system has them; the jobs of a nice step take what the
    others leave.
    """
    states = {step.name: _Progress(step, list(step.jobs)) for step in (all_steps() if steps is None else steps)}
    now = 0.0
    while any(state.ended is None for state in states.values()):
        open_ = [
            s for s in states.values() if s.ended is None and all(states[n].ended is not None for n in s.step.after)
        ]
        for state in open_:
            state.fill(now)
        if any(state.ended is not None for state in open_):
            continue
        first = sum(len(state.running) for state in open_ if not state.step.nice)
        last = sum(len(state.running) for state in open_ if state.step.nice)
        rate = min(1.0, cores / max(first, 1))
        rates = {False: rate, True: min(1.0, (cores - rate * first) / max(last, 1))}
        moving = [state for state in open_ if rates[state.step.nice] > 0]
        passed = min(min(state.running) / rates[state.step.nice] for state in moving)
        for state in moving:
            state.advance(passed * rates[state.step.nice])
        now += passed
    return {name: (state.started or 0.0, state.ended or 0.0) for name, state in states.items()}


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
