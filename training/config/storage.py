"""Configurations as plain JSON types and back, those of earlier versions included."""

from __future__ import annotations

import copy
import dataclasses
import json
import typing
from pathlib import Path
from typing import Any

from training.config.stages import Config


def to_dict(config: Config) -> dict[str, Any]:
    """The configuration as plain JSON types (tuples become lists)."""
    return dataclasses.asdict(config)


# What the fields meant that a stored configuration of an earlier version does not have, by their dotted names.
BEFORE: dict[str, Any] = {
    **{f"model.{encoder}.stem": "plain" for encoder in ("visual", "text")},
    **{f"model.{encoder}.feed_forward": 4 for encoder in ("visual", "text")},
    **{f"model.{encoder}.{name}": (0.5, 0.5, 0.5) for encoder in ("visual", "text") for name in ("mean", "std")},
    "model.fusion.branches": "identity",
    "loss.final_wrong_pairs": False,
    "loss.matching_form": "linear",
    "loss.triplet_smoothing": 0.0,
    "loss.critic_lr_scale": 1.0,
    "model.architecture": "decoupling",
    "data.captions_only": False,
    # Where Pillow stopped.
    "data.max_pixels": 178_956_970,
    "data.follow_links": True,
    "loss.captions_to_identity": 1.0,
    "loss.both_captions": False,
    "loss.caption_positives": "identity",
    "loss.final_text": "caption",
    "loss.final_negatives": "next",
    "loss.final_gradient": 1.0,
    "gradnorm.optimizer": "plain",
    "gradnorm.lead": 1.0,
    "optim.ema": 0.0,
}


def from_dict(values: dict[str, Any]) -> Config:
    """Config from the result of `to_dict`, of this version or an earlier one. Raises ValueError naming a field that is unknown,
    missing or of a wrong value."""
    return _build(Config, _completed(values), "config")


def complete(values: dict[str, Any]) -> dict[str, Any]:
    """A stored configuration with all fields of this version; as it is where this version cannot read it."""
    try:
        return json.loads(json.dumps(to_dict(from_dict(values))))
    except ValueError:
        return values


# Stands for the folder of any data set. This one leaves the names of the kept runs in bench/results as they are.
ANY_FOLDER = Path("data/synthetic")


def without_places(values: dict[str, Any]) -> dict[str, Any]:
    """A stored configuration in which one fixed folder stands for that of the data and of the generated texts in it, and no
    packed cache is named: equal for runs that differ only in where these are, which changes no number. One that is no
    configuration is returned as it is."""
    try:
        data = values["data"]
        texts, root = Path(data["descriptions"]), Path(data["root"])
    except (KeyError, TypeError):
        return values
    inside = data["descriptions"] and texts.is_relative_to(root)
    descriptions = str(ANY_FOLDER / texts.relative_to(root)) if inside else data["descriptions"]
    return {**values, "data": {**data, "root": str(ANY_FOLDER), "descriptions": descriptions, "cache": ""}}


def _completed(values: Any) -> Any:
    """The configuration with the fields of BEFORE that it lacks; nothing is added to a stage that does not exist."""
    if not isinstance(values, dict):
        return values
    result = copy.deepcopy(values)
    for path, value in BEFORE.items():
        *stages, name = path.split(".")
        stage: Any = result
        for key in stages:
            stage = stage.get(key) if isinstance(stage, dict) else None
        if isinstance(stage, dict):
            stage.setdefault(name, value)
    loss = result.get("loss")
    if isinstance(loss, dict) and "adversarial_mode" in loss:
        # One switch was for both, and eq. (1) has no matching.
        loss.setdefault("clothing_matching", loss.get("adversarial", False) and loss["adversarial_mode"] != "paper")
    return result


def _build(cls: type, values: Any, path: str) -> Any:
    hints = typing.get_type_hints(cls)
    if not isinstance(values, dict):
        raise ValueError(f"{path} must be an object with the fields of {cls.__name__}, got {values!r}")
    for what, names in (("unknown", values.keys() - hints.keys()), ("missing", hints.keys() - values.keys())):
        if names:
            raise ValueError(f"{path}: {what} fields: {', '.join(sorted(names))}")
    converted = {name: _convert(hints[name], values[name], f"{path}.{name}") for name in hints}
    try:
        return cls(**converted)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _convert(hint: Any, value: Any, path: str) -> Any:
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return _build(hint, value, path)
    if typing.get_origin(hint) is not tuple:
        return value
    kinds = typing.get_args(hint)
    accepted = (int, float) if float in kinds else (int,)
    numbers = isinstance(value, (list, tuple)) and all(type(v) in accepted for v in value)
    if not numbers or (Ellipsis not in kinds and len(value) != len(kinds)):
        count = "any number of" if Ellipsis in kinds else len(kinds)
        raise ValueError(f"{path} must be a list of {count} {accepted[-1].__name__}s, got {value!r}")
    return tuple(value)
