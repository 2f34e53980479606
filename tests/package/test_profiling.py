"""NVTX ranges: names and nesting when they are on, nothing at all when they are off."""

import contextlib
import importlib.util
import json
import os
import subprocess
import sys
import time

import pytest

from bdam_fast import _operators, profiling
from bdam_fast.ops.selective_scan import op
from tests.support import ROOT
from tests.support.pedes_dataset import make_pedes
from tests.support.tiny_run import tiny_config
from tests.training.engine.test_trainer import build, first_batch

# The real package hands its ranges to a profiler; this one writes them down.
RECORDER = """
import contextlib, sys, types
ranges = []
@contextlib.contextmanager
def annotate(name, domain):
    ranges.append(f"{domain}/{name}")
    yield
sys.modules["nvtx"] = types.SimpleNamespace(annotate=annotate)
"""
ONE_OF_EACH = """
import torch, bdam_fast
x = torch.randn(2, 3, 5, requires_grad=True)
y = bdam_fast.causal_conv1d(x, torch.randn(3, 4), backend="cpu")
bdam_fast.selective_scan(y, y, -torch.ones(3, 2), torch.randn(2, 2, 5), torch.randn(2, 2, 5), backend="cpu").sum().backward()
with torch.no_grad():
    bdam_fast.hsic(x[0], x[1], backend="cpu")
"""


def python(code: str, asked: str) -> subprocess.CompletedProcess:
    """Runs a piece of Python with BDAM_FAST_NVTX as `asked`."""
    environment = {**os.environ, "BDAM_FAST_NVTX": asked}
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)


def test_off_there_is_nothing_between_the_caller_and_the_kernel():
    op.OPERATOR.raw("cpu")
    assert not profiling.ENABLED
    assert profiling.ranged("name", len) is len
    assert profiling.span("one") is profiling.span("two")
    assert type(_operators.raw("bdam_fast", "selective_scan_forward")).__name__ == "OpOverload"


def test_every_kernel_call_is_a_range():
    done = python(RECORDER + ONE_OF_EACH + "import json; print(json.dumps(ranges))", "1")
    assert done.returncode == 0, done.stderr
    names = ["causal_conv1d_forward", "selective_scan_forward", "selective_scan_backward", "causal_conv1d_backward"]
    assert json.loads(done.stdout) == [f"bdam_fast/bdam_fast::{name}" for name in [*names, "hsic_forward"]]


def test_every_stage_of_a_training_step_is_a_range(tmp_path):
    code = f"""
from pathlib import Path
from tests.support.pedes_dataset import make_pedes
from tests.support.tiny_run import tiny_config
from tests.training.engine.test_trainer import build
folder = Path({str(tmp_path)!r})
config = tiny_config(make_pedes(folder))
build(config, folder).fit()
import json; print("RANGES", json.dumps([r for r in ranges if "::" not in r]))
"""
    done = python(RECORDER + code, "1")
    assert done.returncode == 0, done.stderr
    ranges = json.loads(done.stdout.split("RANGES", 1)[1])
    stages = [
        "data",
        "training step",
        "encoders",
        "visual encoder",
        "text encoder",
        "heads",
        "bdam",
        "fusion",
        "losses",
    ]
    stages += ["gradnorm norms", "backward heads", "backward encoders", "optimiser"]
    assert ranges[: len(stages)] == [f"bdam_fast/{stage}" for stage in stages]
    assert "bdam_fast/gradnorm update" in ranges


def test_recorded_times_are_each_span_s_own():
    ticks = iter([0.0, 1.0, 3.0, 4.0, 9.0, 16.0, 20.0, 30.0])
    with profiling.record(lambda: next(ticks)) as seconds:
        with profiling.span("step"):  # 0 to 16
            with profiling.span("part"):  # 1 to 3
                pass
            with profiling.span("part"):  # 4 to 9
                pass
        with profiling.span("next"), contextlib.suppress(ValueError):  # 20 to 30
            raise ValueError
    assert seconds == {"part": 7.0, "step": 9.0, "next": 10.0}
    assert profiling.span("one") is profiling.span("two")


def test_a_recorded_step_accounts_for_all_of_its_time(tmp_path):
    config = tiny_config(make_pedes(tmp_path))
    trainer = build(config, tmp_path)
    batch = first_batch(trainer)
    started = time.perf_counter()
    with profiling.record() as seconds, profiling.span("training step"):
        trainer.train_step(batch)
    passed = time.perf_counter() - started
    stages = {"text encoder", "visual encoder", "bdam", "fusion", "heads", "losses", "gradnorm norms", "backward heads"}
    assert stages <= set(seconds) and min(seconds.values()) >= 0
    assert 0.9 * passed < sum(seconds.values()) < passed


@pytest.mark.skipif(importlib.util.find_spec("nvtx") is None, reason="the package nvtx is not installed")
def test_with_the_real_package():
    done = python(ONE_OF_EACH, "1")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("before", "asked", "text"),
    [
        ("", "yes", "bdam_fast: BDAM_FAST_NVTX must be 0 or 1, got 'yes'"),
        ("import sys; sys.modules['nvtx'] = None; ", "1", "BDAM_FAST_NVTX=1 needs the package nvtx; install it with"),
    ],
)
def test_what_cannot_be_met_is_said(before, asked, text):
    done = python(before + "import bdam_fast.profiling", asked)
    assert done.returncode != 0
    assert text in done.stderr
