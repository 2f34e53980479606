"""Sizes in the Triton and CUDA kernels that may be better chosen by measurement: the default, or the best measured on a card.

`python -m bench.gpu.tune` measures them on the card at hand and writes the table `bdam_fast/tuned.json`:
`{"NVIDIA H200": {"causal_conv1d.tile": 2048}}`. Without the table, and for a card or a size that is not in it, the defaults hold.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from types import ModuleType

import torch

from . import _backend, _native

TABLE = Path(__file__).with_name("tuned.json")
# By size: the default first, then the others that are tested and measured.
CHOICES = {
    "causal_conv1d.tile": (1024, 512, 2048),  # Triton: elements of a program's tile
    "selective_scan.states": (512, 256),  # Triton: states of a program, which is one warp
    "selective_scan.block_channels": (
        128,
        64,
    ),  # CUDA: channels of a block of the backward, of 8 or 12 warps a multiprocessor
    "selective_scan.saved_steps": (8, 16),  # CUDA: steps between saved states
    "hsic.features": (16, 32, 64),  # Triton: features that problems of up to 64 samples multiply at a time
}
_override: dict[str, int] = {}


def read(path: Path) -> dict[str, dict[str, int]]:
    """Reads a table: sizes by name, by card.

    Raises:
        ValueError: the file is no such table; the text says what is wrong.
    """
    try:
        table = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is not JSON that can be read ({error})") from None
    if not isinstance(table, dict) or not all(isinstance(sizes, dict) for sizes in table.values()):
        raise ValueError(f"{path} must hold an object of sizes for each card")
    for card, sizes in table.items():
        for name, value in sizes.items():
            if name not in CHOICES or isinstance(value, bool) or value not in CHOICES[name]:
                allowed = f"one of {', '.join(map(str, CHOICES[name]))}" if name in CHOICES else "no size of a kernel"
                raise ValueError(f"{path}: {name} = {value!r} of {card} must be {allowed}")
    return table


def size(name: str, device: torch.device) -> int:
    """The size `name`, a key of CHOICES, for tensors on `device`. A table that cannot be read is ignored, with a warning."""
    if _override:
        return _override.get(name, CHOICES[name][0])
    return _sizes(device.index or 0).get(name, CHOICES[name][0]) if device.type == "cuda" else CHOICES[name][0]


@contextmanager
def fixed(sizes: Mapping[str, int]) -> Iterator[None]:
    """Has these sizes hold, and every other be its default, for a measurement or a test."""
    assert sizes
    before, module = dict(_override), _native._attempt_cuda()[0]

    def take(now: Mapping[str, int]) -> None:
        _override.clear()
        _override.update(now)
        apply(module)

    take(sizes)
    try:
        yield
    finally:
        take(before)


def apply(module: ModuleType | None) -> None:
    """Has the module with the CUDA kernels, if there is one, take the sizes that they choose by themselves on each card."""
    if module is None:
        return
    cards = torch.cuda.device_count()
    for index in range(max(cards, 1)):
        device = torch.device("cuda", index) if index < cards else torch.device("cpu")
        module.set_narrow_backward(index, size("selective_scan.block_channels", device) == 64)


@lru_cache(maxsize=16)
def _sizes(index: int) -> dict[str, int]:
    # Asked for each GPU once: a call of an operator has no time for it.
    if not TABLE.exists():
        return {}
    try:
        return read(TABLE).get(torch.cuda.get_device_name(index), {})
    except ValueError as error:
        _backend.warn_once(str(TABLE), f"bdam_fast: the tuned sizes are not used: {error}")
        return {}
