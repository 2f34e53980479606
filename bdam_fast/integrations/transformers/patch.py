"""Puts the operators into Hugging Face transformers' Mamba and FalconMamba models, and removes them again.

Two generations are known. Up to 5.15 a mixer has a `slow_forward`, which is replaced (mamba.py); in later versions the
mixers call functions of their module, which are replaced by name (mamba_functions.py). Mixers that exist already run on
the operators too, since both are looked up at each call. Only tensors on a CPU are affected.
"""

import importlib
import importlib.util
import inspect
from types import ModuleType
from typing import Any

from bdam_fast.integrations.transformers.mamba import slow_forward
from bdam_fast.integrations.transformers.mamba_functions import functions

MIXERS = {"mamba": "MambaMixer", "falcon_mamba": "FalconMambaMixer"}
_replaced: list[tuple[Any, str, Any]] = []  # owner, name, and the value before the patch


def patch_transformers() -> None:
    """Makes the Mamba and FalconMamba models of Hugging Face transformers run on these operators, wherever they were made.

    Logits, gradients and generated tokens stay what they were, up to rounding; masks, caches and beam search are not
    touched. On other devices than a CPU, and for what the operators do not take (packed sequences), the models' own
    functions are called. A second call does nothing; `unpatch_transformers()` puts everything back.

    Raises:
        RuntimeError: transformers is not installed, or its models are of a generation that is not known here.
    """
    if _replaced:
        return
    changes = [change for family, mixer in MIXERS.items() for change in _changes(_modeling(family), mixer)]
    for owner, name, value in changes:
        _replaced.append((owner, name, vars(owner)[name]))
        setattr(owner, name, value)


def unpatch_transformers() -> None:
    """Puts back what `patch_transformers()` replaced; does nothing without it."""
    while _replaced:
        setattr(*_replaced.pop())


def _modeling(family: str) -> ModuleType:
    try:
        return importlib.import_module(f"transformers.models.{family}.modeling_{family}")
    except ImportError as error:
        if importlib.util.find_spec("transformers") is not None:
            raise _unknown(f"{error}") from error
        raise RuntimeError(
            "patch_transformers: transformers must be installed, got none; run `pip install transformers`"
        ) from error


def _unknown(what: str) -> RuntimeError:
    version = importlib.import_module("transformers").__version__
    return RuntimeError(
        f"patch_transformers: transformers must have the Mamba models of 4.57 to 5.23 as known here, got version {version} "
        f"({what})"
    )


def _changes(module: ModuleType, mixer_name: str) -> list[tuple[Any, str, Any]]:
    """(owner, name, replacement) for one model's module, nothing changed yet."""
    mixer = getattr(module, mixer_name, None)
    slow = None if mixer is None else vars(mixer).get("slow_forward")
    if slow is not None:
        replacement = slow_forward(module, slow)
        if replacement is None:
            raise _unknown(f"{mixer_name}.slow_forward has other arguments")
        silent = [(mixer, name, _say_nothing) for name in ("warn_slow_implementation",) if name in vars(mixer)]
        return [(mixer, "slow_forward", replacement), *silent]
    replacements = functions(module)
    for name, function in replacements.items():
        if _parameters(getattr(module, name, None)) != _parameters(function):
            raise _unknown(f"{module.__name__}.{name} is missing or has other arguments")
    return [(module, name, function) for name, function in replacements.items()]


def _parameters(function: Any) -> list[str]:
    """Names of a function's arguments, or of the module's that the `kernels` package makes of a function."""
    target = getattr(function, "forward", function)
    if not callable(target):
        return []
    parameters = inspect.signature(target).parameters.values()
    return [p.name for p in parameters if p.kind is not inspect.Parameter.VAR_KEYWORD]


def _say_nothing(self: Any) -> None:
    """In place of the mixer's warning that it will be slow."""
