"""The GPU benchmark's own code, as far as it runs without a GPU: steps, peers, timing, rows, tables and the prediction."""

import subprocess
import sys

import pytest
import torch

from bench.gpu import __main__ as gpu
from bench.gpu import run, steps, timer
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
    monkeypatch.setattr(gpu.importlib.util, "find_spec", lambda name: None)
    words = "\n".join(gpu.obstacles())
    for part in ("is not a CUDA build", "nvcc was not found", "package setuptools", "package pytest"):
        assert part in words
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(gpu.shutil, "which", lambda name: name)
    monkeypatch.setattr(gpu.importlib.util, "find_spec", lambda name: object())
    assert gpu.obstacles() == ["this PyTorch finds no GPU (is the driver loaded? try nvidia-smi)"]


def test_steps_run_side_by_side_and_say_how_they_ended(tmp_path, capsys):
    codes = {"good": "print('fine')", "bad": "print('why'); raise SystemExit(3)", "slow": "import time; time.sleep(60)"}
    steps = [gpu.Step(name, [sys.executable, "-c", code]) for name, code in codes.items()]
    steps.append(gpu.Step("told", [sys.executable, "-c", "import os; print(os.environ['WORD'])"], {"WORD": "said"}))
    outcomes = {outcome.name: outcome for outcome in gpu.execute(steps, 3.0, tmp_path)}
    assert {name: o.code for name, o in outcomes.items()} == {"good": 0, "bad": 3, "slow": None, "told": 0}
    assert [o.passed for o in outcomes.values()] == [True, False, False, True]
    assert (tmp_path / "told.log").read_text().strip() == "said"
    words = capsys.readouterr().out
    assert "good: ok" in words and "bad: FAILED (exit code 3)" in words and "why" in words
    assert "slow: NOT FINISHED in time" in words


def test_only_what_passed_is_measured(tmp_path):
    names = {"test-selective_scan-cuda-1": 0, "test-selective_scan-cuda-2": 0, "test-causal_conv1d-cuda-1": None}
    names |= {f"test-selective_scan-triton-{n}": int(n == 4) for n in range(1, 5)}
    names |= {"test-hsic-triton-1": 0, "test-hsic-triton-2": 0, "test-updates-cuda-1": 0}
    outcomes = [gpu.Outcome(name, code, 1.0, tmp_path) for name, code in names.items()]
    chosen = gpu.passed_backends(outcomes)
    assert chosen == {"selective_scan": ["cuda"], "causal_conv1d": [], "hsic": ["triton"]}
    step = gpu.bench_step(chosen, 99.4, with_peers=False)
    assert step.command[-2:] == ["selective_scan=cuda", "hsic=triton"] and step.environment == {"BDAM_FAST_PEERS": ""}
    options = run.arguments(list(step.command[3:]))
    assert dict(options.ops) == {"selective_scan": ["cuda"], "hsic": ["triton"]} and options.seconds == 99


def test_every_operator_and_backend_is_tested_and_sanitized():
    found = gpu.test_steps(["cuda", "triton"])
    names = {step.name for step in found}
    assert {n.rpartition("-")[0] for n in names} == {f"test-{op}-{b}" for op, bs in gpu.BACKENDS.items() for b in bs}
    shares = [step.environment["BDAM_FAST_GPU_SHARE"] for step in found if "scan-triton" in step.name]
    assert shares == ["1/4", "2/4", "3/4", "4/4"]
    everything = [gpu.Outcome(name, 0, 1.0, ROOT) for name in names]
    assert gpu.passed_backends(everything) == {op: list(bs) for op, bs in gpu.BACKENDS.items() if op != "updates"}
    assert all((ROOT / file).exists() for file in gpu.FILES.values())
    assert {path.name for path in (ROOT / "tests/gpu").glob("test_*.py")} == {
        f.split("/")[-1] for f in gpu.FILES.values()
    }
    assert all("-triton-" in s.name for s in gpu.test_steps(["triton"]))
    steps = gpu.sanitizer_steps(["cuda", "triton"])
    assert [s.name for s in steps] == ["memcheck-cuda", "memcheck-triton", "racecheck-cuda"]
    assert [s.name for s in gpu.sanitizer_steps(["triton"])] == ["memcheck-triton"]


@pytest.fixture
def pretended(monkeypatch, tmp_path):
    """A machine with a GPU whose steps print their name; `codes` has the exit codes of those that fail."""
    codes: dict[str, int] = {}

    def step(name):
        return gpu.Step(name, [sys.executable, "-c", f"print('did {name}'); raise SystemExit({codes.get(name, 0)})"])

    monkeypatch.setattr(steps, "LOGS", tmp_path)
    monkeypatch.setattr(gpu, "obstacles", list)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "X100")
    monkeypatch.setattr(gpu.shutil, "which", lambda name: name)
    for name in ("build", "load"):
        monkeypatch.setattr(gpu, f"{name}_step", lambda name=name: step(name))
    for name, plural in (("test", gpu.test_steps), ("sanitizer", gpu.sanitizer_steps)):
        monkeypatch.setattr(gpu, f"{name}_steps", lambda b, plural=plural: [step(s.name) for s in plural(b)])
    monkeypatch.setattr(gpu, "bench_step", lambda chosen, seconds, ready: step(f"bench-{'-'.join(chosen['hsic'])}"))
    return codes


@pytest.mark.parametrize(
    ("fails", "code"),
    [({}, 0), ({"test-hsic-triton-1": 1}, 1), ({"load": 1}, 1)],
    ids=["all well", "a test fails", "what was built does not load"],
)
def test_all_steps(pretended, fails, code, monkeypatch, capsys):
    """A failing test fails the whole, and the operators whose tests passed are still measured."""
    pretended.update(fails)
    monkeypatch.setattr(sys, "argv", ["gpu", "--minutes", "5"])
    with pytest.raises(SystemExit) as end:
        gpu.main()
    words = capsys.readouterr().out
    assert end.value.code == code
    for name in fails:
        assert f"{name}: FAILED (exit code 1)" in words and f"failed or not finished: {name}" in words
    bench = "bench-" if "test-hsic-triton-1" in fails else "bench-triton"
    assert f"did {bench}\n" in words and "mamba-ssm: " in words and "did memcheck-triton" in words
    assert ("did test-selective_scan-cuda-1" in words) == ("load" not in fails)
    assert "all steps passed" in words or fails


@pytest.mark.parametrize("words", [["hsic"], ["hsic="], ["fast=cuda"]])
def test_wrong_operators_are_refused(words, capsys):
    with pytest.raises(SystemExit):
        run.arguments(["--ops", *words])
    assert "must be OP=BACKEND" in capsys.readouterr().err


def test_the_clock_keeps_a_reserve():
    clock = gpu.Clock(100.0)
    assert clock.left(10.0) == 10.0
    assert 80 < clock.left(1000.0) <= 85 and clock.left(1000.0, reserve=200) == 0


def test_stopwatch_takes_turns_and_shortens_slow_peers(monkeypatch):
    calls = []
    fast = measure.VariantRun(Variant("fast", lambda: calls.append("f"), "ours"))
    slow = measure.VariantRun(Variant("slow", lambda: calls.append("s")))
    stopwatch().measure([fast, slow], 20, lambda text: None)
    assert len(fast.samples) == len(slow.samples) == 20
    turns = "".join(calls)[2 * timer.WARM_UP :]
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
    case = [row("bdam_fast, cuda", "0.05", "ours", share_of_limit="0.5", peak_mib="1.5")]
    case += [row("bdam_fast, triton", "0.08", "other"), row("a", "0.2", "eager"), row("b", "0.1", "compiled")]
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
        )
    ]
    page = gpu_table.make_page(case)
    assert "* hsic, gone: not installed (1 cases)" in page and "measured at abc (2030)" in page
    assert gpu_table.make_line(case[1:]) is None
