"""The choice of a device, batches on their way to a card, and checkpoints that come from one. Nothing here needs a card."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.labelled import pretend_card
from tests.support.tiny_run import tiny_config
from tests.training.engine.test_trainer import build
from training import evaluate, gallery, search, train
from training.data.datasets import read_dataset
from training.disentangle import __main__ as disentangle
from training.engine import checkpoint
from training.engine.device import (
    describe_device,
    prefetch_batches,
    select_device,
    select_precision,
    tf32,
)
from training.engine.train_step import random_state, set_random_state
from training.evaluation import dual
from training.experiment import __main__ as experiment
from training.utils import cli

CPU, CARD = torch.device("cpu"), torch.device("cuda", 0)


def test_auto_takes_the_first_card_and_else_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert select_device() == select_device("cpu") == CPU
    pretend_card(monkeypatch, count=2)
    assert select_device() == select_device("cuda") == CARD and select_device("cpu") == CPU
    assert select_device("cuda:1") == torch.device("cuda", 1)


@pytest.mark.parametrize("name", ["", "gpu", "cuda:", "cuda:-1", "cuda:x", "CPU", "cuda:1 ", "meta", "cuda:²"])
def test_an_unknown_name_is_an_error(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_card(monkeypatch)
    with pytest.raises(ValueError, match=f"^device must be auto, cpu, cuda or cuda:N, got {name!r}$"):
        select_device(name)


def test_a_device_that_does_not_exist_is_named_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(ValueError, match=r"^device 'cuda' does not exist: torch \S+ is built without CUDA$"):
        select_device("cuda")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    with pytest.raises(
        ValueError, match="^device 'cuda:1' does not exist: torch .* finds no GPU, or no driver for it$"
    ):
        select_device("cuda:1")
    pretend_card(monkeypatch)
    with pytest.raises(ValueError, match="this machine has one CUDA device, cuda:0$"):
        select_device("cuda:1")
    pretend_card(monkeypatch, count=3)
    with pytest.raises(ValueError, match="this machine has 3 CUDA devices, cuda:0 to cuda:2$"):
        select_device("cuda:999999999999999999999")


def test_words_of_the_start_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    reason = f"torch {torch.__version__} is built without CUDA"
    monkeypatch.setattr(torch.version, "cuda", None)
    assert describe_device("auto", CPU, "fp32") == f"device cpu in fp32, chosen by auto: {reason}"
    assert describe_device("cpu", CPU, "fp32") == "device cpu in fp32"
    pretend_card(monkeypatch)
    words = "device cuda:0 (Pretended Card) in bf16"
    assert describe_device("cuda", CARD, "bf16") == words
    assert describe_device("auto", CARD, "bf16") == f"{words}, chosen by auto: a CUDA device exists"


def test_auto_precision_is_that_of_the_card(monkeypatch: pytest.MonkeyPatch) -> None:
    assert select_precision("auto", CPU) == "fp32" and select_precision("bf16", CPU) == "bf16"
    for capability, expected in (((7, 5), "fp32"), ((8, 0), "bf16"), ((12, 0), "bf16")):
        pretend_card(monkeypatch, capability=capability)
        assert select_precision("auto", CARD) == expected and select_precision("fp32", CARD) == "fp32"


@pytest.fixture
def settings() -> Iterator[None]:
    """Restores PyTorch's settings of TF32."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    yield
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.allow_tf32 = before[1]


def read_settings() -> tuple[str, bool, bool]:
    cuda = torch.backends.cuda.matmul.allow_tf32
    return torch.get_float32_matmul_precision(), cuda, torch.backends.cudnn.allow_tf32


def test_tf32_is_on_for_encoders_of_a_card_only(settings: None, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_card(monkeypatch)
    select_device("cuda")
    assert read_settings() == ("highest", False, False), "convolutions of a card are in TF32 by default"
    with pytest.raises(KeyError), tf32(CARD):
        assert read_settings() == ("high", True, True)
        raise KeyError
    assert read_settings() == ("highest", False, False)
    with tf32(CPU):
        assert read_settings() == ("highest", False, False)


class Pinned:
    """A batch that notes who has pinned it."""

    def __init__(self, number: int, done: list[tuple[int, str]]) -> None:
        self.number, self.done = number, done

    def pin_memory(self) -> Pinned:
        self.done.append((self.number, threading.current_thread().name))
        return self


def test_a_thread_prepares_one_batch_in_advance() -> None:
    pinned, made = list[tuple[int, str]](), threading.Semaphore(0)

    def source() -> Iterator[Any]:
        for number in range(4):
            made.release()
            yield Pinned(number, pinned)

    batches = prefetch_batches(source(), CARD)
    first: Any = next(batches)
    assert made.acquire(timeout=10) and made.acquire(timeout=10), "the second is prepared while the first is used"
    assert not made.acquire(timeout=0.1), "and no third"
    rest: list[Any] = list(batches)
    assert [batch.number for batch in (first, *rest)] == [0, 1, 2, 3] == [number for number, _ in pinned]
    assert threading.current_thread().name not in {name for _, name in pinned}


def test_an_error_of_the_loader_comes_in_place_of_its_batch() -> None:
    def source() -> Iterator[Any]:
        yield Pinned(0, [])
        raise ValueError("image 7 is truncated")

    batches = prefetch_batches(source(), CARD)
    assert next(batches) is not None
    with pytest.raises(ValueError, match="image 7 is truncated"):
        next(batches)


def test_a_cpu_uses_the_batches_as_they_come(root: Path, tmp_path: Path) -> None:
    loader = build(tiny_config(root), tmp_path).loader
    batches = list(loader)
    assert [x is y for x, y in zip(prefetch_batches(batches, CPU), batches, strict=True)] == [True] * len(batches)


COMMANDS = {
    "train": (train.main, ["synthetic", "--out", "NEW"]),
    "evaluate": (evaluate.main, ["RUN"]),
    "search": (search.main, ["RUN", "a red shirt"]),
    "disentangle": (disentangle.main, ["RUN"]),
    "gallery": (gallery.main, ["add", "NEW", "DATA", "--run", "RUN"]),
    "experiment": (experiment.main, ["synthetic", "--out", "NEW", "--data", "DATA"]),
}


@pytest.mark.parametrize("device", ["cuda:7", "gpu"])
@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_refuses_it_before_anything_is_written(
    name: str, device: str, run_dir: Path, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main, words = COMMANDS[name]
    paths = {"NEW": str(tmp_path / "new"), "RUN": str(run_dir), "DATA": str(root)}
    before = sorted(run_dir.iterdir())
    assert cli.run(main, [*(paths.get(word, word) for word in words), "--device", device]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: device ") and error.count("\n") == 1 and device in error
    assert sorted(run_dir.iterdir()) == before and not (tmp_path / "new").exists()


@pytest.mark.parametrize("backend", ["triton", "cuda"])
def test_kernels_of_a_card_are_those_of_auto_without_one(
    backend: str, run_dir: Path, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run that names its kernels is evaluated and searched anywhere, as one line says."""
    plain = dual.embed_dual(*embedding_arguments(run_dir, root)).v_id_GE
    capsys.readouterr()
    state = checkpoint.load(run_dir / "best.pt")
    state["config"]["model"]["backend"] = backend
    torch.save(state, run_dir / "best.pt")
    assert torch.equal(dual.embed_dual(*embedding_arguments(run_dir, root)).v_id_GE, plain)
    note = f"note: the run has model.backend={backend}, which does not run on cpu; auto chooses here\n"
    assert capsys.readouterr().err == note
    assert checkpoint.load_run(run_dir).stored_config.model.backend == backend


def from_a_card(state: Any, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """The file of a checkpoint whose tensors are on a card: PyTorch notes the device of every storage in it."""
    buffer = io.BytesIO()
    with monkeypatch.context() as patched:
        patched.setattr("torch.serialization.location_tag", lambda storage: "cuda:3")
        torch.save(state, buffer)
    return buffer.getvalue()


def test_a_run_of_a_card_continues_and_is_evaluated_without_one(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, run_dir = tiny_config(root), tmp_path / "run"
    train.train(config, run_dir)
    plain = dual.embed_dual(*embedding_arguments(run_dir, root)).v_id_GE
    for name in ("best.pt", "last.pt"):
        state = checkpoint.load(run_dir / name)
        if name == "last.pt":
            state["rng"].append(torch.zeros(16, dtype=torch.uint8))
            state["progress"]["epoch"] = 2
        (run_dir / name).write_bytes(from_a_card(state, monkeypatch))
        with pytest.raises(RuntimeError, match="(?i)cuda"):
            torch.load(run_dir / name, weights_only=True)
    assert torch.equal(dual.embed_dual(*embedding_arguments(run_dir, root)).v_id_GE, plain)
    assert train.train(config, run_dir, resume=True).epoch == 3


def embedding_arguments(run_dir: Path, root: Path) -> tuple[Any, ...]:
    run = checkpoint.load_run(run_dir)
    return run.model, read_dataset(run.config.data).splits["test"], run.tokenizer, run.config


def test_the_random_state_of_a_card_is_kept_and_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    states = {"cuda:0": torch.arange(16, dtype=torch.uint8)}
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: states[str(device)].clone())
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device: states.update({str(device): state}))
    kept = random_state(CARD)
    states["cuda:0"] = torch.zeros(16, dtype=torch.uint8)
    torch.rand(3)
    set_random_state(kept, CARD)
    assert torch.equal(states["cuda:0"], torch.arange(16, dtype=torch.uint8))
    assert torch.equal(torch.get_rng_state(), kept[0])
    set_random_state(kept[:1], CARD)
