"""Puts the operators into Hugging Face transformers' Mamba-1 models, and removes them again.

Two generations are known. Up to 5.15 a mixer of Mamba or FalconMamba has a `slow_forward`, which is replaced (mamba.py); in
later versions the mixers, those of Jamba and Zamba too, call functions of their module, which are replaced by name
(mamba_functions.py). Mixers that exist already run on the operators too, since both are looked up at each call.
"""

import importlib
import importlib.util
import inspect
import logging
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from ... import _backend
from .mamba import slow_forward
from .mamba_functions import OURS, continuing, functions
from .one_row import decoding

MIXERS = {
    "mamba": "MambaMixer",
    "falcon_mamba": "FalconMambaMixer",
    "jamba": "JambaMambaMixer",
    "zamba": "ZambaMambaMixer",
}
WITH_SLOW_FORWARD = ("mamba", "falcon_mamba")  # whose slow_forward is known
# Models of Mamba-2, whose scan is another function.
OTHERS = ("bamba", "falcon_h1", "granitemoehybrid", "mamba2", "nemotron_h", "zamba2")
log = logging.getLogger(__name__)
Changes = list[tuple[Any, str, Any]]  # owner, name and value


@dataclass(frozen=True)
class Patched:
    """The model families of transformers that run on the operators, and those with a Mamba mixer that do not, and why."""

    covered: tuple[str, ...]
    left: dict[str, str]
    backend: str
    continue_cache: bool


_replaced: Changes = []  # with the values before the patch
_patched: list[Patched] = []  # the one that is in force


def patch_transformers(*, backend: str = "auto", continue_cache: bool = False) -> Patched:
    """Makes the Mamba-1 models of Hugging Face transformers run on these operators, whenever they were made.

    Mamba, FalconMamba, Jamba and Zamba. Logits, gradients and generated tokens stay what they were, up to rounding; masks,
    caches and beam search are not touched. What the operators do not take (packed sequences) the models' own functions
    compute. Without gradients, in float32 on a CPU, the large linear layers take a single row on all threads (decoding).
    A second call with the same options does nothing; `unpatch_transformers()` puts everything back.

    Args:
        backend: as everywhere. `auto` takes tensors on a CPU, and those on a GPU where the package mamba_ssm is not
            installed and the models would loop in PyTorch; another one takes the tensors that it can run.
        continue_cache: several tokens given with a cache that is not empty continue from its state. The models
            themselves then start their scan from zero, and generate other tokens than for the whole text.

    Returns:
        What is covered and what is left, which is logged too (logger `bdam_fast.integrations.transformers.patch`).

    Raises:
        ValueError: an unknown backend.
        RuntimeError: transformers is not installed, none of its models is of a generation that is known here, or
            `continue_cache` for versions before 5.16.
    """
    if backend not in _backend.BACKENDS:
        raise ValueError(f"patch_transformers: backend must be one of {', '.join(_backend.BACKENDS)}, got {backend!r}")
    if _patched and (_patched[0].backend, _patched[0].continue_cache) == (backend, continue_cache):
        return _patched[0]
    _check_installed()
    changes, left = _all_changes(backend, continue_cache)
    unpatch_transformers()
    for owner, name, value in (change for family in changes.values() for change in family):
        _replaced.append((owner, name, vars(owner)[name]))
        setattr(owner, name, value)
    left |= {f: "Mamba-2, another operator" for f in OTHERS if importlib.util.find_spec(f"transformers.models.{f}")}
    _patched.append(Patched(tuple(changes), left, backend, continue_cache))
    log.info("patch_transformers: %s run on the operators; left: %s", ", ".join(changes), left)
    return _patched[0]


def unpatch_transformers() -> None:
    """Puts back what `patch_transformers()` replaced; does nothing without it."""
    while _replaced:
        setattr(*_replaced.pop())
    _patched.clear()


def _check_installed() -> None:
    try:
        importlib.import_module("transformers.models")
    except ImportError as error:
        raise RuntimeError(
            "patch_transformers: transformers must be installed, got none; run `pip install transformers`"
        ) from error


def _all_changes(backend: str, continue_cache: bool) -> tuple[dict[str, Changes], dict[str, str]]:
    """The changes by family, nothing changed yet, and the families that are left, with the reasons."""
    changes: dict[str, Changes] = {}
    left: dict[str, str] = {}
    for family, mixer in MIXERS.items():
        try:
            module = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
            changes[family] = _changes(module, family, mixer, backend, continue_cache)
        except (ImportError, _UnknownError) as error:
            left[family] = f"{error}"
            log.warning("patch_transformers: %s is left on its own functions: %s", family, error)
    if not changes:
        version = importlib.import_module("transformers").__version__
        reasons = "; ".join(f"{family}: {why}" for family, why in left.items())
        raise RuntimeError(
            "patch_transformers: transformers must have the Mamba models of 4.57 to 5.24 as known here, got version "
            f"{version} ({reasons})"
        )
    return changes, left


class _UnknownError(Exception):
    """A model's module is not as it is known here."""


def _changes(module: ModuleType, family: str, mixer_name: str, backend: str, continue_cache: bool) -> Changes:
    mixer = getattr(module, mixer_name, None)
    if mixer is None:
        raise _UnknownError(f"{mixer_name} is missing")
    slow = vars(mixer).get("slow_forward")
    if slow is not None:
        replacement = slow_forward(module, slow, backend) if family in WITH_SLOW_FORWARD else None
        if replacement is None:
            raise _UnknownError(f"{mixer_name}.slow_forward has other arguments, or is not known")
        if continue_cache:
            raise _UnknownError("continue_cache needs transformers 5.16 or later")
        silent = [(mixer, name, _say_nothing) for name in ("warn_slow_implementation",) if name in vars(mixer)]
        return [(mixer, "slow_forward", replacement), *silent]
    replacements = functions(module, backend)
    for name in OURS.keys() - {"mamba_inner_fn"}:  # a shortcut, which Zamba has not
        if _parameters(getattr(module, name, None)) != _parameters(OURS[name]):
            raise _UnknownError(f"{module.__name__}.{name} is missing or has other arguments")
    changes: Changes = [(module, name, function) for name, function in replacements.items()]
    forward = decoding(mixer.forward, backend)
    changes.append((mixer, "forward", continuing(forward) if continue_cache else forward))
    models = [m for n, m in vars(module).items() if n.endswith("ForCausalLM") and m.__module__ == module.__name__]
    return [*changes, *((model, "forward", decoding(model.forward, backend)) for model in models)]


def _parameters(function: Any) -> list[str]:
    """Names of a function's arguments, or of the module's that the `kernels` package makes of a function."""
    target = getattr(function, "forward", function)
    if not callable(target):
        return []
    parameters = inspect.signature(target).parameters.values()
    return [p.name for p in parameters if p.kind not in (p.VAR_KEYWORD, p.KEYWORD_ONLY)]


def _say_nothing(self: Any) -> None:
    """In place of the mixer's warning that it will be slow."""
