"""The plan of `make gpu`: it fits into ten minutes, and the run is the plan."""

import json
import os
import re
import subprocess
import sys
from collections import defaultdict
from typing import Any

import pytest

from bench.gpu import __main__ as gpu
from bench.gpu import cases, commands, plan, processes
from bench.gpu.plan import Planned
from bench.gpu.steps import Outcome
from bench.harness.results import ROOT
from tests.support.triton.sample import shared


def test_the_whole_takes_at_most_nine_minutes():
    """With every step stopped at the end of its share: nothing that a machine does makes it longer."""
    assert plan.total(lambda step: step.share) <= plan.TOTAL == 540


def test_every_step_should_end_within_its_share():
    times = plan.simulate()
    late = {s.name: times[s.name] for s in plan.all_steps() if times[s.name][1] - times[s.name][0] > s.share}
    assert late == {}
    assert times["pack"][1] == max(end for _, end in times.values()) <= plan.TOTAL


def test_what_is_timed_runs_alone():
    times = plan.simulate()
    for step in plan.all_steps():
        begin, end = times[step.name]
        for alone in {"bench", "tune", "training"} - {step.name}:
            assert end <= times[alone][0] or begin >= times[alone][1], (step.name, alone)


def test_the_steps_are_a_chain_without_gaps():
    """Names are unique, and a step waits for earlier ones only, which a run relies on."""
    seen = []
    for step in plan.all_steps():
        assert step.name not in seen and set(step.after) <= set(seen), step.name
        assert step.share > 0 and step.jobs and step.lanes >= 1
        seen.append(step.name)
    assert (seen[0], seen[-1]) == plan.IN_PROCESS


def test_every_operator_and_backend_is_tested_in_every_process():
    names = set(plan.by_name())
    shares = defaultdict(list)
    for (op, backend), count in processes.PROCESSES.items():
        for number in range(1, count + 1):
            assert processes.name_of(op, backend, number) in names
            shares[op, backend].append(number)
    assert shares.keys() == {(op, b) for op, backends in processes.BACKENDS.items() for b in backends}
    assert sum(name.startswith("test-") for name in names) == sum(processes.PROCESSES.values())
    files = {path.name for path in (ROOT / "tests/gpu").glob("test_*.py")}
    assert files == {f"test_{op}.py" for op in processes.OPERATORS}


def test_a_simulation_by_hand():
    """a has three jobs of which two run at a time, and a link; jobs share the cores; n takes what they leave."""
    steps = [
        Planned("a", 99, (4.0, 2.0, 1.0), lanes=2, end=1.0),
        Planned("b", 99, (2.0,)),
        Planned("c", 99, (1.0,), ("a", "b")),
    ]
    assert plan.simulate(9, steps) == {"a": (0.0, 5.0), "b": (0.0, 2.0), "c": (5.0, 6.0)}
    # Three jobs on two cores until 3.0, when 2 seconds of each are done; then two with a core each until 5.0.
    assert plan.simulate(2, steps) == {"a": (0.0, 6.0), "b": (0.0, 3.0), "c": (6.0, 7.0)}
    assert plan.simulate(1, steps)["c"] == (10.0, 11.0)
    assert plan.total(lambda step: sum(step.jobs), steps) == 8.0
    nice = [*steps, Planned("n", 99, (3.0,), nice=True)]
    assert plan.simulate(2, nice) == plan.simulate(2, steps) | {"n": (0.0, 7.0)}


def test_a_simulation_with_a_step_that_is_not_there():
    with pytest.raises(KeyError):
        plan.simulate(2, [Planned("c", 99, (1.0,), ("nowhere",))])


def test_the_plan_is_printed_in_order_and_says_what_is_measured(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["gpu", "--plan"])
    gpu.main()
    words = capsys.readouterr().out
    names = re.findall(r"^([\w-]+) +\d+ +\d+ +\d+ +\d+ ", words, re.M)
    assert sorted(names) == sorted(plan.by_name()) and (names[0], names[-1]) == plan.IN_PROCESS
    assert re.search(r"^bench .* nothing$", words, re.M)
    titles = re.findall(r"^ *\d+\. (.*) \([\d.]+ s\)$", words, re.M)
    chosen, cut = cases.within(cases.groups(processes.MEASURED), plan.bench_seconds())
    assert titles == [group.title for group in chosen]
    assert titles[0].startswith("selective_scan 64 1536 192 BLD") and all(group.title in words for group in cut)
    assert f"of {plan.TOTAL:.0f} s" in words.splitlines()[-1]


def test_what_does_not_fit_is_cut_from_the_end():
    groups = [cases.Group(0, "hsic", name, list, seconds) for name, seconds in (("a", 3), ("b", 4), ("c", 1))]
    for seconds, expected in ((8, "abc"), (7.5, "ab"), (6, "a"), (2, "")):
        chosen, cut = cases.within(groups, seconds)
        assert "".join(group.title for group in chosen) == expected
        assert chosen + cut == groups


def test_longer_sequences_and_compiled_peers_are_estimated_longer():
    seconds = {group.title: group.seconds for group in cases.groups(processes.MEASURED)}
    base = processes.COSTS["group"]["base"]
    long, short = (seconds[f"selective_scan 2 1536 {length} BLD bfloat16"] - base for length in (8192, 2048))
    assert long > 2 * short > 0
    compiled = seconds["causal_conv1d 64 768 256 BLD bfloat16"]
    assert compiled > seconds["causal_conv1d 64 768 256 BDL bfloat16"] + processes.COSTS["inductor_seconds"]
    assert all(value >= processes.COSTS["group"]["base"] for value in seconds.values())


def test_every_step_of_the_plan_has_a_command(tmp_path, monkeypatch):
    """And no other: the run has no steps but the plan's."""
    monkeypatch.setattr(commands.torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(commands.shutil, "which", lambda name: name)
    done = {"load": Outcome("load", 0, 1.0, tmp_path), "peers": Outcome("peers", 0, 1.0, tmp_path)}
    make = commands.Commands(tmp_path)
    made = {}
    for step in plan.all_steps():
        if step.name not in (*plan.IN_PROCESS, "bench"):
            made[step.name] = make(step.name, done)
            assert made[step.name].name == step.name
    assert made["build"].environment["TORCH_CUDA_ARCH_LIST"] == "9.0"
    assert made["build"].environment["MAX_JOBS"] == str(plan.by_name()["build"].lanes)
    assert made["test-hsic-triton-2"].environment["BDAM_FAST_GPU_SHARE"] == f"2/{processes.PROCESSES['hsic', 'triton']}"
    assert "tests/gpu/test_hsic.py" in made["test-hsic-triton-2"].command
    assert made["racecheck-cuda"].command[:3] == ["compute-sanitizer", "--tool", "racecheck"]
    assert made["tune"].command[-3:] == ["--backends", "cuda", "triton"]
    assert make("tune", {}).command[-2:] == ["--backends", "triton"]
    assert made["inductor"].command == [*made["training"].command, "--compile"]
    assert f"{plan.bench_seconds():.0f}" in made["compile"].command and "hsic=triton" in made["compile"].command
    assert not any("cuda" in word for word in made["compile"].command[1:]), "the library is built beside it"


def test_what_is_left_out_says_why(tmp_path, monkeypatch):
    monkeypatch.setattr(commands.shutil, "which", lambda name: None)
    make = commands.Commands(tmp_path, ["triton"], ["peers", "sanitizer"])
    assert (
        make("build", {})
        == make("load", {})
        == make("test-causal_conv1d-cuda-1", {})
        == "--backends does not name cuda"
    )
    assert make("peers", {}) == make("memcheck-triton", {}) == "--skip names it"
    assert commands.Commands(tmp_path)("test-causal_conv1d-cuda-1", {}) == "the library was not built or does not load"
    assert "is not on the PATH" in commands.Commands(tmp_path)("memcheck-triton", {})
    assert commands.Commands(tmp_path, ["cuda"])("compile", {}) == "--backends does not name triton"
    assert commands.Commands(tmp_path, ["cuda"])("tune", {}) == "the library was not built or does not load"
    assert commands.Commands(tmp_path, skip=["training"])("inductor", {}) == "--skip names it"
    monkeypatch.setattr(commands, "PIPELINE", ("numpy", "no_such_package"))
    assert make("training", {}) == "the training pipeline needs no_such_package, not installed here"
    assert make("bench", {}) == "no backend passed a test, so nothing is measured"


def recounted(*arguments: str) -> dict[str, Any]:
    """The counts of tests/support/triton/census.py."""
    pytest.importorskip("triton")
    command = [sys.executable, "-m", "tests.support.triton.census", *arguments]
    environment = {**os.environ, "BDAM_FAST_GPU_SAMPLE": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_the_compilations_of_the_benchmark_are_counted_again():
    assert recounted("--benchmark") == {"triton": processes.COSTS["benchmark"]}


@pytest.mark.slow
@pytest.mark.parametrize("op", processes.OPERATORS)
def test_the_compilations_of_the_tests_are_counted_again(op):
    counted = recounted(f"tests/gpu/test_{op}.py", "--shares", str(processes.PROCESSES[op, "triton"]))
    assert counted == {name: processes.COSTS["tests"][op][name] for name in counted}


def test_processes_get_neighbours_of_about_the_same_weight():
    functions = ["a"] * 4 + ["b"] * 8 + ["c"] * 2
    weights = {"a": 36.0, "c": 38.0}
    found = [shared(functions, weights, number, 3) for number in (1, 2, 3)]
    assert sum(found, []) == list(range(14)) and found == [[0, 1, 2], [*range(3, 13)], [13]]
    assert shared(functions, weights, 1, 1) == list(range(14)) and shared([], {}, 1, 2) == []
