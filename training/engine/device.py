"""The device of a model: what a user names, what `auto` finds, its precision, and batches on their way to a card.

Nothing else decides on a device: every stage reads that of its model.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch

from bdam_fast.profiling import span
from training.data.loader import Batch
from training.utils.machine import cpu_name

NAMES = re.compile(r"auto|cpu|cuda(?::(\d+))?", re.ASCII)
CPU = torch.device("cpu")
# Compute capability from which a card multiplies in bf16.
BF16 = (8, 0)


def select_device(name: str = "auto") -> torch.device:
    """The device of a name: "auto" (the first CUDA device where there is one, else the CPU), "cpu", "cuda" (the first) or
    "cuda:N". Sets a card to fp32, see `tf32`.

    Raises ValueError for a different name, and for a device that does not exist.
    """
    match = NAMES.fullmatch(name)
    if match is None:
        raise ValueError(f"device must be auto, cpu, cuda or cuda:N, got {name!r}")
    missing = why_no_cuda()
    if name == "cpu" or (name == "auto" and missing):
        return CPU
    if missing:
        raise ValueError(f"device {name!r} does not exist: {missing}")
    index, count = int(match[1] or 0), torch.cuda.device_count()
    if index >= count:
        there = "one CUDA device, cuda:0" if count == 1 else f"{count} CUDA devices, cuda:0 to cuda:{count - 1}"
        raise ValueError(f"device {name!r} does not exist: this machine has {there}")
    # PyTorch's own default for convolutions, but not for products, is TF32.
    torch.backends.cudnn.allow_tf32 = False
    return torch.device("cuda", index)


def rank_device(name: str, local_rank: int) -> str:
    """Name of the device of one of several processes on a machine: the card of its number. Raises ValueError for "cuda:N"."""
    if name.startswith("cuda:"):
        raise ValueError(
            f"device {name!r} is one card for all ranks: give cuda or auto, which take the card of each rank's number, or cpu"
        )
    return name if name == "cpu" or (name == "auto" and why_no_cuda()) else f"cuda:{local_rank}"


def why_no_cuda() -> str:
    """The reason why this process has no CUDA device; empty where it has one."""
    if torch.cuda.is_available():
        return ""
    if torch.version.cuda is None and torch.version.hip is None:
        return f"torch {torch.__version__} is built without CUDA"
    return f"torch {torch.__version__} finds no GPU, or no driver for it"


def describe_device(name: str, device: torch.device, precision: str) -> str:
    """Words for the start line of a run: the device of `name`, its precision, and why `auto` chose it."""
    words = str(device) if device.type == "cpu" else f"{device} ({torch.cuda.get_device_name(device)})"
    chosen = f", chosen by auto: {why_no_cuda() or 'a CUDA device exists'}" if name == "auto" else ""
    return f"device {words} in {precision}{chosen}"


def machine_facts(device: torch.device) -> dict[str, str]:
    """Facts that the last digits of a result depend on: `cpu`, `threads` and, on a card, `gpu`; see `machine_name`."""
    # Clouds give processors of several generations one name; the vector instructions that torch chose tell them apart.
    facts = {
        "cpu": f"{cpu_name()} with {torch.backends.cpu.get_cpu_capability()}",
        "threads": str(torch.get_num_threads()),
    }
    return facts | ({"gpu": torch.cuda.get_device_name(device)} if device.type == "cuda" else {})


def select_precision(asked: str, device: torch.device) -> str:
    """`OptimConfig.precision` on a device: "auto" is bf16 on a card that multiplies in it, else fp32."""
    if asked != "auto":
        return asked
    if device.type != "cuda":
        return "fp32"
    return "bf16" if torch.version.hip or torch.cuda.get_device_capability(device) >= BF16 else "fp32"


@contextmanager
def tf32(device: torch.device) -> Iterator[None]:
    """TF32 for the float32 products and convolutions of a card: encoders while training. Losses and evaluation stay in fp32.

    By the older functions: what they set the newer settings report too, while the older ones raise after the newer ones.
    """
    if device.type != "cuda":
        yield
        return
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def full_precision(device: torch.device) -> AbstractContextManager[Any]:
    """Switches autocast off, where the device has one."""
    if torch.amp.is_autocast_available(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


def card_memory(device: torch.device) -> dict[str, float]:
    """{"memory_mb": peak memory of a card so far, MB (2^20 bytes)} for a line of metrics; {} for a CPU."""
    return {"memory_mb": torch.cuda.max_memory_allocated(device) / 2**20} if device.type == "cuda" else {}


def profiled_batches(batches: Iterable[Batch]) -> Iterator[Batch]:
    """The same batches, with a profiler range around the wait for each."""
    source = iter(batches)
    while True:
        with span("data"):
            batch = next(source, None)
        if batch is None:
            return
        yield batch


def prefetch_batches(batches: Iterable[Batch], device: torch.device) -> Iterator[Batch]:
    """The batches in their order. For a card, a thread prepares one in advance, in page-locked memory, from which it is copied
    while the CPU goes on. Raises what `batches` raises, in place of that batch."""
    if device.type != "cuda":
        yield from batches
        return
    source = iter(batches)

    def prepare() -> Batch | None:
        batch = next(source, None)
        return None if batch is None else batch.pin_memory()

    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(prepare)
        while (batch := coming.result()) is not None:
            coming = pool.submit(prepare)
            yield batch
