"""Files of a run, each written whole or not at all, checkpoints of tensors and plain values, a run loaded again, and
results of its best checkpoint that are computed once."""

from __future__ import annotations

import pickle
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from training.config import Config, from_dict
from training.data.tokenizer import load_tokenizer
from training.models.model import Model
from training.utils.io import atomic


def leftovers(folder: Path) -> list[Path]:
    """What a killed process has left of files that it was writing into a run folder."""
    return sorted(p for p in Path(folder).iterdir() if re.fullmatch(r"\..+\.tmp|\.tokenizer\..+", p.name))


def remove_leftovers(folder: Path) -> None:
    """Removes `leftovers`."""
    for path in leftovers(folder):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def save(path: Path, state: dict[str, Any]) -> None:
    """Writes a checkpoint atomically. Raises TypeError naming the entry that is neither tensor nor plain value."""
    _require_plain("state", state)
    with atomic(path) as file:
        torch.save(state, file)


def load(path: Path) -> dict[str, Any]:
    """What `save` wrote, on the CPU, read with weights_only=True.

    Raises FileNotFoundError, or ValueError naming a file that is not such a checkpoint.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"checkpoint {path} does not exist")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError, ValueError) as error:
        raise ValueError(f"{path} is not a checkpoint of this project: it is damaged or of another kind") from error
    if not isinstance(state, dict):
        raise ValueError(f"{path} is not a checkpoint of this project: it holds a {type(state).__name__}")
    return state


@dataclass(frozen=True)
class TrainedModel:
    """What the best checkpoint of a run folder holds."""

    config: Config
    tokenizer: Any
    # With the weights of best.pt, in evaluation mode.
    model: Model
    # Finished epochs and steps, the clothing weight chosen on validation, and the fingerprint of the data.
    epoch: int
    step: int
    beta: float
    fingerprint: str


def build_model(config: Config, tokenizer: Any) -> Model:
    """A new model for `config` and the vocabulary of `tokenizer`; its random weights come from torch's global state."""
    size, length = config.data.image_size, config.data.text_length
    return Model(config.model, config.loss, size, len(tokenizer), tokenizer.pad_token_id, length)


def load_run(run_dir: Path) -> TrainedModel:
    """The run in `run_dir`. Raises FileNotFoundError when it is not trained, ValueError when a file is damaged."""
    path = Path(run_dir) / "best.pt"
    if not path.is_file():
        raise FileNotFoundError(
            f"{run_dir} holds no trained model: there is no {path}; `python -m training.train` makes it"
        )
    state = load(path)
    try:
        config, weights = from_dict(state["config"]), state["model"]
        numbers = {name: state[name] for name in ("epoch", "step", "beta", "fingerprint")}
    except (KeyError, ValueError) as error:
        raise ValueError(f"{path} is not a checkpoint of this version: {error}") from error
    tokenizer = load_tokenizer(path.parent / "tokenizer")
    model = build_model(config, tokenizer)
    model.load_state_dict(weights)
    return TrainedModel(config, tokenizer, model.eval(), **numbers)


def _require_plain(name: str, value: Any) -> None:
    if isinstance(value, dict):
        for key, item in value.items():
            _require_plain(f"{name}.{key}", item)
    elif isinstance(value, (list, tuple)):
        for i, item in enumerate(value):
            _require_plain(f"{name}[{i}]", item)
    elif value is not None and not isinstance(value, (torch.Tensor, bool, int, float, str)):
        raise TypeError(f"{name} must be a tensor or a plain value, got {type(value).__name__}")
