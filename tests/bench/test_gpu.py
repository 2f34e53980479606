"""The GPU benchmark's own code, as far as it runs without a GPU: steps, peers, timing, rows, tables and the prediction."""

import re
import subprocess
import sys
import tarfile
from dataclasses import dataclass

import pytest
import torch

from bench.gpu import __main__ as gpu
from bench.gpu import commands, plan, run, steps, timer
from bench.harness import gpu_table, measure, report, results
from bench.harness.case import Variant
from bench.harness.results import ROOT

NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a GPU")
FACTS = {"gpu": "NVIDIA X100 80GB", "gpu_memory_gib": "80", "driver": "1.2", "cuda": "13.0", "triton": "3.6.0"}
FACTS |= {"copy_gb_s": "4300", "clock_mhz": "1700"}


def stopwatch() -> timer.Stopwatch:
    return timer.Stopwatch("cpu", flush_bytes=2**10)


@NO_GPU
@pytest.mark.parametrize(("module", "code"), [("bench.gpu", 2), ("bench.gpu.run", 1)])
def test_refused_without_a_gpu(module, code):
    done = subprocess.run([sys.executable, "-m", module], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == code and "GPU" in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_nothing_but_torch_is_needed():
    """The GPU machine may have no other package of the benchmark's extra."""
    absent = ("tyro", "rich", "matplotlib", "numpy", "transformers", "mambapy", "hypothesis")
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({absent})); import bench.gpu, bench.gpu.run, bench.gpu.roofline"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_obstacles_name_what_is_missing(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(gpu.shutil, "which", lambda name: None)
    monkeypatch.setattr(gpu.cpp_extension, "is_ninja_available", lambda: False)
    monkeypatch.setattr(gpu.importlib.util, "find_spec", lambda name: None)
    words = "\n".join(gpu.obstacles())
    for part in ("is not a CUDA build", "nvcc was not found", "package setuptools", "package pytest"):
        assert part in words
    assert "ninja was not found; install it with `pip install ninja`" in words
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(gpu.shutil, "which", lambda name: name)
    monkeypatch.setattr(gpu.cpp_extension, "is_ninja_available", lambda: True)
    monkeypatch.setattr(gpu.importlib.util, "find_spec", lambda name: object())
    assert gpu.obstacles() == ["this PyTorch finds no GPU (is the driver loaded? try nvidia-smi)"]


@dataclass
class Short:
    """A step of a plan made up."""

    name: str
    share: float = 30.0
    after: tuple[str, ...] = ()


def script(name, code, **environment):
    return steps.Step(name, [sys.executable, "-c", code], environment)


def test_steps_run_side_by_side_and_say_how_they_ended(tmp_path, capsys):
    codes = {"good": "print('fine')", "bad": "print('why'); raise SystemExit(3)", "slow": "import time; time.sleep(60)"}
    codes["told"] = "import os; print(os.environ['WORD'])"
    planned = [Short(name, 1.0 if name == "slow" else 30.0) for name in codes]
    run = steps.Run(planned, lambda name, done: script(name, codes[name], WORD="said"), tmp_path)
    outcomes = {outcome.name: outcome for outcome in run.all()}
    assert {name: o.code for name, o in outcomes.items()} == {"good": 0, "bad": 3, "slow": None, "told": 0}
    assert {name for name, o in outcomes.items() if o.passed} == {"good", "told"}
    assert (tmp_path / "told.log").read_text().strip() == "said"
    words = capsys.readouterr().out
    assert "good: ok" in words and "bad: FAILED (exit code 3)" in words and "why" in words
    assert "slow: STOPPED at the end of its share" in words and outcomes["slow"].seconds < 30


def test_a_step_waits_for_those_before_it_however_they_end(tmp_path, capsys):
    """`last` sees what the others have left, one of which fails, and one of which is left out."""
    planned = [Short("first"), Short("gone", after=("first",)), Short("bad", after=("first",))]
    planned.append(Short("last", after=("gone", "bad")))
    seen = {}

    def make(name, done):
        seen[name] = {key: outcome.code for key, outcome in done.items()}
        if name == "gone":
            return "nothing to do"
        return script(name, "raise SystemExit(1)" if name == "bad" else "")

    names = [outcome.name for outcome in steps.Run(planned, make, tmp_path).all()]
    assert names == ["first", "bad", "last"] and seen["last"] == {"first": 0, "bad": 1}
    assert "[left out] gone: nothing to do" in capsys.readouterr().out


def test_an_interrupted_run_leaves_no_process(tmp_path):
    def make(name, done):
        if name == "breaks":
            raise KeyboardInterrupt
        return script(name, "import time; time.sleep(60)")

    run = steps.Run([Short("sleeps"), Short("breaks")], make, tmp_path)
    with pytest.raises(KeyboardInterrupt):
        run.all()
    assert [process.poll() is None for process, _, _ in run._running.values()] == [False]


@pytest.fixture
def pretended(monkeypatch, tmp_path):
    """A machine with a GPU whose steps print their name; `codes` has the exit codes of those that fail."""
    codes: dict[str, int] = {}

    class Pretended(commands.Commands):
        def __call__(self, name, done):
            made = super().__call__(name, done)
            if isinstance(made, str):
                return made
            if name.startswith("test-"):
                (self.folder / f"{name}.tests.jsonl").write_text('{"test": "t", "parameters": {"dtype": "no"}}\n')
            words = " ".join(made.command[made.command.index("--ops") :]) if name == "bench" else ""
            return script(name, f"print('did {name} {words}'); raise SystemExit({codes.get(name, 0)})")

    logs = tmp_path / "logs"
    logs.mkdir()
    (logs / "old.log").write_text("of an earlier run")
    monkeypatch.setattr(steps, "LOGS", logs)
    monkeypatch.setattr(gpu, "Commands", Pretended)
    monkeypatch.setattr(gpu, "obstacles", list)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "X100")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(commands.shutil, "which", lambda name: name)
    monkeypatch.setattr(results, "RESULTS", tmp_path / "rows")
    monkeypatch.setattr(sys, "argv", ["gpu"])
    monkeypatch.setenv("RESULTS", str(tmp_path / "out"))
    return codes


@pytest.mark.parametrize(
    ("fails", "code"),
    [({}, 0), ({"test-hsic-triton-1": 1}, 1), ({"load": 1}, 1)],
    ids=["all well", "a test fails", "what was built does not load"],
)
def test_all_steps(pretended, fails, code, capsys, tmp_path):
    """The run is the plan; a failing test fails the whole, and what is left is measured; without a library Triton alone is."""
    pretended.update(fails)
    results.append([{"op": "x", "variant": "a"}], results.RESULTS, **FACTS)
    with pytest.raises(SystemExit) as end:
        gpu.main()
    words = capsys.readouterr().out
    assert end.value.code == code
    ran = re.findall(r"^ +did ([\w-]+)", words, re.M) + re.findall(r"\] ([\w-]+): FAILED", words)
    ran = {name for name in ran if name in plan.by_name()}
    absent = {name for name in plan.by_name() if "cuda" in name} if "load" in fails else set()
    assert ran == plan.by_name().keys() - set(plan.IN_PROCESS) - absent
    for name in fails:
        assert f"{name}: FAILED (exit code 1)" in words and f"failed or stopped: {name}" in words
    both = "triton" if "load" in fails else "cuda,triton"
    assert f"did bench --ops selective_scan={both} causal_conv1d={both} hsic=triton\n" in words
    assert "all steps passed" in words or fails
    with tarfile.open(tmp_path / "out" / "bdam_fast-gpu.tar") as made:
        names = made.getnames()
    assert {"logs/build.log", "logs/bench.log", "logs/failed.json", "rows/nvidia-x100-80gb.csv"} <= set(names)
    assert "logs/old.log" not in names


def test_a_results_folder_that_cannot_be_is_refused(pretended, monkeypatch, capsys, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RESULTS", str(tmp_path / "file" / "out"))
    with pytest.raises(SystemExit) as end:
        gpu.main()
    assert (
        end.value.code == 2 and "RESULTS must be a folder, or a path where one can be made" in capsys.readouterr().out
    )


def test_rows_without_git(monkeypatch):
    """As on a machine to which the files were copied: no git, or no repository."""

    def absent(*args, **kwargs):
        raise FileNotFoundError("git")

    monkeypatch.setattr(results.subprocess, "run", absent)
    assert results.commit() == "unknown"
    monkeypatch.setenv("BDAM_FAST_COMMIT", "b5817b1")
    assert results.commit() == "b5817b1"


@pytest.mark.parametrize("words", [["hsic"], ["hsic="], ["fast=cuda"]])
def test_wrong_operators_are_refused(words, capsys):
    with pytest.raises(SystemExit):
        run.arguments(["--ops", *words])
    assert "must be OP=BACKEND" in capsys.readouterr().err


def test_stopwatch_takes_turns_and_shortens_slow_peers(monkeypatch):
    calls = []
    fast = measure.VariantRun(Variant("fast", lambda: calls.append("f"), "ours"))
    slow = measure.VariantRun(Variant("slow", lambda: calls.append("s")))
    stopwatch().measure([fast, slow], 20, lambda text: None)
    assert len(fast.samples) == len(slow.samples) == 20
    turns = "".join(calls)[4 * timer.WARM_UP :]
    assert turns == ("f" * timer.BLOCK + "s" * timer.BLOCK) * 2
    monkeypatch.setattr(timer, "SLOW_MS", -1.0)
    fast.samples.clear(), slow.samples.clear()
    stopwatch().measure([fast, slow], 20, lambda text: None)
    assert (len(fast.samples), len(slow.samples)) == (20, timer.SLOW_SAMPLES)


def test_ceilings_are_positive():
    watch = stopwatch()
    assert watch.bandwidth(2**16) > 1e6 and watch.matrix_rate(32) > 1e6


def test_rows_of_a_gpu_have_their_own_columns(tmp_path):
    path = results.append([{"op": "x", "variant": "a"}], tmp_path, **FACTS)
    assert results.read(path)[0]["gpu"] == FACTS["gpu"]
    cpu = results.append([{"op": "x", "variant": "a"}], tmp_path)
    assert cpu != path and not gpu_table.has_gpu_rows(cpu)
    with pytest.raises(ValueError, match="fields not in fieldnames"):
        results.append([{"op": "x"}], tmp_path, driver="1")


def test_the_processors_report_leaves_gpus_alone(tmp_path, monkeypatch):
    results.append([{"op": "x", "variant": "a"}], tmp_path, **FACTS)
    monkeypatch.setattr(sys, "argv", ["report", "--folder", str(tmp_path)])
    with pytest.raises(SystemExit, match="no rows in"):
        report.main()


def row(variant, milliseconds, kind, **changes):
    base = dict.fromkeys((*results.COLUMNS, *results.GPU_FACTS), "") | FACTS | {"op": "hsic", "shape": "N 4"}
    base |= {"mode": "full", "date": "2030", "commit": "abc", "malloc": "default", "direction": "forward"}
    base |= {"variant": variant, "kind": kind, "median_ms": milliseconds, "p20_ms": "0.02", "p80_ms": "0.2"}
    return base | changes


def test_table_by_hand():
    case = [row("bdam_fast, cuda", "0.05", "ours", share_of_limit="0.5", peak_mib="1.5", host_us="7.1")]
    case += [
        row("bdam_fast, triton", "0.08", "other"),
        row("a", "0.2", "eager"),
        row("b", "0.1", "compiled", host_us="120"),
    ]
    case += [row("gone", "", "skipped", note="not installed")]
    assert gpu_table.make_line(case) == [
        *(
            "hsic N 4",
            "forward",
            "cuda 50.0 µs; triton 80.0 µs",
            "20.0 µs–0.2 ms",
            "b, 0.1 ms",
            "2.00 ×",
            "",
            "50%",
            "1.5",
            "7 / 120",
        )
    ]
    page = gpu_table.make_page(case)
    assert "* hsic, gone: not installed (1 cases)" in page and "measured at abc (2030)" in page
    assert gpu_table.make_line(case[1:]) is None
