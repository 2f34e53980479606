"""Outcomes of GPU tests, and which cases of the GPU benchmark a failing test removes."""

import json
import os
import subprocess
import sys

import pytest
import torch

from bench.gpu import cases, commands, outcomes, processes, run, testing
from bench.gpu.steps import Outcome
from bench.harness.results import ROOT
from tests.support.triton.sample import ALWAYS, chosen

SCAN = {"dtype": "torch.bfloat16", "order": "bld", "length": "197"}
PAIR = {"dtype": "torch.float32", "kernel": "rbf", "samples": "64"}


def failure(op="selective_scan", backend="cuda", /, **parameters):
    return outcomes.Test(op, backend, "test_it", parameters)


def backends(groups):
    return {group.title: group.cases.args[3] for group in groups}


def test_a_failing_test_removes_its_case_and_no_other():
    failed = [failure(**SCAN, backend="cuda"), failure("hsic", "triton", **PAIR, estimator="biased")]
    before = backends(cases.groups(processes.MEASURED))
    after = backends(cases.groups(processes.MEASURED, failed=failed))
    changed = {title for title in before if before[title] != after.get(title)}
    assert changed == {
        "selective_scan 64 1536 197 BLD bfloat16",
        "hsic 16 64 768 rbf float32",
        "hsic 1 64 768 rbf float32",
        "hsic 64 64 768 rbf float32",
    }
    assert after["selective_scan 64 1536 197 BLD bfloat16"] == ("triton",)
    assert "hsic 16 64 768 rbf float32" not in after


CONCERNS = [
    ("selective_scan", {"dtype": "torch.bfloat16", "states": "16"}, True),
    ("selective_scan", {"dtype": "torch.bfloat16", "states": "17"}, False),
    ("selective_scan", {"dtype": "torch.float32", "length": "197"}, False),
    ("selective_scan", {"length": "197", "reverse": "False"}, True),
    ("selective_scan", {"length": "197", "reverse": "True"}, False),
    ("selective_scan", {"dtype": "torch.bfloat16", "shape": "(4, 256, 197, 16)"}, True),
    ("selective_scan", {"dtype": "torch.bfloat16", "shape": "(3, 50, 197, 64)"}, False),
    ("selective_scan", {"dtype": "torch.bfloat16", "shape": "(4, 256, 196, 16)"}, False),
    ("selective_scan", {"dtype": "torch.bfloat16", "padding": "0.3"}, False),
    ("selective_scan", {"order": "bld"}, False),
    ("selective_scan", {"order": "strided", "length": "197"}, False),
    ("selective_scan", {}, False),
    ("causal_conv1d", {"dtype": "torch.bfloat16", "width": "4"}, True),
    ("causal_conv1d", {"dtype": "torch.bfloat16", "width": "3"}, False),
    ("causal_conv1d", {"dtype": "torch.bfloat16", "shape": "(4, 256, 197)"}, True),
]


@pytest.mark.parametrize(("op", "parameters", "expected"), CONCERNS)
def test_what_a_test_is_about(op, parameters, expected):
    test = failure(op, "cuda", backend="cuda", **parameters)
    assert test.concerns(op, "cuda", SCAN) == expected
    assert not test.concerns(op, "triton", SCAN)


@pytest.mark.parametrize(
    ("parameters", "expected"), [({}, True), ({"estimator": "unbiased"}, False), ({"shape": 1}, True)]
)
def test_what_a_test_of_pairs_is_about(parameters, expected):
    named = {"dtype": "torch.float32", **parameters} | ({"shape": "(64, 9, 9)"} if "shape" in parameters else {})
    assert failure("hsic", "triton", **named).concerns("hsic", "triton", PAIR) == expected
    if "shape" in parameters:
        assert not failure("hsic", "triton", shape="(65, 9, 9)").concerns("hsic", "triton", PAIR)


TESTS = """
import os
import pytest

@pytest.mark.parametrize("backend", ["cuda"])
@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 6, 7])
def test_it(length, backend):
    if length == 2:
        pytest.skip("not here")
    assert length != 3, "wrong"
    if length == 4:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")
    if length == 6:
        os._exit(9)
"""
HOOKS = "pytest_collection_finish, pytest_collection_modifyitems, pytest_runtest_logstart, pytest_runtest_makereport"


@pytest.fixture
def process(tmp_path):
    """A process of GPU tests with the hooks of tests/gpu; one fails, one loses the device and one ends the process."""
    (tmp_path / "conftest.py").write_text(f"from tests.gpu.conftest import {HOOKS}  # noqa")
    (tmp_path / "test_made_up.py").write_text(TESTS)
    name = processes.name_of("causal_conv1d_update", "cuda", 1)
    path = tmp_path / f"{name}{outcomes.SUFFIX}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "BDAM_FAST_GPU_OUTCOMES": str(path)}
    command = [sys.executable, "-m", "bench.gpu.testing", "-q", "-p", "no:cacheprovider", "--import-mode=importlib"]
    command += ["--rootdir", str(tmp_path), str(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 1 and done.stdout.count("the device no longer responds") == 1, done.stdout + done.stderr
    return tmp_path, name, path


@pytest.mark.skipif(torch.cuda.is_available(), reason="the device would respond")
def test_tests_that_take_the_device_hide_no_others(process):
    """Three rounds: to 4, which loses the device; 5 and 6, which ends its process; 7."""
    folder, name, path = process
    failed, everything = outcomes.read_tests(path, "causal_conv1d_update", "cuda")
    assert [test.parameters["length"] for test in everything] == ["1", "2", "3", "4", "5", "6", "7"]
    assert [test.parameters["length"] for test in failed] == ["3", "4", "6"]
    assert failed[0].parameters == {"length": "3", "backend": "cuda"}
    begun = [json.loads(line)["test"] for line in path.read_text().splitlines() if '"passed": false' in line]
    assert len(begun) == len(set(begun)) == 7
    path.write_text(path.read_text() + '{"test": "cut o')
    assert outcomes.read_tests(path, "causal_conv1d_update", "cuda") == (failed, everything)
    refused = outcomes.refused(folder, {name: Outcome(name, 1, 1.0, path)})
    assert refused.tests == failed
    everywhere = {(op, backend) for op, found in processes.BACKENDS.items() for backend in found}
    assert refused.untested == everywhere - {("causal_conv1d_update", "cuda")}


def test_a_process_that_was_stopped(tmp_path):
    """A test that has begun, and one that has not, did not pass."""
    lines = [{"test": name, "parameters": {"length": name}} for name in "abc"]
    lines += [{"test": "a", "passed": False}, {"test": "a", "passed": True}, {"test": "b", "passed": False}]
    path = tmp_path / "x"
    path.write_text("\n".join(map(json.dumps, lines)))
    failed, _ = outcomes.read_tests(path, "hsic", "triton")
    assert [test.name for test in failed] == ["b", "c"]


@pytest.mark.parametrize(
    ("codes", "expected", "rounds"), [([0], 0, 1), ([1], 1, 1), ([2, 2, 5], 1, 3), ([-9, 0], 1, 2)]
)
def test_rounds_of_tests(codes, expected, rounds, monkeypatch, tmp_path):
    """Again after an end that is none of pytest's own, as long as something was noted."""
    notes, left = tmp_path / "notes", list(codes)

    def run_once(command):
        with notes.open("a") as file:
            file.write("begun ")
        return subprocess.CompletedProcess(command, left.pop(0))

    monkeypatch.setattr(testing.subprocess, "run", run_once)
    assert testing.run(["tests/gpu"], notes) == expected and len(codes) - len(left) == rounds


def test_rounds_end_where_nothing_is_begun_or_every_test_takes_the_device(monkeypatch, tmp_path):
    calls = []
    monkeypatch.setattr(testing.subprocess, "run", lambda c: calls.append(c) or subprocess.CompletedProcess(c, 2))
    assert testing.run([], tmp_path / "none") == 1 and len(calls) == 1
    notes = tmp_path / "notes"

    def longer(command):
        notes.write_text("x" * (len(calls) + 1))
        calls.append(command)
        return subprocess.CompletedProcess(command, 2)

    monkeypatch.setattr(testing.subprocess, "run", longer)
    assert testing.run([], notes) == 1 and len(calls) == 1 + testing.ROUNDS


def written(folder, name, *tests):
    lines = []
    for parameters, passed in tests:
        test = f"test[{parameters}]"
        lines += [{"test": test, "parameters": parameters}, *([{"test": test, "passed": True}] if passed else [])]
    (folder / f"{name}{outcomes.SUFFIX}").write_text("\n".join(map(json.dumps, lines)))


def test_the_benchmark_is_given_what_failed(tmp_path, capsys):
    """Scan: a case failed by both backends; convolution: by CUDA a process left no list; hsic: none ran."""
    done = {}
    for (op, backend), count in processes.PROCESSES.items():
        for number in range(1, count + 1):
            name = processes.name_of(op, backend, number)
            if op != "hsic":
                done[name] = Outcome(name, 0, 1.0, tmp_path)
            if (op, backend, number) != ("causal_conv1d", "cuda", 2):
                written(tmp_path, name, ({"dtype": "torch.float32", "length": "1"}, True))
    written(tmp_path, processes.name_of("selective_scan", "cuda", 1), (SCAN, False), ({"length": "9"}, True))
    written(tmp_path, processes.name_of("selective_scan", "triton", 2), (SCAN, False), ({"length": "9"}, True))
    step = commands.Commands(tmp_path)("bench", done)
    options = run.arguments(list(step.command[3:]))
    assert dict(options.ops) == {"selective_scan": ["cuda", "triton"], "causal_conv1d": ["triton"]}
    assert step.environment == {"BDAM_FAST_PEERS": ""}
    titles = [group.title for group in run.chosen_groups(options)]
    gone = "selective_scan 64 1536 197 BLD bfloat16"
    assert gone not in titles and "selective_scan 64 1536 193 BLD bfloat16" in titles
    assert f"not measured, for tests of these cases failed: {gone}\n" in capsys.readouterr().out


def test_what_does_not_fit_into_the_benchmark_s_time_is_said(capsys):
    groups = run.chosen_groups(run.arguments(["--ops", "hsic=triton", "--seconds", "4.0"]))
    assert [group.title for group in groups] == ["hsic 16 64 768 linear float32", "hsic 16 64 768 rbf float32"]
    assert "cut, for they do not fit into 4 s: hsic 1 1024 256 linear float32; " in capsys.readouterr().out


def test_a_sample_has_every_value_of_every_parameter():
    runs = [
        {"dtype": d, "order": o, "length": n, "kernel": k, "estimator": e}
        for n in map(str, range(1, 16))
        for d in "abc"
        for o in "xy"
        for k in "pq"
        for e in "st"
    ]
    kept = [runs[at] for at in chosen(runs)]
    assert len(kept) == 15
    for name in runs[0]:
        assert {run[name] for run in kept} == {run[name] for run in runs}
    assert {(run["kernel"], run["estimator"]) for run in kept} == {(k, e) for k in "pq" for e in "st"}
    assert chosen([{}]) == [0] and chosen([{"order": "x"}, {"order": "y"}]) == [0, 1]


def test_lengths_that_are_measured_are_all_in_the_sample():
    runs = [{"length": n, "dtype": d, "order": o} for n in ("1", "2", "192", "197") for d in "abc" for o in "xy"]
    kept = [runs[at] for at in chosen(runs)]
    assert sum(run["length"] in ("192", "197") for run in kept) == 12 and len(kept) == 14
    measured = {str(shape[2]) for _, shape, _, _ in cases.STREAMS}
    assert ALWAYS["length"] <= measured
