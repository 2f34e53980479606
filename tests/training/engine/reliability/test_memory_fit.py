"""Memory foreseen: the estimate against the real step, the limit of the machine, the refusal and the options that fit."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tests.support import ROOT
from tests.support.tiny_run import tiny_config
from training.config import Config
from training.config.recipes import get_recipe
from training.data.datasets import read_dataset
from training.data.loader import TrainLoader
from training.data.tokenizer import build_tokenizer
from training.engine import checkpoint, memory_fit
from training.engine.memory_estimate import LiveBytes, MemoryEstimate, _dry_peak, estimate_memory, smaller_steps
from training.engine.train_step import Stepper
from training.models.retrieval_model import RetrievalModel
from training.train import train
from training.utils.io import read_json
from training.utils.machine import available_memory_mb


def built(config: Config) -> tuple[RetrievalModel, TrainLoader]:
    dataset = read_dataset(config.data)
    torch.manual_seed(0)
    tokenizer = build_tokenizer(config.model.text, dataset.train_texts())
    return checkpoint.build_model(config, tokenizer), TrainLoader(dataset, tokenizer, config.data, 0)


class _RealBytes(LiveBytes):
    """Counts a step on real tensors, whose values need no answers."""

    def _answer(self, func: object, args: object) -> None:
        return None


OPTIONS = {
    "plain": {},
    "bf16": {"precision": "bf16"},
    "micro-batches": {"accumulate": 3},
    "checkpointing": {"checkpointing": True, "accumulate": 2},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_a_dry_step_allocates_what_a_real_one_does(options: dict[str, object], root: Path) -> None:
    config = tiny_config(root)
    small_evaluation = replace(config.eval, batch_size=1)
    config = replace(config, optim=replace(config.optim, **options), eval=small_evaluation)  # type: ignore[arg-type]
    model, loader = built(config)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    dry = _dry_peak(model, config, loader)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    stepper = Stepper(config, model)
    loader.set_epoch(0)
    batches = iter(loader)
    # The first step makes the moments, which are no part of the dry one.
    stepper.run(next(batches), measure=True)
    stepper.optimizer.zero_grad(set_to_none=True)
    known = [t for s in stepper.optimizer.state.values() for t in s.values() if isinstance(t, torch.Tensor)]
    with _RealBytes([*model.parameters(), *model.buffers(), *known], iter(())) as real:
        stepper.run(next(batches), measure=True)
    assert dry == pytest.approx(real.peak, rel=0.15)


def test_the_estimate_takes_texts_of_more_tokens_than_the_batch_has_texts(root: Path) -> None:
    """64 texts, in two parts by their length: 80 is a length, and no place of one of them."""
    config = tiny_config(root)
    config = replace(config, data=replace(config.data, ids_per_batch=8, text_length=80))
    model, _ = built(config)
    found = []
    for length in (20, 80):
        loader = SimpleNamespace(images=None, table=SimpleNamespace(lengths=torch.tensor([length])))
        found.append(estimate_memory(model, config, loader, 0.0).activations)  # type: ignore[arg-type]
    assert found[1] > 1.5 * found[0]


def test_parts_of_the_estimate(root: Path) -> None:
    config = tiny_config(root)
    frozen = replace(config.model, text=replace(config.model.text, trainable=False))
    config = replace(config, model=frozen, optim=replace(config.optim, ema=0.9))
    model, loader = built(config)
    estimate = estimate_memory(model, config, loader, 100.0)
    weights = sum(value.nbytes for value in model.state_dict().values()) / 2**20
    trained = sum(p.nbytes for p in model.parameters() if p.requires_grad) / 2**20
    assert estimate.weights == pytest.approx(2 * weights, rel=0.01)
    assert (estimate.gradients, estimate.moments) == (pytest.approx(trained), pytest.approx(2 * trained))
    assert (
        estimate.images == pytest.approx(18 * 3 * 32 * 16 / 2**20)
        and estimate.process < 100
        and estimate.activations > 0
    )
    assert f"{estimate.total:,.0f} MB (process " in str(estimate)


def test_smaller_steps_are_the_cheaper_ones_first(root: Path) -> None:
    config = tiny_config(root)
    steps = [(c.optim.accumulate, c.optim.checkpointing) for c in smaller_steps(config)]
    assert steps == [(1, True), (2, False), (2, True), (4, False), (4, True), (6, False), (6, True)]
    plain = get_recipe("synthetic-baseline")
    assert (
        not any(c.optim.checkpointing for c in smaller_steps(plain))
        and next(smaller_steps(plain)).optim.accumulate == 2
    )


@pytest.fixture
def limited(monkeypatch: pytest.MonkeyPatch, root: Path) -> Config:
    """A configuration whose batch does not fit into a machine that is made to look small, but a quarter of it does."""

    def estimate(model: object, config: Config, loader: object, process: float) -> MemoryEstimate:
        activations = 800.0 / config.optim.accumulate - 50.0 * config.optim.checkpointing
        return MemoryEstimate(process, 10.0, 10.0, 20.0, activations, 0.0)

    monkeypatch.setattr(memory_fit, "estimate_memory", estimate)
    monkeypatch.setattr(memory_fit, "resident_memory_mb", lambda: 0.0)
    monkeypatch.setattr(memory_fit, "available_memory_mb", lambda: (300.0, "limit of the test"))
    monkeypatch.setattr(memory_fit, "NEGLIGIBLE", 0.0)
    config = tiny_config(root)
    return replace(config, optim=replace(config.optim, epochs=1, warmup_epochs=0))


def test_what_does_not_fit_is_refused_with_what_does(limited: Config, tmp_path: Path) -> None:
    parts = r"weights 10, gradients 10, moments 20, activations 800"
    machine, remedy = r"available 300 MB \(limit of the test\)", "give these options, or --fit to take them"
    expected = rf"memory: about 840 MB \({parts}\), {machine}; --optim.accumulate 4 needs about 240 MB .*: {remedy}"
    with pytest.raises(RuntimeError, match=expected):
        train(limited, tmp_path / "run", check_memory=True)
    assert not (tmp_path / "run").exists()
    train(limited, tmp_path / "run")


def test_fit_takes_what_fits_and_resume_keeps_it(
    limited: Config, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    train(limited, tmp_path / "run", fit=True)
    stored = read_json(tmp_path / "run" / "config.json")["optim"]
    assert (stored["accumulate"], stored["checkpointing"]) == (4, False)
    assert "; trained with --optim.accumulate 4 instead: about 240 MB" in capfd.readouterr().out
    train(limited, tmp_path / "run", fit=True, resume=True)


def test_nothing_fits(limited: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_fit, "available_memory_mb", lambda: (0.001, "limit of the test"))
    with pytest.raises(
        RuntimeError, match="no number of micro-batches fits: take a smaller model, fewer images in a batch"
    ):
        train(limited, tmp_path / "run", fit=True)


def test_a_small_model_needs_no_dry_step(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_config(root)
    model, loader = built(config)
    monkeypatch.setattr(memory_fit, "available_memory_mb", lambda: (64_000.0, "a large machine"))
    monkeypatch.setattr(memory_fit, "estimate_memory", lambda *_: pytest.fail("a dry step was made"))
    assert memory_fit.fitting_config(model, config, loader, print, fit=False) is config
    monkeypatch.setattr(memory_fit, "available_memory_mb", lambda: None)
    assert memory_fit.fitting_config(model, config, loader, print, fit=False) is config


GROUPS = {
    "no group": ("", {}, (4096.0, "free memory of this machine")),
    "version 2": (
        "0::/a/b\n",
        {"a/memory.max": "1073741824", "a/memory.current": "536870912", "a/memory.stat": "inactive_file 104857600\n"}
        | {"a/b/memory.max": "max", "a/b/memory.current": "1"},
        (612.0, "limit of the control group "),
    ),
    "version 1": (
        "7:cpu:/x\n4:memory:/job\n",
        {"memory/job/memory.limit_in_bytes": "209715200", "memory/job/memory.usage_in_bytes": "104857600"},
        (100.0, "limit of the control group "),
    ),
}


@pytest.mark.parametrize("name", GROUPS)
def test_memory_of_the_machine(name: str, tmp_path: Path) -> None:
    groups, files, (expected, limit) = GROUPS[name]
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text("MemTotal: 9 kB\nMemAvailable:    4194304 kB\n")
    (tmp_path / "proc/self/cgroup").write_text(groups)
    for path, text in files.items():
        (tmp_path / "sys/fs/cgroup" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "sys/fs/cgroup" / path).write_text(text)
    found = available_memory_mb(tmp_path)
    assert found is not None and found[0] == expected and found[1].startswith(limit)
    assert available_memory_mb(tmp_path / "nothing") is None


MEASURE = """
import sys
from dataclasses import replace
from pathlib import Path
from tests.training.engine.reliability.test_memory_fit import built
from training.config.recipes import get_recipe
from training.engine.memory_estimate import estimate_memory
from training.engine.train_step import Stepper
from training.utils.machine import resident_memory_mb
import torch
torch.set_num_threads(1)
config = get_recipe("synthetic")
config = replace(config, data=replace(config.data, root=sys.argv[1], ids_per_batch=32))
model, loader = built(config)
estimate = estimate_memory(model, config, loader, resident_memory_mb())
stepper = Stepper(config, model)
loader.set_epoch(0)
Path("/proc/self/clear_refs").write_text("5")
for batch, _ in zip(loader, range(2)):
    stepper.run(batch, measure=True)
peak = next(int(x.split()[1]) / 1024 for x in open("/proc/self/status") if x.startswith("VmHWM"))
print(estimate.total, peak)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads the peak of a process from Linux")
def test_the_estimate_is_within_15_percent_of_the_measured_peak(tmp_path: Path) -> None:
    from tests.support.pedes_dataset import make_pedes

    root = make_pedes(tmp_path / "data", {"train": 40, "val": 2, "test": 2})
    command = [sys.executable, "-c", MEASURE, str(root)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    estimate, peak = map(float, done.stdout.split())
    assert estimate == pytest.approx(peak, rel=0.15)
