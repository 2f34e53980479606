"""Who computes an operator: selection, the extension's absence, the report, call counts and instruction sets."""

import os
import subprocess
import sys
import warnings

import pytest
import torch

import bdam_fast
from bdam_fast import __main__ as report
from bdam_fast import _backend, _native, _operators
from bdam_fast.ops.causal_conv1d import op as conv
from bdam_fast.ops.causal_conv1d_update import op as conv_update
from bdam_fast.ops.hsic import op as hsic
from bdam_fast.ops.selective_scan import op
from bdam_fast.ops.selective_state_update import op as update
from tests.support import ROOT
from tests.support.labelled import pretend_card
from tests.support.operators import leaves
from tests.support.operators.selective_scan import run_scan, scan_problem

# What a machine without the compiled extension is like.
CUDA = torch.device("cuda")
SCHEMAS = {
    name: fake
    for family in (op, update, conv, conv_update, hsic)
    for name, fake in family.OPERATOR.fakes("bdam_fast").items()
}
WRITES = {"selective_state_update": ("state",), "causal_conv1d_update": ("conv_state",)}
NO_EXTENSION = "import sys; sys.modules['bdam_fast._C'] = None; "


def python(code: str, **environment: str) -> subprocess.CompletedProcess:
    """Runs a piece of Python in a fresh process in the checkout."""
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True
    )


@pytest.fixture
def no_extension(monkeypatch):
    monkeypatch.setattr(_native, "_attempt", lambda: (None, "No module named 'bdam_fast._C'"))
    monkeypatch.setattr(_backend, "_warned", set())


def test_auto_takes_the_kernel_and_says_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bdam_fast.reset_call_counts()
        bdam_fast.selective_scan(**scan_problem())
    assert bdam_fast.call_counts()["selective_scan.cpu.forward"] == 1


def test_without_extension_auto_warns_once_with_the_remedy(no_extension):
    problem = scan_problem()
    with pytest.warns(RuntimeWarning, match=r"selective_scan: running the slow reference: .*pip install") as record:
        first = bdam_fast.selective_scan(**problem)
        second = bdam_fast.selective_scan(**problem)
    assert len(record) == 1
    assert record[0].filename == __file__
    assert torch.equal(first, second)
    assert torch.equal(first, bdam_fast.selective_scan(**problem, backend="reference"))


def test_without_extension_cpu_raises_with_the_remedy(no_extension):
    with pytest.raises(RuntimeError, match=r"bdam_fast: the compiled extension is not available .*pip install"):
        bdam_fast.selective_scan(**scan_problem(), backend="cpu")


def test_without_extension_in_a_fresh_process():
    code = (
        "import torch, bdam_fast\n"
        "u = torch.ones(1, 2, 3); A = -torch.ones(2, 1); B = torch.ones(1, 1, 3)\n"
        "print(bdam_fast.selective_scan(u, u, A, B, B).shape, bdam_fast.call_counts())\n"
        "import runpy; runpy.run_module('bdam_fast', run_name='__main__')"
    )
    done = python(NO_EXTENSION + code)
    assert done.returncode == 0, done.stderr
    assert "torch.Size([1, 2, 3])" in done.stdout
    assert "'selective_scan.reference.forward': 1" in done.stdout
    assert "cpu.forward" not in done.stdout
    assert done.stderr.count("running the slow reference") == 1
    assert "extension: not available" in done.stdout
    assert "pip install" in done.stdout


@pytest.mark.parametrize("backend", ["cpu", "triton"])
def test_threads_that_need_an_operator_at_once(backend):
    """One of them registers it. PyTorch warns of a second registration on the CPU and refuses one of Triton's."""
    if backend == "triton":
        pytest.importorskip("triton")
    code = f"""
import threading, warnings
warnings.simplefilter("error")
import bdam_fast
from bdam_fast._operators import OPERATORS
barrier, failed = threading.Barrier(4), []
def load():
    barrier.wait()
    try:
        for operator in OPERATORS.values():
            operator.raw({backend!r})
    except Exception as error:
        failed.append(error)
threads = [threading.Thread(target=load) for _ in range(4)]
for step in (threading.Thread.start, threading.Thread.join):
    for thread in threads:
        step(thread)
assert not failed, failed
"""
    done = python(code, TRITON_INTERPRET="1")
    assert (done.returncode, done.stderr) == (0, "")


def test_other_devices_have_the_reference_only(monkeypatch):
    monkeypatch.setattr(_backend, "_warned", set())
    problem = {name: value.to("meta") for name, value in scan_problem().items()}
    with pytest.warns(
        RuntimeWarning, match="selective_scan: running the slow reference: there is no kernel for meta tensors"
    ):
        assert bdam_fast.selective_scan(**problem).shape == problem["u"].shape


@pytest.mark.parametrize("backend", ["cuda", "triton"])
def test_gpu_kernels_need_a_gpu_s_tensors_of_up_to_32_bits(backend, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    problem = scan_problem()
    with pytest.raises(ValueError, match=rf'selective_scan: backend="{backend}" needs tensors on a GPU.*, got cpu'):
        bdam_fast.selective_scan(**problem, backend=backend)
    with pytest.raises(TypeError, match=rf'backend="{backend}" takes float32, bfloat16 or float16, got float64'):
        _backend.resolve("causal_conv1d", backend, CUDA, torch.float64)


def test_gpu_kernels_that_are_not_there(monkeypatch):
    monkeypatch.setattr(_native, "_attempt_cuda", lambda: (None, "No module named 'bdam_fast._C_cuda'"))
    monkeypatch.setattr(_native, "triton_available", lambda: False)
    with pytest.raises(RuntimeError, match=r"bdam_fast: the CUDA kernels are not available \(No module .*nvcc"):
        _backend.resolve("selective_scan", "cuda", CUDA)
    with pytest.raises(RuntimeError, match='hsic: backend="triton" needs the package triton; install it'):
        _backend.resolve("hsic", "triton", CUDA)
    with pytest.raises(RuntimeError, match='hsic: there is no CUDA C\\+\\+ kernel; use backend="triton"'):
        _backend.resolve("hsic", "cuda", CUDA)


def test_auto_on_a_gpu_takes_the_best_that_is_there(monkeypatch):
    monkeypatch.setattr(_backend, "_warned", set())
    monkeypatch.setattr(_native, "cuda_available", lambda: True)
    monkeypatch.setattr(_native, "triton_available", lambda: True)
    monkeypatch.setattr(torch.version, "hip", None)
    assert _backend.resolve("selective_scan", "auto", CUDA, torch.bfloat16) == "cuda"
    assert _backend.resolve("hsic", "auto", CUDA) == "triton"
    with pytest.warns(RuntimeWarning, match="hsic: running the slow reference: the GPU kernels do not take float64"):
        assert _backend.resolve("hsic", "auto", CUDA, torch.float64) == "reference"
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert _backend.resolve("selective_scan", "auto", CUDA) == "triton"
    monkeypatch.setattr(_native, "triton_available", lambda: False)
    with pytest.warns(RuntimeWarning, match="running the slow reference: neither the CUDA kernels nor triton"):
        assert _backend.resolve("selective_scan", "auto", CUDA) == "reference"


@pytest.mark.parametrize("name", sorted(SCHEMAS))
def test_one_schema_for_all_backends(name):
    """The annotations of the fakes, which define the Triton operators, give the schemas of the extension."""
    op.OPERATOR.raw(), update.OPERATOR.raw(), conv.OPERATOR.raw(), conv_update.OPERATOR.raw(), hsic.OPERATOR.raw()
    ours = torch._C.parse_schema(name + torch.library.infer_schema(SCHEMAS[name], mutates_args=WRITES.get(name, ())))
    theirs = _operators.raw("bdam_fast", name)._schema
    assert [(a.name, str(a.type), a.is_write) for a in ours.arguments] == [
        (a.name, str(a.type), a.is_write) for a in theirs.arguments
    ]
    assert [str(r.type) for r in ours.returns] == [str(r.type) for r in theirs.returns]


def test_unknown_backend():
    with pytest.raises(ValueError, match="hsic: backend must be one of auto, cuda, triton, cpu, reference, got 'fast'"):
        _backend.resolve("hsic", "fast", torch.device("cpu"))
    with pytest.raises(ValueError, match='hsic: backend="cpu" needs tensors on the CPU, got cuda'):
        _backend.resolve("hsic", "cpu", torch.device("cuda"))


def test_call_counts_are_counted_in_the_extension(kernels):
    bdam_fast.reset_call_counts()
    problem = scan_problem()
    for backend, times in (("cpu", 3), ("reference", 2)):
        for _ in range(times):
            run_scan(leaves(problem), backend=backend)
    with torch.no_grad():
        bdam_fast.selective_scan(**problem, backend="cpu")
    counts = bdam_fast.call_counts()
    assert counts["selective_scan.cpu.forward"] == 4
    assert counts["selective_scan.cpu.backward"] == 3
    assert counts["selective_scan.reference.forward"] == 2
    assert kernels.call_counts()["selective_scan.cpu.forward"] == 4
    bdam_fast.reset_call_counts()
    assert set(bdam_fast.call_counts().values()) == {0}


def report_lines(text: str, device: str) -> dict[str, list[str]]:
    """Lines of the report about each backend on a device."""
    lines: dict[str, list[str]] = {}
    for line in text.split(f"tensors on {device}\n")[1].split("\n\n")[0].splitlines():
        backend, _, words = line.strip().partition(" ")
        lines.setdefault(backend, []).append(words.strip())
    return lines


def test_report(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    text = report.describe()
    assert f"bdam_fast {bdam_fast.__version__}, torch {torch.__version__}" in text
    assert f"instruction set: {_native.extension().isa()}" in text
    lines = report_lines(text, "cpu")
    assert lines["cpu"] == ["all operators: auto takes it"]
    assert lines["reference"] == ["all operators: runs here, but is the slow one; only on request"]
    assert lines["triton"] == [
        'all operators: no, backend="triton" needs tensors on a GPU (or TRITON_INTERPRET=1, for tests), got cpu'
    ]
    assert len(lines["cuda"]) == 2 and lines["cuda"][1].startswith("hsic: no, there is no CUDA C++ kernel")
    lines = report_lines(text, "cuda")
    assert lines["cpu"] == ['all operators: no, backend="cpu" needs tensors on the CPU, got cuda']
    assert torch.cuda.is_available() or "auto takes it" not in str(lines), "there is no GPU"


def test_report_on_a_machine_with_gpu_kernels(monkeypatch):
    """Operators that go to different backends are told apart."""
    monkeypatch.setattr(_native, "_attempt_cuda", lambda: (_native.extension(), ""))
    monkeypatch.setattr(_native, "triton_available", lambda: True)
    monkeypatch.setattr(torch.version, "hip", None)
    others = ", ".join(_native.CUDA_OPERATORS)
    if not torch.cuda.is_available():
        lines = report_lines(report.describe(), "cuda")
        assert lines["cuda"][0] == f"{others}: auto would take it, but there is no GPU here"
    pretend_card(monkeypatch)
    monkeypatch.setattr(_backend, "_capability", lambda device: "9.0")
    lines = report_lines(report.describe(), "cuda")
    assert lines["cuda"][0] == f"{others}: auto takes it"
    assert lines["triton"] == [f"{others}: runs here; only on request", "hsic: auto takes it"]


def test_readme_says_what_the_report_says_of_devices():
    readme, text = (ROOT / "README.md").read_text(), report.describe()
    table = readme.split("### Where it runs")[1].split("###")[0]
    rows = [line for line in table.splitlines() if line.startswith("| ")][1:]
    assert rows == [f"| {device} | `{backend}` | {state} |" for device, backend, state in report.SUPPORT]
    assert all(state in text for _, _, state in report.SUPPORT)


@pytest.mark.parametrize("asked", ["baseline", "nonsense"])
def test_environment_chooses_the_instruction_set(asked):
    done = python("import bdam_fast._native as n; print(n.extension().isa())", BDAM_FAST_ISA=asked)
    if asked == "baseline":
        assert (done.returncode, done.stdout.strip()) == (0, "baseline")
    else:
        assert done.returncode != 0
        assert "RuntimeError: bdam_fast: BDAM_FAST_ISA must be one of baseline" in done.stderr


def test_set_isa(kernels):
    for name in kernels.available_isas():
        kernels.set_isa(name)
        assert kernels.isa() == name
    with pytest.raises(ValueError, match="set_isa: this build and this CPU run up to .*, got sse9"):
        kernels.set_isa("sse9")
    with pytest.raises(TypeError):
        kernels.set_isa(3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_no_lane_of_the_saved_states_is_left_as_memory_was(isa, kernels, dtype):
    """Five channels do not fill a unit of 16: results start as NaN here, and the lanes behind them end as zeros."""
    problem = scan_problem(1, 5, 70, 3)
    args = [problem[n].to(dtype) for n in ("u", "delta", "A", "B", "C", "D", "z", "delta_bias", "initial_state")]
    saved = torch.ops.bdam_fast.selective_scan_forward(*args, None, True, False, False, True)[2]
    # Zeros stand behind the states of two tiles, so that no length gives a size of 0 or 1.
    assert saved.shape == (1, 2 * 3 * 16 + 16) and not saved[:, 96:].any()
    saved = saved[:, :96].view(1, 2, 1, 3, 16)
    assert saved[..., :5].isfinite().all() and saved[..., :5].abs().sum() > 0
    assert torch.equal(saved[..., 8:], torch.zeros_like(saved[..., 8:])) and saved.isfinite().all()
