"""Checkpoints of tensors and plain values, written atomically; loading of a trained run; cached results of its best
checkpoint."""

from __future__ import annotations

import pickle
import re
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from training.config import Config, from_dict
from training.data.datasets import at_root
from training.data.tokenizer import load_tokenizer
from training.models.baseline import DualEncoder
from training.models.model import Model
from training.models.retrieval_model import RetrievalModel
from training.utils.io import atomic


def leftovers(folder: Path) -> list[Path]:
    """Temporary files of a killed process in a run folder."""
    return sorted(p for p in Path(folder).iterdir() if re.fullmatch(r"\..+\.tmp|\.tokenizer\..+", p.name))


def remove_leftovers(folder: Path) -> None:
    """Removes the files listed by `leftovers`."""
    for path in leftovers(folder):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def save(path: Path, state: dict[str, Any]) -> None:
    """Writes a checkpoint atomically. Raises TypeError naming an entry that is neither a tensor nor a plain value."""
    _require_plain("state", state)
    with atomic(path) as file:
        torch.save(state, file)


def load(path: Path) -> dict[str, Any]:
    """Reads a checkpoint written by `save` to the CPU, with weights_only=True.

    Raises FileNotFoundError, or ValueError naming a file that is not a checkpoint.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"checkpoint {path} does not exist")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError, ValueError) as error:
        raise ValueError(
            f"{path} is not a checkpoint of this project: it is damaged or a different kind of file"
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
    # The configuration as stored, where `config` names another place of the data.
    stored: Config | None = None

    @property
    def stored_config(self) -> Config:
        """The configuration of the run, wherever its data are now."""
        return self.stored or self.config

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


def load_run(run_dir: Path, data_root: Path | None = None) -> TrainedModel:
    """Loads the best checkpoint of `run_dir`; data_root: where its data are now, if they were moved. Raises FileNotFoundError when there is none, ValueError for a damaged file."""
    path = Path(run_dir) / "best.pt"
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
    tokenizer = load_tokenizer(path.parent / "tokenizer")
    # The run has the weights: neither the folder nor the hub that they came from is needed.
    model = build_model(config, tokenizer, state.get("towers"))
    model.load_state_dict(weights)
    moved = replace(config, data=at_root(config.data, data_root))
    return TrainedModel(moved, tokenizer, model.eval(), **numbers, stored=config)


def _require_plain(name: str, value: Any) -> None:
    if isinstance(value, dict):
        for key, item in value.items():
            _require_plain(f"{name}.{key}", item)
    elif isinstance(value, (list, tuple)):
        for i, item in enumerate(value):
            _require_plain(f"{name}[{i}]", item)
    elif value is not None and not isinstance(value, (torch.Tensor, bool, int, float, str)):
        raise TypeError(f"{name} must be a tensor or a plain value, got {type(value).__name__}")
