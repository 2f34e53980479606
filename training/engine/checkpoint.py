"""Checkpoints of tensors and plain values, written atomically; loading of a trained run; cached results of its best
checkpoint."""

from __future__ import annotations

import math
import pickle
import re
import shutil
import struct
import sys
import zipfile
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from bdam_fast._backend import runs_on
from training.config import Config, from_dict
from training.config.model_stages import ModelConfig
from training.data.datasets import at_root
from training.data.tokenizer import TOKENIZER, load_tokenizer, require_tokenizer
from training.engine.device import select_device
from training.engine.distributed.ranks import ONE_RANK, Ranks
from training.models.baseline import DualEncoder
from training.models.model import Model
from training.models.retrieval_model import RetrievalModel
from training.utils.io import atomic
from training.utils.locks import LOCK

# Errors of reading a damaged archive: of zipfile, of the decoders below it, and of torch.
DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    pickle.UnpicklingError,
    OSError,
    EOFError,
    RuntimeError,
    ValueError,
    KeyError,
    IndexError,
    AttributeError,
    TypeError,
)
# What to do about a damaged file of a run, by its name.
REMEDIES = {
    "best.pt": "restore it from a copy, or train the run again",
    "last.pt": "restore it from a copy, or delete the run folder and train the run again; best.pt can be evaluated without it",
}


@dataclass(frozen=True)
class Inputs:
    """Digests of what a run reads besides its configuration, stored in its checkpoints and compared by every later stage."""

    # Of annotations and generated texts (`Dataset.fingerprint`), and of the images (image_digests.py).
    fingerprint: str
    images: str = ""


@dataclass
class RunProgress:
    """Progress of a run, stored in every checkpoint."""

    # Finished epochs and steps.
    epoch: int = 0
    step: int = 0
    # Finished batches of the current epoch, and the sum of their losses.
    batch: int = 0
    loss_sum: float = 0.0
    # Best validation value so far, its epoch, and the clothing weight beta chosen there.
    best: float = -math.inf
    best_epoch: int = 0
    beta: float = 0.0
    # True if best.pt holds the averaged weights (optim.ema) of that epoch.
    averaged: bool = False


def leftovers(folder: Path) -> list[Path]:
    """Temporary files of a killed process in a run folder, and the file of its lock."""
    return sorted(p for p in Path(folder).iterdir() if re.fullmatch(r"\..+\.tmp|\.tokenizer\..+|\.lock", p.name))


def remove_leftovers(folder: Path) -> None:
    """Removes the files listed by `leftovers`, but for the lock, which this process holds."""
    for path in leftovers(folder):
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != LOCK:
            path.unlink()


def save(path: Path, state: dict[str, Any]) -> None:
    """Writes a checkpoint atomically. Raises TypeError naming an entry that is neither a tensor nor a plain value."""
    _require_plain("state", state)
    with atomic(path) as file:
        torch.save(state, file)


def load(path: Path) -> dict[str, Any]:
    """Reads a checkpoint written by `save` to the CPU, with weights_only=True.

    Raises FileNotFoundError, or ValueError naming a file that is not a checkpoint or not as it was written: torch does not
    check the CRC of its archive, and a flipped bit of a weight would load.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint {path} does not exist")
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise zipfile.BadZipFile(f"the checksum of its part {damaged} does not match")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except DAMAGE as error:
        detail = str(error).splitlines()[0] if str(error) else type(error).__name__
        remedy = REMEDIES.get(path.name, "restore it from a copy, or delete it")
        raise ValueError(
            f"{path} is not a checkpoint of this project: it is damaged or a different kind of file ({detail}); {remedy}"
        ) from error
    if not isinstance(state, dict):
        raise ValueError(f"{path} is not a checkpoint of this project: it holds a {type(state).__name__}")
    return state


@dataclass(frozen=True)
class TrainedModel:
    """Contents of the best checkpoint of a run folder."""

    config: Config
    tokenizer: Any
    # Weights of best.pt, in evaluation mode.
    model: RetrievalModel
    # Finished epochs and steps, the clothing weight beta chosen on validation, and the fingerprint of the data.
    epoch: int
    step: int
    beta: float
    fingerprint: str
    # Digest of the images (image_digests.py); "" in runs of earlier versions.
    images: str = ""
    # The configuration as stored, where `config` names another place of the data.
    stored: Config | None = None
    # Processes that encode with it in turn.
    ranks: Ranks = ONE_RANK

    @property
    def stored_config(self) -> Config:
        """The configuration of the run, wherever its data are now."""
        return self.stored or self.config

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        return next(self.model.parameters()).device

    @property
    def decoupling_model(self) -> Model:
        """The model, with its branches. Raises ValueError for a plain dual encoder."""
        if not isinstance(self.model, Model):
            raise ValueError(
                f"this needs branches of identity and clothing, which model.architecture "
                f"{self.config.model.architecture!r} does not have"
            )
        return self.model


def build_model(config: Config, tokenizer: Any, towers: dict[str, str] | None = None) -> RetrievalModel:
    """A new model for `config` and the vocabulary of `tokenizer`, with random weights from torch's global generator and the
    weights of pretrained encoders, except of those that `towers` describes."""
    size, length = config.data.image_size, config.data.text_length
    if config.model.architecture == "dual-encoder":
        return DualEncoder(config.model, config.loss, size, len(tokenizer), tokenizer.pad_token_id)
    return Model(config.model, config.loss, size, len(tokenizer), tokenizer.pad_token_id, length, towers)


def load_run(run_dir: Path, data_root: Path | None = None, device: str = "auto") -> TrainedModel:
    """Loads the best checkpoint of `run_dir`, trained on any device, with the tokenizer that it was trained with.

    data_root: where its data are now, if they were moved; device: as in `select_device`. Raises FileNotFoundError when there is
    none, ValueError for a damaged file, for weights that are not finite and for a device that does not exist. Kernels that do
    not run on the device (`model.backend`) are those of `auto` there, with one line on stderr.
    """
    place, path = select_device(device), Path(run_dir) / "best.pt"
    if not path.is_file():
        raise FileNotFoundError(
            f"{run_dir} holds no trained model: there is no {path}; `python -m training.train` creates it"
        )
    state = load(path)
    try:
        config, weights = from_dict(state["config"]), state["model"]
        numbers = {name: state[name] for name in ("epoch", "step", "beta", "fingerprint")}
    except (KeyError, ValueError) as error:
        raise ValueError(f"{path} is not a checkpoint of this version: {error}") from error
    bad = [key for key, value in weights.items() if value.is_floating_point() and not bool(value.isfinite().all())]
    if bad:
        raise ValueError(
            f"{path} holds weights that are not finite: {', '.join(bad[:4])} ({len(bad)} in all); train the run again"
        )
    require_tokenizer(path.parent / TOKENIZER, state.get("tokenizer"))
    tokenizer = load_tokenizer(path.parent / TOKENIZER)
    # The run has the weights: neither the folder nor the hub that they came from is needed.
    moved = replace(config, data=at_root(config.data, data_root), model=_runnable(config.model, place))
    model = build_model(moved, tokenizer, state.get("towers"))
    model.load_state_dict(weights)
    model.to(place).eval()
    return TrainedModel(moved, tokenizer, model, **numbers, images=state.get("images", ""), stored=config)


def _runnable(config: ModelConfig, device: torch.device) -> ModelConfig:
    """The configuration with a backend that runs on `device`: a run belongs to no device, only its speed does."""
    backend = config.backend
    if backend in ("auto", "reference") or (device.type == "cpu" if backend == "cpu" else runs_on(backend, device)):
        return config
    sys.stderr.write(f"note: the run has model.backend={backend}, which does not run on {device}; auto chooses here\n")
    return replace(config, backend="auto")


def _require_plain(name: str, value: Any) -> None:
    if isinstance(value, dict):
        for key, item in value.items():
            _require_plain(f"{name}.{key}", item)
    elif isinstance(value, (list, tuple)):
        for i, item in enumerate(value):
            _require_plain(f"{name}[{i}]", item)
    elif value is not None and not isinstance(value, (torch.Tensor, bool, int, float, str)):
        raise TypeError(f"{name} must be a tensor or a plain value, got {type(value).__name__}")
